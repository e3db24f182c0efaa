"""Budget policies: one file each, prompt -> plans."""
