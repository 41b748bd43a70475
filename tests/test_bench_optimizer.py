"""The benchmark of the optimisers times what computes the same; the figures are their own business."""

import json
import sys

import pytest
import torch
from torch import nn

from benchmarks import bench_optimizer as bench
from benchmarks import results, suite
from benchmarks.bench_optimizer import Case
from benchmarks.suite import Label, Run, Suite
from tgan_fast.training.optimizers import RMSprop

WIDTH = 1 / 16
CASES = [Case(optimizer, dtype) for optimizer in bench.KINDS for dtype in (torch.float32, torch.bfloat16)]
RMSPROP = CASES[0]


class Faster(RMSprop):
    """With another rate."""

    def __init__(self, flat, lr):
        super().__init__(flat, lr=1.001 * lr)


class FasterForeach(torch.optim.RMSprop):
    """With another rate, in one of the variants alone."""

    def __init__(self, weights, lr, foreach=None, **options):
        super().__init__(weights, lr=1.001 * lr if foreach else lr, foreach=foreach, **options)


class NoForeach(torch.optim.RMSprop):
    """Cannot run in one of the variants."""

    def __init__(self, weights, lr, foreach=None, **options):
        if foreach:
            raise RuntimeError("foreach is not for this device\nmore")
        super().__init__(weights, lr=lr, foreach=foreach, **options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where results go, of a machine that copies a byte a second."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    return tmp_path


def problem_of(case):
    return bench.make_problem(case, "cpu", WIDTH)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_runs_is_what_was_announced(case, folder):
    run, path = Run("cpu", smoke=True), folder / "results.json"
    rows = Suite(run, path).record(bench.SECTION, case)["timings"]
    labels = [Label(row["contender"], row["part"]) for row in rows]
    assert labels == bench.SECTION.labels(run, case)
    (record,) = json.loads(path.read_text())["sections"]["optimizer"]["cases"]
    assert record["case"] == str(case)
    assert record["dtype"] in str(case)
    assert record["parameters"] == sum(weight.numel() for weight in problem_of(case).weights)
    assert record["input_sets"] == 2
    assert record["left_out"] == {}
    assert record["rivals"] == [label.contender for label in labels if label.contender.startswith("torch")]
    for row in rows:
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
        assert row["floor_seconds"] == row["bytes"]
        assert row["error"] is None if row["contender"] == "tgan_fast again" else row["error"] < 1e-5


def test_the_cases_are_both_optimisers_in_the_types_that_the_device_trains_in():
    cases = {device: bench.SECTION.cases(Run(device)) for device in ("cpu", "cuda")}
    assert set(cases["cuda"]) == set(CASES)
    assert cases["cuda"][0] == Case("rmsprop", torch.bfloat16)
    assert set(cases["cpu"]) == {Case("rmsprop", torch.float32), Case("adam", torch.float32)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_are_those_of_gradients_weights_averages_and_of_the_weights_in_half_precision(case):
    """Of PyTorch's tensors: all are read once; weights and averages are written, too, and weights in half precision."""
    problem = problem_of(case)
    weights = [nn.Parameter(weight.clone()) for weight in problem.weights]
    optimizer = bench.KINDS[case.optimizer][1](weights)
    for weight, gradient in zip(weights, problem.gradients, strict=True):
        weight.grad = gradient.float()
    optimizer.step()
    averages = [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    halves = [gradient for gradient in problem.gradients if gradient.dtype != torch.float32]
    assert bool(halves) == (case.dtype != torch.float32)
    updated = 2 * sum(tensor.nbytes for tensor in (*weights, *averages)) + sum(half.nbytes for half in halves)
    nbytes = {name: bench.make_solver(name, case, problem).nbytes for name in bench.contenders_for(case)}
    as_they_are = updated + sum(gradient.nbytes for gradient in problem.gradients)
    in_float32 = updated + sum(weight.nbytes for weight in weights)
    assert nbytes.pop("tgan_fast, gathered") == in_float32
    assert set(nbytes.values()) == {as_they_are}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_contender_goes_the_way_of_float64(case):
    errors, left_out = bench.check(case, problem_of(case))
    assert list(errors) == bench.contenders_for(case)
    assert all(0 < error < 1e-5 for error in errors.values())
    assert left_out == {}


def test_the_package_is_not_timed_with_another_rate(monkeypatch):
    monkeypatch.setitem(bench.KINDS, "rmsprop", (Faster, torch.optim.RMSprop))
    with pytest.raises(SystemExit, match=r"rmsprop, float32: tgan_fast is off by 1\.0e-03 .*: nothing is timed"):
        Suite(Run("cpu", smoke=True)).record(bench.SECTION, RMSPROP)


def test_weights_that_are_not_rounded_anew_are_not_timed(monkeypatch):
    case = Case("rmsprop", torch.bfloat16)
    make_solver = bench.make_solver

    def with_old_copies(name, case, problem):
        solver = make_solver(name, case, problem)
        return solver._replace(computing=[weight.clone() for weight in solver.computing])

    monkeypatch.setattr(bench, "make_solver", with_old_copies)
    with pytest.raises(SystemExit, match="tgan_fast is off by inf"):
        bench.check(case, problem_of(case))


@pytest.mark.parametrize(
    ("rival", "reason"), [(FasterForeach, "is off by 1.0e-03"), (NoForeach, "foreach is not for this device")]
)
def test_a_rival_that_computes_something_else_or_cannot_run_is_left_out(rival, reason, monkeypatch):
    monkeypatch.setitem(bench.KINDS, "rmsprop", (RMSprop, rival))
    record = Suite(Run("cpu", smoke=True)).record(bench.SECTION, RMSPROP)
    assert list(record["left_out"]) == ["torch foreach"]
    assert record["left_out"]["torch foreach"].startswith(reason)
    assert "\n" not in record["left_out"]["torch foreach"]
    names = [row["contender"] for row in record["timings"]]
    assert names == ["tgan_fast", "tgan_fast, gathered", "torch for-loop", "tgan_fast again"]


def test_rivals_can_be_left_out_of_the_timing():
    record = Suite(Run("cpu", smoke=True, own_only=True)).record(bench.SECTION, RMSPROP)
    names = [row["contender"] for row in record["timings"]]
    assert names == ["tgan_fast", "tgan_fast, gathered", "tgan_fast again"]


def test_a_smoke_run_writes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_optimizer", "--device", "cpu", "--smoke"])
    suite.main(bench.SECTION)
    assert not list(folder.iterdir())
    assert "torch fused" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_gpu_all_are_replayed(case):
    run = Run("cuda", smoke=True)
    rows = Suite(run).record(bench.SECTION, case)["timings"]
    assert [Label(row["contender"], row["part"]) for row in rows] == bench.SECTION.labels(run, case)
    assert all(row["method"] == "replays of a CUDA graph" for row in rows if row["contender"].startswith("tgan_fast"))
