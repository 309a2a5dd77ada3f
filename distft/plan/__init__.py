"""The plan: memory and time that a recipe takes, by arithmetic alone, without torch."""
