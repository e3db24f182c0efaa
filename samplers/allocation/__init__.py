"""Allocators: one file each, generators of asks."""
