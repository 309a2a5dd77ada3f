"""From a run folder to a trained model."""
