"""The benchmark of singular value clipping measures what it says; the figures are their own business."""

import json

import pytest
import torch

from benchmarks import bench_singular_value_clip as bench
from benchmarks import harness

SMALL = bench.cases_for("cpu", smoke=True)
SVD, EIGH = (bench.contenders_for("cpu")[name] for name in ("svd", "eigh"))


def clip_lower(weights):
    bench.singular_value_clip_(weights, 0.9)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results go, of a machine that copies a byte a second."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "copy_bandwidth", lambda device: 1.0)
    return tmp_path


def test_what_runs_writes_what_was_measured(results, monkeypatch, capsys):
    cases = [case._replace(name=bench.FIVE) for case in SMALL]
    monkeypatch.setattr(bench, "cases_for", lambda device, smoke: cases)
    monkeypatch.setitem(bench.SECONDS, "cpu", 0)
    monkeypatch.setattr(harness, "input_set_count", lambda nbytes, device: 2)
    bench.main("cpu")
    (path,) = results.iterdir()
    section = json.loads(path.read_text())["sections"]["singular_value_clip"]
    assert [case["state"] for case in section["cases"]] == list(bench.STATES)
    for case in section["cases"]:
        assert case["floor_seconds"] == 2 * 4 * (6 * 20 + 9)
        rows = {row["contender"]: row for row in case["contenders"]}
        assert list(rows) == ["auto", "eigh", "gemm", "svd", "auto again"]
        assert rows["svd"]["speedup"] == 1
        for name, row in rows.items():
            assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
            assert row["replay_seconds"] is row["launches"] is row["share_of_iteration"] is None
            if name != "auto again":
                assert row["error"] < 1e-5
                assert row["excess"] < 1e-5
        assert [goal["bound"] for goal in case["goals"]] == [4, 1]
    printed = capsys.readouterr().out
    assert bench.NOT_MEASURED in printed
    assert "goal ≥ 4 times as fast as torch.linalg.svd" in printed


def test_a_smoke_run_writes_nothing(results):
    bench.main("cpu", smoke=True)
    assert not list(results.iterdir())


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_another_result_is_not_timed(case):
    with pytest.raises(SystemExit, match=r"gemm is off by .*: not timed"):
        bench.check(case, {"gemm": clip_lower, "svd": SVD}, "cpu")


def test_a_driver_that_does_something_else_is_no_rival():
    found, left_out = bench.check(SMALL[0], {"eigh": EIGH, "svd": SVD, "svd gesvda": clip_lower}, "cpu")
    assert found.keys() == {"eigh", "svd"}
    assert left_out["svd gesvda"].startswith("off by ")


def test_a_driver_or_a_kernel_that_cannot_run_is_left_out():
    def fail(weights):
        raise RuntimeError("does not converge\nmore")

    by_kernel = bench.contenders_for("cuda")["cuda"]
    _, left_out = bench.check(SMALL[0], {"eigh": EIGH, "svd": fail, "cuda": by_kernel}, "cpu")
    assert left_out["svd"] == "does not converge"
    assert left_out.keys() == {"svd", "cuda"}
    with pytest.raises(RuntimeError, match="does not converge"):
        bench.check(SMALL[0], {"eigh": fail}, "cpu")


def test_every_turn_begins_with_weights_that_are_to_be_clipped():
    inputs = [bench.make_inputs(SMALL[0], "cpu") for _ in range(2)]
    largest = []

    def note(weights):
        largest.extend(torch.linalg.matrix_norm(weight, 2).item() for weight in weights)
        EIGH(weights)

    bench.time_all({"eigh": note, "svd": SVD}, inputs, "cpu", {}, smoke=True)
    assert min(largest) > 1.05


@pytest.mark.parametrize("shape", [(64, 192), (128, 4096), (1, 8192)], ids=str)
def test_gaussian_weights_have_the_intended_norm(shape):
    weight = bench.random_weight(shape, "gaussian", "cpu")
    assert torch.linalg.matrix_norm(weight, 2) == pytest.approx(bench.LARGEST_SINGULAR_VALUE, abs=0.1)


@pytest.mark.parametrize("shape", [(64, 192), (128, 4096)], ids=str)
def test_weights_in_training_exceed_the_threshold_by_little(shape):
    excess = torch.linalg.svdvals(bench.random_weight(shape, "training", "cpu")) - 1
    assert 1e-3 < excess.max() < 1e-2
    assert (excess > 0).sum() > 1


def test_goals_tell_what_is_met_what_is_missed_and_what_is_not_measured():
    row = {"seconds": 2.9e-4, "speedup": 799.0, "launches": None, "share_of_iteration": 0.02}
    rows = [{"contender": "auto", **row}, {"contender": "eigh", "seconds": 0.02}]
    case = bench.Case(bench.FIVE, bench.DISCRIMINATOR, "gaussian")
    verdicts = [goal.verdict for goal in bench.goals_for(case, "cuda", rows)]
    assert verdicts == ["met", "SHORT", "met", bench.NOT_MEASURED, "met"]
    assert bench.goals_for(case._replace(name="alone"), "cuda", rows) == []


def test_the_share_is_that_of_every_fifth_iteration_of_this_device(results):
    assert bench.seconds_an_iteration("cpu") is None
    harness.write_results("step", {"seconds_an_iteration": 2.0}, "cpu")
    assert bench.seconds_an_iteration("cpu") == 2.0
    five, alone = (SMALL[0]._replace(name=name) for name in (bench.FIVE, "alone"))
    assert bench._share(five, 1.0, 2.0) == 0.1
    assert bench._share(alone, 1.0, 2.0) is bench._share(five, 1.0, None) is None
