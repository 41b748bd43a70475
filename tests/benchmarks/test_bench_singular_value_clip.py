"""The benchmark of singular value clipping refuses wrong results, and computes goals and shares correctly."""

import sys

import pytest
import torch

from benchmarks import bench_singular_value_clip as bench
from benchmarks import result_files
from benchmarks.bench_singular_value_clip import CALL, FAST, GRAM, HARDCAP, SIZES, SMOKE, SMOKE_SIZES
from benchmarks.spectra import SPECTRA, weight_of
from benchmarks.suite import Run
from tgan_fast import reference

CLIPS = bench.contenders_for("cpu")


def clip_lower(weights):
    bench.singular_value_clip_(weights, 0.9)


@pytest.mark.parametrize("case", SMOKE, ids=str)
def test_another_result_is_not_timed_and_rivals_are_left_out(case):
    inputs = bench.make_inputs(case, "cpu")
    found, left_out = bench.check(case, CLIPS | {"svd": clip_lower}, inputs)
    assert found.keys() == CLIPS.keys() - {"svd"}
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
    goals = bench.goals_for(records, "cuda")[:5]
    assert [goal.verdict for goal in goals] == ["met", "SHORT", "met", result_files.NOT_MEASURED, "met"]
    assert [goal.measured for goal in goals] == [0.29, 799, 69, None, 0.02]
    assert [goal.verdict for goal in bench.goals_for(records, "cpu")[:4]] == ["met", "SHORT", "met", "SHORT"]


def weights_of(size):
    torch.manual_seed(0)
    return {spectrum: weight_of(spectrum, size.shape) for spectrum in size.spectra}


def test_spectra_are_those_of_their_names():
    found = {name: torch.linalg.svdvals(weight.double()) for name, weight in weights_of(bench.Size((60, 90))).items()}
    assert found["gaussian"][0] == pytest.approx(1.4, abs=0.15)
    assert (found["cluster"] - 1).abs().max() < 1.1e-5
    assert found["cluster"][0] > 1 > found["cluster"][-1]
    torch.testing.assert_close(found["all equal"], torch.full((60,), 1.5).double(), atol=1e-6, rtol=0)
    assert found["rank-deficient"][[0, 29]].tolist() == pytest.approx([2, 0.1], abs=1e-6)
    assert found["rank one"][0] == pytest.approx(2, abs=1e-6)
    assert max(found["rank-deficient"][30], found["rank one"][1]) < 1e-6
    assert 1e-3 < found["training"][0] - 1 < 1e-2
    assert 1 < (found["training"] > 1).sum() < 40
    assert found["top 30"][0] == pytest.approx(30, abs=1e-4)
    assert 1.1 < found["top 30"][1] <= 1.2
    torch.testing.assert_close(found["log-spaced"], torch.logspace(1, -3, 60).double(), atol=1e-6, rtol=0)
    assert found.keys() == SPECTRA.keys()


@pytest.mark.parametrize("size", SMOKE_SIZES, ids=str)
def test_errors_of_transformers_weights_are_relative_to_the_definition(size):
    def clip_by_definition(weights):
        for matrix in weights[0].view(-1, *size.shape[-2:]):
            matrix.copy_(reference.clip_singular_values(matrix.double()))

    def double(weights):
        weights[0].mul_(2)

    contenders = bench.contenders_for_size(size, "cpu")
    fresh = weights_of(size)
    errors, left_out = bench.check_size(size, contenders | {GRAM: clip_by_definition, "svd": double}, fresh)
    assert (errors.keys(), left_out) == (contenders.keys(), {})
    assert all(tuple(of.keys()) == size.spectra for of in errors.values())
    assert max(errors[GRAM].values()) < 4e-8  # rounding to float32
    for spectrum, weight in fresh.items():
        truth = weight.double().clone()
        clip_by_definition([truth])
        far = (2 * weight.double() - truth).norm() / truth.norm()
        assert errors["svd"][spectrum] == pytest.approx(far.item(), rel=1e-3)


