"""Measures calls by pytest-benchmark: its tables, its JSON, its comparison with earlier runs."""

from benchmarks import results


def test_call(make, device, benchmark):
    environment = results.describe(device)
    benchmark.extra_info.update({name: environment[name] for name in ("device", "commit")})
    call = make()
    call()  # compiles and loads what is not to be timed
    benchmark(call)
