"""The model of a run: found, loaded, adapted, exported."""
