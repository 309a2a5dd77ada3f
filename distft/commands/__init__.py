"""Commands that inspect runs, and a few small ones."""
