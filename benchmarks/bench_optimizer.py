"""A step of the optimizers of the paper's two networks, against PyTorch's own.

    python -m benchmarks.bench_optimizer --device cuda

A contender receives gradients as autograd leaves them, one tensor for each parameter, and ends with all weights
updated. In bfloat16, convolutions and linear layers have bfloat16 gradients and need a bfloat16 copy of their weights.
First each contender takes some steps that are compared with PyTorch's in float64. GB/s count the bytes that one pass
needs, whatever a contender really moves: gradients are read once; weights and averages are read and written once.

"tgan_fast, gathered" is the step alone, with the gradients in one float32 tensor already.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from benchmarks import accuracy, harness, suite
from benchmarks.ceilings import Work
from benchmarks.results import rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.nn import BATCH_NORMS
from tgan_fast.training.network import TrainedNetwork
from tgan_fast.training.optimizers import Adam, RMSprop
from tgan_fast.training.processes import Processes

RATE = 1e-3
CHECKED_STEPS = 3
KINDS = {"rmsprop": (RMSprop, torch.optim.RMSprop), "adam": (Adam, torch.optim.Adam)}
AVERAGES = {"rmsprop": 1, "adam": 2}
# PyTorch has no fused RMSprop.
VARIANTS = {"rmsprop": ("for-loop", "foreach"), "adam": ("for-loop", "foreach", "fused")}
OURS, GATHERED = OWN = "tgan_fast", "tgan_fast, gathered"
# Relative to the distance that the weights move; both sides of a comparison are rounded to float32 at best.
ROUNDING = 2 * torch.finfo(torch.float32).eps


class Case(NamedTuple):
    """An optimizer, and the dtype of activations: that of all gradients but those of batch norms."""

    optimizer: str
    dtype: torch.dtype

    def __str__(self):
        return f"{self.optimizer}, {str(self.dtype).removeprefix('torch.')}"


class Solver(NamedTuple):
    """A contender: what takes a step, its float32 weights, and these in the dtypes of the gradients."""

    step: Callable[[], None]
    weights: list[torch.Tensor]
    computing: list[torch.Tensor]


def cases_for(run: Run) -> list[Case]:
    """Return the cases, the most important first."""
    dtypes = (torch.bfloat16, torch.float32) if run.device == "cuda" or run.smoke else (torch.float32,)
    return [Case(optimizer, dtype) for optimizer in KINDS for dtype in dtypes]


def make_problem(run: Run, case: Case) -> tuple[nn.Module, list[torch.Tensor]]:
    """Return fresh networks and a random gradient for each of their parameters, laid out as in training."""
    width = 1 / 16 if run.smoke else 1.0
    networks = to_channels_last_(nn.ModuleList([VideoGenerator(width), VideoDiscriminator(width)]).to(run.device))
    norms = [module for module in networks.modules() if isinstance(module, BATCH_NORMS)]
    wide = {parameter for norm in norms for parameter in norm.parameters()}
    gradients = [torch.randn_like(p).to(torch.float32 if p in wide else case.dtype) for p in networks.parameters()]
    return networks, gradients


def makers_for(case: Case) -> dict[str, Callable]:
    """Return by name what makes each contender from a problem, of which it takes a copy."""
    ours = {name: partial(_ours, case, name == GATHERED) for name in OWN}
    return ours | {f"torch {variant}": partial(_torchs, case, variant) for variant in VARIANTS[case.optimizer]}


def _ours(case, gathered, problem):
    networks, gradients = copy.deepcopy(problem)
    network = TrainedNetwork(
        networks,
        precision="fp32" if case.dtype == torch.float32 else "bf16",
        optimizer=partial(KINDS[case.optimizer][0], lr=RATE),
        processes=Processes(),
    )
    weights, computing = (list(module.parameters()) for module in (network.module, network.computing))

    def step():
        _assign(computing, gradients)
        network.update()

    if gathered:
        _assign(computing, gradients)
        network.flat.gather(computing)
    return Solver(network.optimizer.step if gathered else step, weights, computing)


def _torchs(case, variant, problem):
    networks, gradients = copy.deepcopy(problem)
    weights = list(networks.parameters())
    options = {"foreach": False} if variant == "for-loop" else {variant: True}
    optimizer = KINDS[case.optimizer][1](weights, lr=RATE, capturable=weights[0].is_cuda, **options)
    _assign(weights, [gradient.float() for gradient in gradients])
    computing = [weight.detach().to(gradient.dtype) for weight, gradient in zip(weights, gradients, strict=True)]
    narrow = [index for index, gradient in enumerate(gradients) if gradient.dtype != torch.float32]
    narrow_gradients, copies = ([tensors[index] for index in narrow] for tensors in (gradients, computing))

    @torch.no_grad()
    def step():
        if narrow:
            torch._foreach_copy_([weights[index].grad for index in narrow], narrow_gradients)
        optimizer.step()
        if narrow:
            torch._foreach_copy_(copies, [weights[index] for index in narrow])

    return Solver(step, weights, computing)


def _assign(parameters, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def check(case: Case, problem: tuple) -> tuple[dict[str, float], dict[str, str]]:
    """Return the errors of the contenders' weights relative to the distance they move, and why rivals are left out."""
    begin = [parameter.detach().double() for parameter in problem[0].parameters()]
    exact = [nn.Parameter(weight.clone()) for weight in begin]
    _assign(exact, [gradient.double() for gradient in problem[1]])

    def stepped(make):
        solver = make(problem)
        for _ in range(CHECKED_STEPS):
            solver.step()
        return solver

    def distance(weights, others):
        return sum((a.double() - b).square().sum().item() for a, b in zip(weights, others, strict=True)) ** 0.5

    def error_of(solver):
        pairs = zip(solver.computing, solver.weights, strict=True)
        rounded_anew = all(torch.equal(computing, weight.to(computing.dtype)) for computing, weight in pairs)
        return rounded(distance(solver.weights, exact) / distance(begin, exact)) if rounded_anew else float("inf")

    def allowed(_, errors):
        return 2 * min(error for name, error in errors.items() if name not in OWN) + ROUNDING

    stepped(lambda _: Solver(KINDS[case.optimizer][1](exact, lr=RATE).step, exact, exact))
    calls = {name: partial(stepped, make) for name, make in makers_for(case).items()}
    return accuracy.check(case, calls, error_of, allowed, calls.keys() - {*OWN})


