"""Launchers start the processes of a run on machines. They know schedulers and no models."""
