"""Hands every timing of the suite to pytest-benchmark: its tables, its JSON, its comparison with earlier runs."""

import itertools

import pytest

from benchmarks.results import Label


class Replay:
    """A clock for pytest-benchmark: asked before and after each round, it tells what the round took."""

    def __init__(self, rounds):
        self._ticks = itertools.chain.from_iterable((0.0, seconds) for seconds in rounds)

    def __call__(self) -> float:
        return next(self._ticks)


def test_timing(request, suite, section, case, label):
    record = suite.record(section, case)
    row = {Label.of(row): row for row in record["timings"]}.get(label)
    if row is None:
        reasons = [reason for name, reason in record["left_out"].items() if label.contender in name]
        pytest.skip("; ".join(reasons) or "not measured")
    group = ", ".join(filter(None, (section.name, str(case), label.part)))
    request.applymarker(pytest.mark.benchmark(timer=Replay(row["rounds"]), group=group))
    benchmark = request.getfixturevalue("benchmark")
    benchmark.extra_info.update({key: value for key, value in row.items() if key != "rounds"}, flags=record["flags"])
    benchmark.pedantic(lambda: None, rounds=len(row["rounds"]))
