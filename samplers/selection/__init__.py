"""How one answer is chosen of several samples: one file a method."""
