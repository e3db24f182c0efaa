"""Procedural tasks: one file each, deterministic by seed."""
