"""One process among others: signals, signs of life, ranks."""
