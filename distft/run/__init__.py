"""A run on disk: its folder, lease and metrics."""
