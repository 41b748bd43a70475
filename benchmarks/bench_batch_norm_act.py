"""Batch norm + activation in training, forward and backward, against eager PyTorch, cuDNN and torch.compile.

    python -m benchmarks.bench_batch_norm_act --device cuda

GB/s count the bytes that two passes over the tensors need, not those that a contender moves: forward reads x twice and
writes y, backward reads x and dy twice and writes dx. On a CPU a call costs some 70 µs in Python before the kernel
starts, where eager PyTorch needs half as much: tensors of less than 100,000 values show little else.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch._functorch.config
import torch.nn.functional as F

from benchmarks import accuracy, harness, suite
from benchmarks.ceilings import Work
from benchmarks.result_files import Goal
from benchmarks.suite import Run, Section
from tgan_fast.ops import batch_norm_act
from tgan_fast.ops.batch_norm.geometry import to_layout

EPS, MOMENTUM = 1e-5, 0.1
PASSES = {"forward": 3, "backward": 5}  # values moved per value of x
OURS, EAGER = "tgan_fast", ("eager", "eager channels-last")
# Ten times the error of float32 sums with rounding; a contender with a larger error computes something else.
FAR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


class Case(NamedTuple):
    """Tensor to normalize."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = True
    negative_slope: float = 0.0
    groups: int = 1
    compiled: bool = False  # whether torch.compile takes part

    @property
    def nbytes(self):
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __str__(self):
        layout = "channels-last" if self.channels_last else "contiguous"
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{self.name} {list(self.shape)} {str(self.dtype).removeprefix('torch.')} {layout}{groups}"


def images(batch: int, *options) -> list[Case]:
    """Return the batch norms of the generator's image part, for videos of 16 frames, the largest first."""
    shapes = ((32, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8))
    return [Case("image", (16 * batch, *shape), *options) for shape in shapes]


def discriminator(batch: int) -> list[Case]:
    """Return the discriminator's batch norms, on real and fake videos in one tensor, the largest first."""
    shapes = ((128, 4, 16, 16), (256, 2, 8, 8), (512, 1, 4, 4))
    return [Case("discriminator", (2 * batch, *shape), negative_slope=0.2, groups=2) for shape in shapes]


def vectors(batch: int) -> list[Case]:
    """Return the generator's small batch norms, those of its two linear layers first, then its temporal part."""
    shapes = ((16 * batch, 4096), (batch, 4096), (batch, 512, 1), (batch, 256, 2), (batch, 128, 4), (batch, 128, 8))
    return [Case("vector", shape, channels_last=index > 2) for index, shape in enumerate(shapes)]


GPU_CASES = [
    *images(32),
    *discriminator(32),
    *vectors(32),
    *(Case("large", shape) for shape in ((64, 256, 56, 56), (32, 64, 112, 112), (8, 64, 16, 64, 64))),
    *images(64),
    *vectors(64),
    *images(32, torch.float32),
    *images(32, torch.bfloat16, False)[::2],
]
CPU_CASES = [*images(1), *discriminator(1), *vectors(2), Case("large", (2, 64, 56, 56))]


def cases_for(run: Run) -> list[Case]:
    """Return the cases, the most important first."""
    if run.smoke:
        return [case._replace(dtype=torch.float32) for case in (images(1)[-1], discriminator(1)[1])]
    cases, compiled = GPU_CASES, [*images(32), discriminator(32)[0], vectors(32)[0]]
    if run.device == "cpu":
        cases = [case._replace(dtype=torch.float32) for case in CPU_CASES]
        compiled = [case for case in cases if case.name in ("image", "discriminator")]
    # torch.compile needs seconds for each case, so on a GPU it takes part only where it generates another kernel.
    return [case._replace(compiled=case in compiled and not run.own_only) for case in cases]


