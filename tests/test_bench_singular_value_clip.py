"""The benchmark of singular value clipping refuses what is wrong, and computes goals and shares right."""

import pytest
import torch

from benchmarks import bench_singular_value_clip as bench
from benchmarks import results
from benchmarks.bench_singular_value_clip import CALL, FIVE, GRAM, SMOKE
from benchmarks.suite import Run

CLIPS = bench.contenders_for("cpu", SMOKE[0])


def clip_lower(weights):
    bench.singular_value_clip_(weights, 0.9)


def check(contenders, case=SMOKE[0]):
    return bench.check(case, contenders, bench.make_inputs(case, "cpu"))


@pytest.mark.parametrize("case", SMOKE, ids=str)
def test_another_result_is_not_timed(case):
    with pytest.raises(SystemExit, match=r"gemm is off by .*: nothing is timed"):
        check({"gemm": clip_lower, "svd": CLIPS["svd"]}, case)


def test_rivals_that_are_wrong_or_fail_are_left_out():
    def fail(weights):
        raise RuntimeError("does not converge\nmore")

    found, left_out = check({"auto": CLIPS["auto"], "svd": fail, "svd gesvda": clip_lower, GRAM: CLIPS[GRAM]})
    assert found.keys() == {"auto", GRAM}
    assert left_out["svd"] == "does not converge"
    assert left_out["svd gesvda"].startswith("is off by ")
    with pytest.raises(RuntimeError, match="does not converge"):
        check({"auto": fail})


def test_every_turn_begins_with_weights_that_are_to_be_clipped():
    largest = []

    def note(weights):
        largest.extend(torch.linalg.matrix_norm(weight, 2).item() for weight in weights)
        CLIPS["auto"](weights)

    inputs = [bench.make_inputs(SMOKE[0], "cpu") for _ in range(2)]
    bench._timings(Run("cpu", smoke=True), {"auto": note, "svd": CLIPS["svd"]}, inputs, {})
    assert min(largest) > 1.05


def test_weights_are_those_of_their_states():
    shapes = ((64, 192), (128, 4096))
    for weight in bench.make_inputs(bench.Case("", (*shapes, (1, 8192)), "gaussian"), "cpu").fresh:
        assert torch.linalg.matrix_norm(weight, 2) == pytest.approx(bench.LARGEST_SINGULAR_VALUE, abs=0.1)
    for weight in bench.make_inputs(bench.Case("", shapes, "training"), "cpu").fresh:
        excess = torch.linalg.svdvals(weight) - 1
        assert 1e-3 < excess.max() < 1e-2
        assert (excess > 0).sum() > 1


def test_the_speedup_is_over_the_best_svd_and_the_share_that_of_an_iteration(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    results.write("step", {"seconds_an_iteration": 2.0}, "cpu")
    record = bench.measure(Run("cpu", smoke=True), SMOKE[0]._replace(name=FIVE))
    rows = {row["contender"]: row for row in record["timings"]}
    assert list(rows) == ["auto", "gemm", GRAM, "svd", "auto again"]
    for row in rows.values():
        assert row["speedup"] == pytest.approx(rows["svd"]["seconds"] / row["seconds"], rel=1e-3)
        assert row["share_of_iteration"] == pytest.approx(row["seconds"] / 5 / 2, rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_contender_whose_process_fails_is_not_captured_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(bench, "contenders_for", lambda device, case: {"auto": None})
    run = Run("cpu", smoke=True)
    run.device = "cuda"
    ((launches, refusal),) = bench.probes_for(run).values()
    assert launches == {}
    assert "CUDA" in refusal or "NVIDIA" in refusal


def test_goals_tell_what_is_met_what_is_missed_and_what_is_not_measured():
    for device in ("cpu", "cuda"):
        assert {goal.verdict for goal in bench.goals_for([], device)} == {results.NOT_MEASURED}
    auto = {"seconds": 2.9e-4, "speedup": 799.0, "launches": None, "share_of_iteration": 0.02, "error": 2e-7}
    rows = [{"contender": "auto", "part": CALL, **auto}, {"contender": GRAM, "part": CALL, "seconds": 0.02}]
    rows.append({"contender": "auto", "part": bench.REPLAY, "seconds": 1.0})
    records = [{"case": "all five, gaussian", "timings": rows}, {"case": "all five, training", "timings": []}]
    verdicts = [goal.verdict for goal in bench.goals_for(records, "cuda")]
    assert verdicts == ["met", "SHORT", "met", results.NOT_MEASURED, "met"]
    rows.append({"contender": "svd", "part": CALL, "error": 1e-7})
    assert [goal.verdict for goal in bench.goals_for(records, "cpu")] == ["met", "SHORT"]
