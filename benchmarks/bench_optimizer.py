"""One step of RMSprop and of Adam on the paper's two networks, against PyTorch's optimizers.

    python -m benchmarks.bench_optimizer --device cuda

A contender receives gradients as autograd leaves them, one tensor for each parameter, and ends with all weights
updated. In bfloat16, convolutions and linear layers have bfloat16 gradients and need a bfloat16 copy of their weights.
GB/s count the bytes that one pass needs, not those that a contender moves: gradients are read once; weights and
averages are read and written once.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from benchmarks import accuracy, harness, suite
from benchmarks.ceilings import Work
from benchmarks.result_files import Goal, rounded
from benchmarks.suite import Run, Section
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.nn import BATCH_NORMS
from tgan_fast.processes import Processes
from tgan_fast.training.network import TrainedNetwork
from tgan_fast.training.optimizers import Adam, RMSprop

RATE = 1e-3
CHECKED_STEPS = 3
OURS = "tgan_fast"
# The package's class, PyTorch's class, its variants (there is no fused RMSprop), and the number of averages per weight.
KINDS = {
    "rmsprop": (RMSprop, torch.optim.RMSprop, ("for-loop", "foreach"), 1),
    "adam": (Adam, torch.optim.Adam, ("for-loop", "foreach", "fused"), 2),
}


class Case(NamedTuple):
    """Optimizer, and the dtype of activations and of all gradients except batch norm's."""

    optimizer: str
    dtype: torch.dtype

    def __str__(self):
        return f"{self.optimizer}, {str(self.dtype).removeprefix('torch.')}"


class Solver(NamedTuple):
    """Contender: the function that takes a step, its float32 weights, and copies in the dtypes of the gradients."""

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
    wide = {p for module in networks.modules() if isinstance(module, BATCH_NORMS) for p in module.parameters()}
    gradients = [torch.randn_like(p).to(torch.float32 if p in wide else case.dtype) for p in networks.parameters()]
    return networks, gradients


def makers_for(case: Case) -> dict[str, Callable]:
    """Return functions by name that make each contender from a copy of a problem."""
    rivals = {f"torch {variant}": partial(_make_torchs, case, variant) for variant in KINDS[case.optimizer][2]}
    return {OURS: partial(_make_own, case), **rivals}


def _make_own(case: Case, problem: tuple) -> Solver:
    networks, gradients = copy.deepcopy(problem)
    precision = "fp32" if case.dtype == torch.float32 else "bf16"
    optimizer = partial(KINDS[case.optimizer][0], lr=RATE)
    network = TrainedNetwork(networks, precision=precision, optimizer=optimizer, processes=Processes())
    weights, computing = (list(module.parameters()) for module in (network.module, network.computing))

    def step():
        _assign(computing, gradients)
        network.update()

    return Solver(step, weights, computing)


def _make_torchs(case: Case, variant: str, problem: tuple) -> Solver:
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


def _assign(parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
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
        return 2 * min(error for name, error in errors.items() if name != OURS) + accuracy.FLOAT32_ROUNDING

    stepped(lambda _: Solver(KINDS[case.optimizer][1](exact, lr=RATE).step, exact, exact))
    calls = {name: partial(stepped, make) for name, make in makers_for(case).items()}
    return accuracy.check_contenders(case, calls, error_of, allowed, calls.keys() - {OURS})


def bytes_needed(case: Case, problem: tuple) -> int:
    """Return the bytes of gradients and of bfloat16 weights once, and of weights and averages twice."""
    weights = sum(parameter.nbytes for parameter in problem[0].parameters())
    gradients = [gradient.nbytes * (1 if gradient.dtype == torch.float32 else 2) for gradient in problem[1]]
    return sum(gradients) + 2 * weights * (1 + KINDS[case.optimizer][3])


def measure(run: Run, case: Case) -> dict:
    """Check and time one case."""
    torch.manual_seed(0)
    first = make_problem(run, case)
    errors, left_out = check(case, first)
    count = run.input_set_count(sum(parameter.nbytes for parameter in first[0].parameters()))
    problems = [first, *(make_problem(run, case) for _ in range(count - 1))]
    makers = {name: make for name, make in makers_for(case).items() if name in errors}
    input_sets = [{name: make(problem) for name, make in makers.items()} for problem in problems]
    steps = {name: lambda solvers, name=name: solvers[name].step() for name in makers}
    with harness.side_stream(run.device):
        timings = run.measure(steps, input_sets, rivals=makers.keys() - {OURS})
    work = Work(0, bytes_needed(case, first))
    rows = run.rows(timings, work=work, more=lambda name: {"error": errors.get(name)})
    return {"input_sets": count, "timings": rows, "left_out": left_out}


def calls_for(run: Run, case: Case) -> dict[str, Callable]:
    """Return a function for each contender that makes its step."""
    return {name: lambda make=make: make(make_problem(run, case)).step for name, make in makers_for(case).items()}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals of a CPU."""
    if device != "cpu":
        return []
    goals = []
    for optimizer in KINDS:
        rows = [row for record in records if record["case"].startswith(optimizer) for row in record["timings"]]
        ratios = [row["ratio"] for row in rows if OURS not in row["contender"]]
        text = f"times as fast as PyTorch's fastest, {optimizer}"
        goals.append(Goal(text, min(ratios, default=None), 2, at_most=False))
    return goals


SECTION = Section(
    name="optimizer",
    title="a step of the optimizers; error: of the distance that the weights move, against float64",
    cases=cases_for,
    measure=measure,
    calls=calls_for,
    goals=goals_for,
    both_ways=True,
)

if __name__ == "__main__":
    suite.main(SECTION)
