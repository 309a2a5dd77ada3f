"""Launchers put the processes of a run on machines. They know machines and schedulers, never a model."""
