"""Benchmarks of all that the README claims; each file runs by itself: `python -m benchmarks.bench_step --help`."""
