"""Prediction and evaluation with a trained run."""
