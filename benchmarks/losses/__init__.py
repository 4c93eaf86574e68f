"""Benchmarks of the losses."""
