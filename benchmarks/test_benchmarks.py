"""Time single calls with pytest-benchmark."""


def test_call(make, benchmark):
    call = make()
    call()  # compiles and loads code, which must not be timed
    benchmark(call)
