"""The benchmark of the optimizers times only contenders with equal results."""

import pytest
import torch
from torch import nn

from benchmarks import bench_optimizer as bench
from benchmarks.result_files import NOT_MEASURED
from benchmarks.suite import Run
from tgan_fast.training.optimizers import RMSprop

RUN = Run("cpu", smoke=True)
CASES = bench.cases_for(RUN)
HALF = CASES[0]


class Faster(RMSprop):
    """Takes another rate."""

    def __init__(self, flat, lr):
        super().__init__(flat, lr=1.001 * lr)


class FasterForeach(torch.optim.RMSprop):
    """Takes another rate in one of its variants."""

    def __init__(self, weights, lr, foreach=None, **options):
        super().__init__(weights, lr=1.001 * lr if foreach else lr, foreach=foreach, **options)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_contender_agrees_with_float64_and_needs_the_bytes_of_pytorchs_tensors(case):
    problem = networks, gradients = bench.make_problem(RUN, case)
    errors, left_out = bench.check(case, problem)
    assert left_out == {}
    assert all(0 < error < 1e-5 for error in errors.values())
    weights = [nn.Parameter(weight.detach().clone()) for weight in networks.parameters()]
    optimizer = bench.KINDS[case.optimizer][1](weights)
    bench._assign(weights, [gradient.float() for gradient in gradients])
    optimizer.step()
    averages = [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    halves = [gradient for gradient in gradients if gradient.dtype != torch.float32]
    assert bool(halves) == (case.dtype != torch.float32)
    once, twice = (
        sum(tensor.nbytes for tensor in tensors) for tensors in ((*gradients, *halves), (*weights, *averages))
    )
    assert bench.bytes_needed(case, problem) == once + 2 * twice


def test_another_rate_and_weights_that_are_not_rounded_anew_are_not_timed(monkeypatch):
    problem = bench.make_problem(RUN, HALF)
    monkeypatch.setattr("tgan_fast.training.network.TrainedNetwork.update", lambda self: self.flat.data.add_(1e-3))
    with pytest.raises(SystemExit, match="tgan_fast is off by inf"):
        bench.check(HALF, problem)
    monkeypatch.undo()
    monkeypatch.setitem(bench.KINDS, "rmsprop", (Faster, *bench.KINDS["rmsprop"][1:]))
    with pytest.raises(SystemExit, match=r"rmsprop, bfloat16: tgan_fast is off by 1\.0e-03, .*: nothing is timed"):
        bench.check(HALF, problem)


def test_goals_are_those_of_a_cpu():
    assert bench.goals_for([], "cuda") == []
    ratios = {"tgan_fast": 1.0, "torch foreach": 3.0, "torch foreach, memory kept": 1.9}
    record = {"case": str(CASES[-1]), "timings": [{"contender": name, "ratio": x} for name, x in ratios.items()]}
    assert [goal.verdict for goal in bench.goals_for([record], "cpu")] == [NOT_MEASURED, "SHORT"]


def test_a_rival_that_computes_something_else_is_left_out(monkeypatch):
    monkeypatch.setitem(bench.KINDS, "rmsprop", (RMSprop, FasterForeach, *bench.KINDS["rmsprop"][2:]))
    errors, left_out = bench.check(HALF, bench.make_problem(RUN, HALF))
    assert errors.keys() == {"tgan_fast", "torch for-loop"}
    assert left_out["torch foreach"].startswith("is off by 1.0e-03")
