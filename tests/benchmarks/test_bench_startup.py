"""The benchmark of start-up times the processes that it claims; the figures are not checked."""

import pytest

from benchmarks import bench_startup as bench
from benchmarks.result_files import NOT_MEASURED


def test_lines_have_the_time_when_they_came():
    program = "import time\nprint('first', flush=True)\ntime.sleep(0.5)\nprint('second')"
    first, second, end = bench.seconds_to_lines("a program", ["-c", program], ["first", "second"])
    assert 0 < first < second - 0.4 < end


@pytest.mark.parametrize("program", ["print('half'); raise ValueError('broken')", "print('other'); print('broken')"])
def test_a_process_that_fails_or_does_something_else_is_not_timed(program):
    with pytest.raises(SystemExit, match=r"error: a program fails: .*broken: nothing is timed"):
        bench.seconds_to_lines("a program", ["-c", program], ["half"])


def test_the_goal_compares_with_pytorch_alone():
    rows = [{"contender": "tgan_fast", "p10": 2.3}, {"contender": "torch alone", "p10": 2.0}]
    goals = [bench.goals_for(records, "cpu")[0] for records in ([{"case": bench.IMPORT, "timings": rows}], [])]
    assert [(goal.measured, goal.verdict) for goal in goals] == [(1.15, "SHORT"), (None, NOT_MEASURED)]
