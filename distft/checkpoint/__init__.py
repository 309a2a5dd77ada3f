"""Checkpoints: `store` handles files, `state` knows what they contain."""
