"""Benchmarks of clipweather_fast: `pytest benchmarks`, then `python -m benchmarks.report`."""
