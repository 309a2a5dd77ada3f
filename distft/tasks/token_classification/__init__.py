"""A tag for each word, with or without a CRF."""
