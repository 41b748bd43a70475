"""The benchmark of scores times what computes the same; the figures are their own business."""

import functools

import pytest
import torch

from benchmarks import bench_metrics as bench
from benchmarks.results import NOT_MEASURED
from benchmarks.suite import Run, Suite

SMOKE = Run("cpu", smoke=True)
LARGE, SMALL = bench.FRECHET


@pytest.mark.parametrize(("n", "d"), [(60, 12), (8, 20)])
def test_the_distance_of_a_problem_is_that_of_the_definition(n, d):
    features, other, distance = bench.make_problem(n, d, "cpu")
    assert features.dtype == torch.float32
    own = features.double().T.cov()
    roots = torch.linalg.eigvals(own @ other.covariance).real.clamp(min=0).sqrt().sum()
    traces = own.trace() + other.covariance.trace()
    expected = (features.double().mean(0) - other.mean).square().sum() + traces - 2 * roots
    assert distance == pytest.approx(expected.item(), rel=1e-6)
    assert distance > 0.1 * traces


def test_another_distance_is_not_timed_and_such_a_rival_is_left_out(monkeypatch):
    ours = bench.DISTANCES[bench.OURS]
    monkeypatch.setitem(bench.DISTANCES, bench.SCIPY, lambda *problem: 2 * ours(*problem))
    record = Suite(SMOKE).record(bench.SECTION, SMALL)
    assert record["left_out"][bench.SCIPY].startswith("is off by 1.0e+00")
    assert record["rivals"] == [bench.TORCHMETRICS]
    monkeypatch.setitem(bench.DISTANCES, bench.OURS, lambda *problem: (1 + 1e-5) * ours(*problem))
    with pytest.raises(SystemExit, match=rf"error: {LARGE}: tgan_fast is off by .*: nothing is timed"):
        Suite(SMOKE).record(bench.SECTION, LARGE)


def test_scores_of_other_videos_are_not_timed(monkeypatch):
    monkeypatch.setattr(bench, "Evaluator", functools.partial(bench.Evaluator, seed=1))
    with pytest.raises(SystemExit, match=rf"error: {bench.SCORING}: tgan_fast fp32 is off by .*: nothing is timed"):
        Suite(SMOKE).record(bench.SECTION, bench.SCORING)


def test_the_goal_is_that_of_a_gpu_and_of_all_videos():
    records = [{"timings": []}, {"samples": 2048, "runs": 10, "timings": [{"seconds": 9.2}]}]
    (goal,) = bench.goals_for(records, "cuda")
    assert (goal.measured, goal.verdict) == (9.2, "met")
    assert bench.goals_for([records[1] | {"samples": 2}], "cuda")[0].verdict == NOT_MEASURED
    assert bench.goals_for(records, "cpu") == []
