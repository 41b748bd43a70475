"""Time single calls with pytest-benchmark."""


def test_call(make, benchmark):
    call = make()
    call()  # compiles and loads what is not to be timed
    benchmark(call)
