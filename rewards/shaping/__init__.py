"""Shapers: one file each, groups -> one named reward component."""