class Problem:
    """Contender: an operation and its tensors; eager layers are called once for each part of x."""

    def __init__(self, operation, channels_last, parts, x, dy, weight, bias):
        xs, self.dys = (to_layout(t.clone(), channels_last).chunk(parts) for t in (x, dy))
        self.xs = [part.detach().requires_grad_() for part in xs]
        self.operation, self.affine = operation, [weight, bias]
        self.running = [torch.zeros_like(weight), torch.ones_like(weight)]
        self.ys = self.forward()

    def forward(self) -> list[torch.Tensor]:
        """Return the parts of y."""
        return self.operation(self.xs, *self.affine, *self.running)

    def backward(self) -> tuple[torch.Tensor, ...]:
        """Return gradients of the parts of x, of weight and of bias."""
        return torch.autograd.grad(self.ys, (*self.xs, *self.affine), self.dys, retain_graph=True)


def makers_for(case: Case, device: str) -> dict[str, Callable[..., Problem]]:
    """Return functions by name that make each contender's problem from the same tensors."""

    def act_(y):
        return F.relu_(y) if case.negative_slope == 0 else F.leaky_relu_(y, case.negative_slope)

    def fast(xs, *channels):
        return [batch_norm_act(x, *channels, negative_slope=case.negative_slope, groups=case.groups) for x in xs]

    def eager(xs, weight, bias, mean, var):
        return [act_(F.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPS)) for x in xs]

    def cudnn(xs, *channels):
        return [act_(torch.ops.aten.cudnn_batch_norm(x, *channels, True, MOMENTUM, EPS)[0]) for x in xs]

    layout = case.channels_last, case.groups
    makers = {OURS: partial(Problem, fast, case.channels_last, 1), "eager": partial(Problem, eager, False, case.groups)}
    if case.channels_last:
        makers["eager channels-last"] = partial(Problem, eager, *layout)
    if device == "cuda":
        makers["cudnn"] = partial(Problem, cudnn, *layout)
    if case.compiled:
        compiled = torch.compile(eager, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
        makers["torch.compile"] = partial(Problem, compiled, *layout)
    return makers


def tensors(case: Case, device: str) -> list[torch.Tensor]:
    """Return random x and dy in the layout of the case, and weight and bias, always in float32."""
    drawn = torch.randn(2, *case.shape, device=device).to(case.dtype)
    channels = torch.rand(2, case.shape[1], device=device) + torch.tensor([[0.5], [-0.5]], device=device)
    return [*(to_layout(t, case.channels_last) for t in drawn), *(t.clone().requires_grad_() for t in channels)]


def check(case: Case, makers: dict[str, Callable], device: str) -> tuple[dict[str, dict], dict[str, str]]:
    """Return each contender's relative errors against float64, and why rivals are left out.

    tgan_fast may have twice the error of the best eager contender.
    """
    x, dy, *affine = tensors(case, device)
    exact = [t.detach().double().requires_grad_() for t in (x, *affine)]
    groups = [F.batch_norm(group, None, None, *exact[1:], True, eps=EPS) for group in exact[0].chunk(case.groups)]
    v = torch.cat(groups)
    # Gradients are 0 where rounding may decide on which side of the activation a value falls.
    dy.masked_fill_(v.abs() < 1e-4, 0)
    y = torch.where(v > 0, v, case.negative_slope * v)
    expected = y.detach(), *torch.autograd.grad(y, exact, dy.double())
    del groups, v, y

    def both_passes(make):
        problem = make(x, dy, *affine)
        *dxs, dweight, dbias = problem.backward()
        return torch.cat([part.detach() for part in problem.ys]), torch.cat(dxs), dweight, dbias

    def errors_of(got):
        pairs = zip(("y", "dx", "dweight", "dbias"), got, expected, strict=True)
        return {name: accuracy.relative([a], [b]) for name, a, b in pairs}

    def allowed(name, errors):
        eager = [errors[other] for other in EAGER if name == OURS and other in errors]
        return {
            key: min([FAR[case.dtype], *(2 * of[key] + accuracy.FLOAT32_ROUNDING for of in eager)])
            for key in errors[name]
        }

    calls = {name: partial(both_passes, make) for name, make in makers.items()}
    return accuracy.check_contenders(case, calls, errors_of, allowed, calls.keys() - {OURS})


def measure(run: Run, case: Case) -> dict:
    """Check and time one case."""
    if case.compiled:
        torch.compiler.reset()
    torch.manual_seed(0)
    makers, rows = makers_for(case, run.device), []
    # The compiled backward must keep its saved tensors, since it runs repeatedly.
    with harness.side_stream(run.device), torch._functorch.config.patch(donated_buffer=False):
        errors, left_out = check(case, makers, run.device)
        # A set holds x and y, or x and dy.
        drawn = [tensors(case, run.device) for _ in range(run.input_set_count(2 * case.nbytes))]
        input_sets = [{name: makers[name](*of_set) for name in errors} for of_set in drawn]
        for part, passes in PASSES.items():
            calls = {name: lambda problems, name=name, part=part: getattr(problems[name], part)() for name in errors}
            timings = run.measure(calls, input_sets, rivals=errors.keys() - {OURS})
            work = Work(0, passes * case.nbytes)
            rows += run.rows(timings, part, work, more=lambda name: {"error": errors.get(name)})
    dtype = str(case.dtype).removeprefix("torch.")
    return {**case._asdict(), "dtype": dtype, "input_sets": len(input_sets), "timings": rows, "left_out": left_out}


def calls_for(run: Run, case: Case) -> dict[str, Callable]:
    """Return functions that make the calls, by part and contender."""

    def maker(part, make):
        with torch._functorch.config.patch(donated_buffer=False):
            problem = make(*tensors(case, run.device))
            problem.backward()
        return getattr(problem, part)

    makers = makers_for(case, run.device).items()
    return {f"{part} {name}": partial(maker, part, make) for part in PASSES for name, make in makers}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals; on a GPU they concern images, the model's largest tensors."""
    if device == "cpu":
        return _goals_on_cpu(records)
    cases, largest = [str(case) for case in GPU_CASES if case.name == "image"], str(images(64)[0])
    rows = [(record["case"], row) for record in records for row in record["timings"]]
    shares, leads = [], []
    for part in PASSES:
        share = next((row["share_of_floor"] for case, row in rows if case == largest and row["part"] == part), None)
        shares.append(Goal(f"of a copy's rate, {part} of {largest}", share, 0.85, at_most=False))
        rivals = [(case, row["ratio"]) for case, row in rows if row["part"] == part and OURS not in row["contender"]]
        ratios = [ratio for case, ratio in rivals if case in cases]
        lead = min(ratios) if {case for case, _ in rivals} >= set(cases) else None
        leads.append(Goal(f"times as fast as the fastest rival, {part} of every image", lead, 1, at_most=False))
    return shares + leads


def _goals_on_cpu(records):
    def is_image(record):
        return record["name"] in ("image", "discriminator")

    def is_vector(record, dimensions):
        return record["name"] == "vector" and len(record["shape"]) == dimensions

    goals = []
    for text, matches, parts, bound in (
        ("forward of every image and discriminator", is_image, ["forward"], 1.3),
        ("backward of every image and discriminator", is_image, ["backward"], 1.8),
        ("every vector of a linear layer", partial(is_vector, dimensions=2), PASSES, 1.0),
        ("every vector of the temporal part", partial(is_vector, dimensions=3), PASSES, 0.9),
    ):
        rows = [row for record in records if matches(record) for row in record["timings"] if row["part"] in parts]
        lead = min((row["ratio"] for row in rows if OURS not in row["contender"]), default=None)
        goals.append(Goal(f"times as fast as the fastest rival, {text}", lead, bound, at_most=False))
    # Vectors are left out, since with two samples any rounding is a large error.
    rows = [row for record in records if is_image(record) for row in record["timings"] if row["contender"] == OURS]
    error = max((row["error"][name] for row in rows for name in ("y", "dx")), default=None)
    return [*goals, Goal("error of y and dx of every image and discriminator", error, 1e-7, at_most=True)]


SECTION = Section(
    name="batch_norm_act",
    title="batch norm + activation in training; error: relative to float64, of y, dx, dweight and dbias",
    cases=cases_for,
    measure=measure,
    calls=calls_for,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
