"""The processes of a run: signals, heartbeats, ranks, console."""
