"""Measures calls by pytest-benchmark: its tables, its JSON, its comparison with earlier runs."""


def test_call(make, benchmark):
    call = make()
    call()  # compiles and loads what is not to be timed
    benchmark(call)
