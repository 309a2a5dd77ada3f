"""Checkpoints: `store` knows bytes, `state` knows what they mean."""
