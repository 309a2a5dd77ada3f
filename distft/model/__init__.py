"""The model of a run: load, initialize, adapt, export."""
