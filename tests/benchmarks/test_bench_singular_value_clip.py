"""The benchmark of singular value clipping refuses wrong results, and computes goals and shares correctly."""

import pytest
import torch

from benchmarks import bench_singular_value_clip as bench
from benchmarks import result_files
from benchmarks.bench_singular_value_clip import CALL, GRAM, SMOKE
from benchmarks.suite import Run

CLIPS = bench.contenders_for("cpu")


def clip_lower(weights):
    bench.singular_value_clip_(weights, 0.9)


@pytest.mark.parametrize("case", SMOKE, ids=str)
def test_another_result_is_not_timed_and_rivals_are_left_out(case):
    inputs = bench.make_inputs(case, "cpu")
    found, left_out = bench.check(case, CLIPS | {"svd": clip_lower}, inputs)
    assert found.keys() == {"auto", GRAM}
    assert left_out["svd"].startswith("is off by ")
    with pytest.raises(SystemExit, match=r"auto is off by .*: nothing is timed"):
        bench.check(case, CLIPS | {"auto": clip_lower}, inputs)


def test_every_turn_begins_with_the_weights_as_they_were_made():
    taken = []

    def note(weights):
        taken.append(weights[0].tolist())
        weights[0].zero_()

    inputs = [bench.make_inputs(SMOKE[0], "cpu") for _ in range(2)]
    bench.time_parts(Run("cpu", smoke=True), {"auto": note, "svd": CLIPS["svd"]}, inputs)
    fresh = [each.fresh[0].tolist() for each in inputs]
    assert len(taken) > 2
    assert all(values in fresh for values in taken)


def test_weights_are_those_of_their_states():
    shapes = ((64, 192), (128, 4096))
    for weight in bench.make_inputs(bench.Case("", shapes, "gaussian"), "cpu").fresh:
        assert torch.linalg.matrix_norm(weight, 2) == pytest.approx(bench.LARGEST_SINGULAR_VALUE, abs=0.1)
    for weight in bench.make_inputs(bench.Case("", shapes, "training"), "cpu").fresh:
        excess = torch.linalg.svdvals(weight) - 1
        assert 1e-3 < excess.max() < 1e-2
        assert (excess > 0).sum() > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_profiler_that_sees_no_kernel_counts_none():
    assert bench.launches_of(CLIPS["svd"], bench.make_inputs(SMOKE[0], "cpu")) is None


def test_goals_tell_what_is_met_what_is_missed_and_what_is_not_measured():
    for device in ("cpu", "cuda"):
        assert {goal.verdict for goal in bench.goals_for([], device)} == {result_files.NOT_MEASURED}
    found = {
        "auto": (2.9e-4, 1.0, 2e-7),
        "auto again": (1.0, 9.0, None),
        GRAM: (0.02, 69, 1e-6),
        "svd": (0.2, 799, 1e-7),
    }
    rows = [
        {"contender": name, "part": CALL, "seconds": seconds, "ratio": ratio, "error": {"norm": error}}
        for name, (seconds, ratio, error) in found.items()
    ]
    rows.append(rows[0] | {"part": bench.REPLAY, "seconds": 1.0})
    records = [{"case": str(bench.CASES[0]), "timings": rows, "launches": None, "seconds_an_iteration": 2.9e-3}]
    goals = bench.goals_for(records, "cuda")
    assert [goal.verdict for goal in goals] == ["met", "SHORT", "met", result_files.NOT_MEASURED, "met"]
    assert [goal.measured for goal in goals] == [0.29, 799, 69, None, 0.02]
    assert [goal.verdict for goal in bench.goals_for(records, "cpu")] == ["met", "SHORT", "met", "SHORT"]
