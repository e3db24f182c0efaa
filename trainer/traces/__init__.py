"""Makers of supervised examples from a stage's own rollouts, one file each (`base.py`)."""
