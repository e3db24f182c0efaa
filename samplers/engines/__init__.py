"""Engines: continuous batching behind one contract (see base.py)."""
