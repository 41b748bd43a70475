"""Measurements of what the package claims; every file runs by itself: `python -m benchmarks.bench_step --help`."""
