"""How a thought is brought to its end before its budget, or kept from it: one file a method."""
