"""Scores of predictions, and reports of them."""
