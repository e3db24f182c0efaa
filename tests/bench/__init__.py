"""Benchmarks; not tests."""