def bytes_needed(name: str, case: Case, problem: tuple) -> int:
    """Return the bytes of every gradient once, weights and averages twice, and of bfloat16 weights once."""
    weights = sum(parameter.nbytes for parameter in problem[0].parameters())
    gradients = weights if name == GATHERED else sum(gradient.nbytes for gradient in problem[1])
    narrow = sum(gradient.nbytes for gradient in problem[1] if gradient.dtype != torch.float32)
    return gradients + 2 * weights * (1 + AVERAGES[case.optimizer]) + narrow


def measure(run: Run, case: Case) -> dict:
    """Check and time one case."""
    torch.manual_seed(0)
    first = make_problem(run, case)
    errors, left_out = check(case, first)
    parameters = sum(parameter.numel() for parameter in first[0].parameters())
    problems = [first, *(make_problem(run, case) for _ in range(run.input_set_count(4 * parameters) - 1))]
    makers = {name: make for name, make in makers_for(case).items() if name in errors}
    input_sets = [{name: make(problem) for name, make in makers.items()} for problem in problems]
    steps = {name: lambda solvers, name=name: solvers[name].step() for name in makers}
    with harness.side_stream(run.device):
        timings = run.measure(steps, input_sets, rivals=makers.keys() - {*OWN})
    return {
        "dtype": str(case.dtype).removeprefix("torch."),
        "parameters": parameters,
        "input_sets": len(input_sets),
        "timings": [
            run.row(Label(name), timing, Work(0, bytes_needed(name, case, first)), error=errors.get(name))
            for name, timing in timings.items()
        ],
        "left_out": left_out,
    }


def calls_for(run: Run, case: Case) -> dict[str, Callable]:
    """Return for each contender what makes its step."""
    return {name: lambda make=make: make(make_problem(run, case)).step for name, make in makers_for(case).items()}


SECTION = Section(
    name="optimizer",
    title="a step of the optimizers; error: of the distance that the weights move, against float64",
    cases=cases_for,
    measure=measure,
    calls=calls_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
