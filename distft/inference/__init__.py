"""A trained run applied to records."""
