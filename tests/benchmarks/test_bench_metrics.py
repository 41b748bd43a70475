"""The benchmark of scores times contenders with equal results; the figures are not checked."""

import functools

import pytest

from benchmarks import bench_metrics as bench
from benchmarks.result_files import NOT_MEASURED
from benchmarks.suite import Run, Suite

SMOKE = Run("cpu", smoke=True)


def test_three_ways_come_to_the_same_distance():
    rows = Suite(SMOKE).record(bench.SECTION, bench.FRECHET)["timings"]
    errors = {row["contender"]: row["error"] for row in rows if row["error"] is not None}
    assert errors == pytest.approx(dict.fromkeys(bench.DISTANCES, 0), abs=1e-9)


def test_another_distance_is_not_timed_and_such_a_rival_is_left_out(monkeypatch):
    monkeypatch.setitem(bench.DISTANCES, bench.SCIPY, lambda *problem: 2 * bench.frechet_distance(*problem))
    record = Suite(SMOKE).record(bench.SECTION, bench.FRECHET)
    assert record["left_out"][bench.SCIPY].startswith("is off by 1.0e+00")
    monkeypatch.setitem(bench.DISTANCES, bench.OURS, lambda *problem: 1.00001 * bench.frechet_distance(*problem))
    with pytest.raises(SystemExit, match=rf"error: {bench.FRECHET}: tgan_fast is off by .*: nothing is timed"):
        Suite(SMOKE).record(bench.SECTION, bench.FRECHET)


def test_scores_of_other_videos_are_not_timed(monkeypatch):
    monkeypatch.setattr(bench, "Evaluator", functools.partial(bench.Evaluator, seed=1))
    with pytest.raises(SystemExit, match=rf"error: {bench.SCORING}: tgan_fast fp32 is off by .*: nothing is timed"):
        Suite(SMOKE).record(bench.SECTION, bench.SCORING)


def test_the_goal_is_that_of_a_gpu_and_of_all_videos():
    whole, part = ({"runs": runs, "timings": [{"seconds": 9.2}]} for runs in (10, 1))
    goals = [bench.goals_for(records, "cuda")[0] for records in ([{"timings": []}, whole], [part])]
    assert [(goal.measured, goal.verdict) for goal in goals] == [(9.2, "met"), (None, NOT_MEASURED)]
    assert bench.goals_for([whole], "cpu") == []
