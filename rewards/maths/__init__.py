"""Equality of written mathematics: notation as strings, exact numbers, computer algebra."""
