"""One step of the optimisers of the paper's two networks, against PyTorch's own.

    python -m benchmarks.bench_optimizer --device cuda

A contender takes gradients as autograd leaves them, a tensor for each parameter, and ends with all weights updated. In
bfloat16 convolutions and linear layers have their gradients in bfloat16, and want their weights in bfloat16, too. First
each does some steps that are compared with PyTorch's in float64. GB/s count the bytes that one pass needs, whatever a
contender really moves: gradients are read once; weights and averages are read and written once.

"gathered" is the step of tgan_fast alone, with the gradients in one float32 tensor already.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from benchmarks import harness, results, suite
from benchmarks.ceilings import Work
from benchmarks.suite import Label, Run, Section
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.nn import BATCH_NORMS
from tgan_fast.training.flat_parameters import FlatParameters
from tgan_fast.training.optimizers import Adam, RMSprop

RATE = 1e-3
CHECKED_STEPS = 3
KINDS = {"rmsprop": (RMSprop, torch.optim.RMSprop), "adam": (Adam, torch.optim.Adam)}
AVERAGES = {"rmsprop": 1, "adam": 2}
# PyTorch has no fused RMSprop.
VARIANTS = {"rmsprop": ("for-loop", "foreach"), "adam": ("for-loop", "foreach", "fused")}
OURS, PLAIN = "tgan_fast", "torch for-loop"
# Of the way that the weights have gone; both sides of a comparison are rounded to float32 at best.
ROUNDING = 2 * torch.finfo(torch.float32).eps


class Case(NamedTuple):
    """What is measured."""

    optimizer: str
    dtype: torch.dtype  # of activations, and so of the gradients of all but the batch norms' parameters

    def __str__(self):
        return f"{self.optimizer}, {str(self.dtype).removeprefix('torch.')}"


class Problem(NamedTuple):
    """Weights before the first step; gradients and what computes have the dtypes of the case."""

    weights: list[torch.Tensor]
    gradients: list[torch.Tensor]


class Solver(NamedTuple):
    """A contender with weights and gradients of its own."""

    step: Callable[[], None]
    weights: list[torch.Tensor]  # float32
    computing: list[torch.Tensor]  # the weights in the dtypes of the case
    nbytes: int  # that a step needs to move


def cases_for(run: Run) -> list[Case]:
    """What is measured, the most important first."""
    dtypes = (torch.bfloat16, torch.float32) if run.device == "cuda" or run.smoke else (torch.float32,)
    return [Case(optimizer, dtype) for optimizer in KINDS for dtype in dtypes]


def contenders_for(case) -> list[str]:
    """Their names."""
    return [OURS, f"{OURS}, gathered", *(f"torch {variant}" for variant in VARIANTS[case.optimizer])]


def make_problem(case, device, width) -> Problem:
    """Fresh networks and random gradients, laid out as in training."""
    weights, gradients = [], []
    for network in (VideoGenerator(width), VideoDiscriminator(width)):
        for module in to_channels_last_(network.to(device)).modules():
            dtype = torch.float32 if isinstance(module, BATCH_NORMS) else case.dtype
            for weight in module.parameters(recurse=False):
                weights.append(weight.detach())
                gradients.append(torch.randn_like(weights[-1]).to(dtype))
    return Problem(weights, gradients)


def make_solver(name, case, problem) -> Solver:
    """A contender that begins with the weights of the problem, and always gets its gradients."""
    masters = [nn.Parameter(weight.clone()) for weight in problem.weights]
    gradients = [gradient.clone() for gradient in problem.gradients]
    if name.startswith(OURS):
        return _ours(case, masters, gradients, gathered=name != OURS)
    return _torchs(case, masters, gradients, name.removeprefix("torch "))


def _ours(case, masters, gradients, gathered):
    half = case.dtype != torch.float32
    flat = FlatParameters(masters, case.dtype if half else None)
    optimizer = KINDS[case.optimizer][0](flat, lr=RATE)
    computing = masters
    if half:
        computing = [
            master if gradient.dtype == torch.float32 else nn.Parameter(copy)
            for master, copy, gradient in zip(masters, flat.views(flat.copy), gradients, strict=True)
        ]
    gathers = not gathered and (half or flat.data.is_cuda)

    def receive():
        for source, gradient in zip(computing, gradients, strict=True):
            source.grad = gradient

    def step():
        if not gathered:
            receive()
        if gathers:
            flat.gather(computing)
        optimizer.step()

    if gathered:
        receive()
        flat.gather(computing)
        gradients = [master.grad for master in masters]
    return Solver(step, masters, computing, _needed(case, masters, gradients, computing))


def _torchs(case, masters, gradients, variant):
    options = {} if variant == "for-loop" else {variant: True}
    capturable = masters[0].is_cuda
    optimizer = KINDS[case.optimizer][1](masters, lr=RATE, **({"foreach": False} | options), capturable=capturable)
    computing = [master.detach().to(g.dtype) for master, g in zip(masters, gradients, strict=True)]
    halves = [index for index, gradient in enumerate(gradients) if gradient.dtype != torch.float32]
    for master, gradient in zip(masters, gradients, strict=True):
        master.grad = torch.empty_like(master) if gradient.dtype != torch.float32 else gradient

    def of(tensors):
        return [tensors[index] for index in halves]

    def step():
        if halves:
            torch._foreach_copy_([master.grad for master in of(masters)], of(gradients))
        optimizer.step()
        if halves:
            with torch.no_grad():
                torch._foreach_copy_(of(computing), of(masters))

    return Solver(step, masters, computing, _needed(case, masters, gradients, computing))


def _needed(case, masters, gradients, computing):
    """Bytes of every gradient once, weights and averages twice, and the weights in half precision once."""
    count = sum(master.numel() for master in masters)
    halves = sum(tensor.nbytes for tensor in computing if tensor.dtype != torch.float32)
    return sum(gradient.nbytes for gradient in gradients) + 8 * count * (1 + AVERAGES[case.optimizer]) + halves


def check(case, problem) -> tuple[dict[str, float], dict[str, str]]:
    """Errors of the ways that the contenders' weights go, relative to them in float64; rivals to leave out, and why.

    Raises:
        SystemExit: the package's own go another way.
    """
    exact = [nn.Parameter(weight.double()) for weight in problem.weights]
    optimizer = KINDS[case.optimizer][1](exact, lr=RATE)
    for parameter, gradient in zip(exact, problem.gradients, strict=True):
        parameter.grad = gradient.double()
    for _ in range(CHECKED_STEPS):
        optimizer.step()
    errors, left_out = {}, {}
    for name in contenders_for(case):
        try:
            errors[name] = results.rounded(_error(_stepped(name, case, problem), exact, problem.weights))
        except RuntimeError as error:
            if name.startswith(OURS) or name == PLAIN:
                raise
            left_out[name] = harness.first_line(error)
    best = min(error for name, error in errors.items() if not name.startswith(OURS))
    for name, error in errors.items():
        if math.isfinite(error) and error <= 2 * best + ROUNDING:
            continue
        reason = f"is off by {error:.1e} from float64, more than twice the {best:.1e} of PyTorch"
        if name.startswith(OURS):
            raise SystemExit(f"error: {case}: {name} {reason}: nothing is timed")
        left_out[name] = reason
    return errors, left_out


def _stepped(name, case, problem):
    solver = make_solver(name, case, problem)
    for _ in range(CHECKED_STEPS):
        solver.step()
    return solver


def _error(solver, exact, start):
    off = way = 0.0
    for weight, computing, wanted, begin in zip(solver.weights, solver.computing, exact, start, strict=True):
        if not torch.equal(computing, weight.to(computing.dtype)):
            return float("inf")
        off += (weight.double() - wanted).square().sum().item()
        way += (wanted - begin.double()).square().sum().item()
    return (off / way) ** 0.5


def measure(run: Run, case: Case) -> dict:
    """Check and time one case."""
    torch.manual_seed(0)
    width = 1 / 16 if run.smoke else 1.0
    first = make_problem(case, run.device, width)
    errors, left_out = check(case, first)
    names = [name for name in contenders_for(case) if name not in left_out]
    count = run.input_set_count(sum(weight.nbytes for weight in first.weights))
    problems = [first, *(make_problem(case, run.device, width) for _ in range(count - 1))]
    input_sets = [{name: make_solver(name, case, problem) for name in names} for problem in problems]
    calls = {name: lambda solvers, name=name: solvers[name].step() for name in names}
    with harness.side_stream(run.device):
        timings = run.measure(calls, input_sets, rivals=names[2:])
    needed = {name: Work(0, solver.nbytes) for name, solver in input_sets[0].items()}
    needed[harness.again(OURS)] = needed[OURS]
    return {
        "dtype": str(case.dtype).removeprefix("torch."),
        "parameters": sum(weight.numel() for weight in first.weights),
        "input_sets": count,
        "timings": [
            run.row(Label(name), timing, needed[name], error=errors.get(name)) for name, timing in timings.items()
        ],
        "left_out": left_out,
    }


SECTION = Section(
    name="optimizer",
    title="a step of the optimisers; error: of the way that the weights go, against float64",
    cases=cases_for,
    measure=measure,
)

if __name__ == "__main__":
    suite.main(SECTION)
