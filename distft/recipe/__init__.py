"""Recipes: what a user writes, checked and frozen."""
