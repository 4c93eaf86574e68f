"""Benchmarks of whole modules."""
