"""The engine behind the training loop."""
