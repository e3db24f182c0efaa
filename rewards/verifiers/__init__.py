"""Verifiers: one file each, answer text -> Verdict."""
