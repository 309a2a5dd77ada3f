"""Task token-classification: a tag for each word, with or without a CRF."""
