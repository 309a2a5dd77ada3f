"""Commands that only look, and a few small ones."""
