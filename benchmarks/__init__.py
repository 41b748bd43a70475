"""Benchmarks of the README's numbers; each section runs alone, too: `python -m benchmarks.bench_step --help`."""