@pytest.mark.parametrize(("name", "factor"), [("auto", 1 + 4e-7), (FAST, 1 + 1e-6), (FAST, 1 + 1e-5)])
def test_own_contenders_have_limits_on_transformers_weights(name, factor):
    def inexact(weights):
        bench.singular_value_clip_(weights)
        if weights[0].max() > 1e-1:
            weights[0].mul_(factor)

    size = SMOKE_SIZES[0]
    rivals = {HARDCAP: bench.singular_value_clip_ if factor < 1 + 5e-6 else inexact}
    contenders = {"auto": bench.singular_value_clip_, FAST: bench.singular_value_clip_, **rivals}
    bench.check_size(size, contenders, weights_of(size))
    with pytest.raises(SystemExit, match=rf"{name} is off by .*: nothing is timed"):
        bench.check_size(size, contenders | {name: inexact}, weights_of(size))


def test_a_missing_rival_is_left_out_of_every_case_with_a_remark(monkeypatch):
    monkeypatch.setitem(sys.modules, "emerging_optimizers.orthogonalized_optimizers.spectral_clipping_utils", None)
    for case in (SMOKE[0], *SMOKE_SIZES):
        record = bench.measure(Run("cpu", smoke=True), case)
        assert "pip install '.[benchmarks]' with Python 3.12 or newer" in record["left_out"].pop(HARDCAP)
        assert record["left_out"] == {}
        contenders = {row["contender"] for row in record["timings"]}
        assert contenders >= {"auto", GRAM, "svd"}
        assert HARDCAP not in contenders


def test_the_rival_takes_part_where_it_is_installed():
    pytest.importorskip("emerging_optimizers.orthogonalized_optimizers.spectral_clipping_utils")
    record = bench.measure(Run("cpu", smoke=True), SMOKE_SIZES[1])
    (errors,) = (row["errors"] for row in record["timings"] if row["contender"] == HARDCAP)
    assert errors["gaussian"] < 1e-4 < errors["log-spaced"]


def test_only_the_package_is_timed_on_a_clipped_weight():
    record = bench.measure(Run("cpu", smoke=True, own_only=True), SMOKE_SIZES[0])
    assert {row["contender"] for row in record["timings"]} == {"auto", FAST, "auto again"}
    assert {row["part"] for row in record["timings"]} == {"gaussian", "training"}
    assert {row["contender"] for row in record["timings"] if row["errors"]} == {"auto", FAST}
    record = bench.measure(Run("cpu", smoke=True), SMOKE_SIZES[0])
    assert {row["contender"] for row in record["timings"] if row["part"] == "training"} == {"auto", FAST, "auto again"}
    lines = list(bench.details_of(record))
    assert len(lines) == 1 + len(bench.contenders_for_size(SMOKE_SIZES[0], "cpu"))
    assert all(line.count("e-0") == len(SPECTRA) for line in lines[1:3])


def test_goals_of_a_transformers_weight():
    found = {"auto": (2.0, 9e-8), FAST: (1.0, 6e-6), "svd": (3.0, 1e-6)}
    timings = [
        {"contender": name, "part": part, "seconds": seconds, "errors": {"gaussian": 1e-9, "cluster": error}}
        for part, slower in (("gaussian", 1), ("training", 9))
        for name, (seconds, error) in ((name, (slower * each[0], each[1])) for name, each in found.items())
    ]
    goals = list(bench.goals_for_sizes([{"case": str(SIZES[0]), "timings": timings}]))
    assert [goal.measured for goal in goals[:4]] == [3.0, None, 9e-8, 6e-6]
    assert [goal.verdict for goal in goals[:4]] == ["met", result_files.NOT_MEASURED, "met", "SHORT"]
    assert {goal.verdict for goal in goals[4:]} == {result_files.NOT_MEASURED}
    assert len(goals) == 4 * len(SIZES)
