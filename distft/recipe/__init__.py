"""Recipes: the YAML file that describes a run, checked and frozen."""
