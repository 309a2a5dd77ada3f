"""Training: from a run folder to a trained model."""
