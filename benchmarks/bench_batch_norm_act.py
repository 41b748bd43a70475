"""Batch norm + activation in training, forward and backward, against eager PyTorch, cuDNN and torch.compile.

    python -m benchmarks.bench_batch_norm_act --device cuda

Every contender is first compared with float64. Then all take turns on the same random tensors. GB/s count the bytes
that two passes over the tensors need, whatever a contender really moves: forward reads x twice and writes y, backward
reads x and dy twice and writes dx. The floor is the time in which a large copy moves as many.

On a CPU tgan_fast is slower than eager PyTorch where channels are last in memory, on purpose: PyTorch adds up a channel
in plain float32, tgan_fast the sums of its chunks in float64 (tgan_fast/ops/batch_norm/cpu.py). The errors show what
that is worth.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch._functorch.config
import torch.nn.functional as F

from benchmarks import accuracy, harness, suite
from benchmarks.ceilings import Work
from benchmarks.results import Goal, rounded
from benchmarks.suite import Run, Section
from tgan_fast.ops import batch_norm_act

EPS, MOMENTUM = 1e-5, 0.1
PASSES = {"forward": 3, "backward": 5}  # values moved for each of x
RESULTS = {"forward": ("y",), "backward": ("dx", "dweight", "dbias")}
OURS, EAGER = "tgan_fast", ("eager", "eager channels-last")
# Relative to a tensor's norm; both sides of a comparison are rounded to float32 at best.
ROUNDING = 2 * torch.finfo(torch.float32).eps
# Ten times what rounding and sums in plain float32 lead to: a contender with a larger error does something else.
FAR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
# A CPU would spend most time on the smallest tensors, which stay in its cache whatever their number.
ROUNDS, MOST_INPUT_SETS = {"cpu": 5, "cuda": None}, {"cpu": 128, "cuda": 256}


class Case(NamedTuple):
    """A tensor to be normalized."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = True
    negative_slope: float = 0.0
    groups: int = 1
    compiled: bool = False  # torch.compile takes part

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


def discriminator(batch: int, *options) -> list[Case]:
    """Return the discriminator's batch norms, on real and fake videos in one tensor, the largest first."""
    shapes = ((128, 4, 16, 16), (256, 2, 8, 8), (512, 1, 4, 4))
    return [
        Case("discriminator", (2 * batch, *shape), *options)._replace(negative_slope=0.2, groups=2) for shape in shapes
    ]


def vectors(batch: int, *options) -> list[Case]:
    """Return the generator's small batch norms, those of its two linear layers first, then its temporal part."""
    shapes = ((16 * batch, 4096), (batch, 4096), (batch, 512, 1), (batch, 256, 2), (batch, 128, 4), (batch, 128, 8))
    cases = [Case("vector", shape, *options) for shape in shapes]
    return [case._replace(channels_last=index > 2) for index, case in enumerate(cases)]


def cases_for(run: Run) -> list[Case]:
    """Return the cases, the most important first.

    torch.compile needs many seconds for each. On a GPU it takes part in every image of the usual training, and in the
    largest tensors of the discriminator and of the vectors, for which it writes other kernels.
    """
    if run.smoke:
        return [images(1, torch.float32)[-1], discriminator(1, torch.float32)[1]]
    cases, compiled = _gpu_cases(), [*images(32), discriminator(32)[0], vectors(32)[0]]
    if run.device == "cpu":
        cases = [case for family, batch in ((images, 1), (discriminator, 1), (vectors, 2)) for case in family(batch)]
        cases = [case._replace(dtype=torch.float32) for case in (*cases, Case("large", (2, 64, 56, 56)))]
        compiled = cases[:1]
    # Nobody's accuracy is judged by torch.compile's: where it is not timed, it need not compile.
    return [case._replace(compiled=case in compiled and not run.own_only) for case in cases]


def _gpu_cases():
    large = [Case("large", shape) for shape in ((64, 256, 56, 56), (32, 64, 112, 112), (8, 64, 16, 64, 64))]
    more = [*images(64), *vectors(64), *images(32, torch.float32), *images(32, torch.bfloat16, False)[::2]]
    return [*images(32), *discriminator(32), *vectors(32), *large, *more]


class Contender:
    """A function of the parts of x, weight, bias, running mean and variance, that returns the parts of y."""

    def __init__(self, affine, operation, channels_last, parts, compiled=False):
        options = {"mode": "max-autotune-no-cudagraphs", "dynamic": False, "fullgraph": True}
        self.operation = torch.compile(operation, **options) if compiled else operation
        self.affine, self.channels_last, self.parts = affine, channels_last, parts
        self.running = [torch.zeros_like(affine[0]), torch.ones_like(affine[0])]

    def feed(self, x: torch.Tensor, dy: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return copies in its layout: parts of x, as leaves, and the gradients of the parts of y."""
        xs, dys = (_laid_out(t.clone(), self.channels_last).chunk(self.parts) for t in (x, dy))
        return [part.detach().requires_grad_() for part in xs], list(dys)

    def forward(self, feed: tuple) -> list[torch.Tensor]:
        """Return the parts of y."""
        return self.operation(feed[0], *self.affine, *self.running)

    def backward(self, ys: list[torch.Tensor], feed: tuple) -> tuple[torch.Tensor, ...]:
        """Return gradients of the parts of x, of weight and of bias."""
        xs, dys = feed
        return torch.autograd.grad(ys, (*xs, *self.affine), dys, retain_graph=True)


def makers_for(case: Case, device: str) -> dict[str, Callable[[list[torch.Tensor]], Contender]]:
    """Return by name what makes each contender, given weight and bias; eager layers are called once for each part."""
    slope = case.negative_slope

    def act_(y):
        return F.relu_(y) if slope == 0 else F.leaky_relu_(y, slope)

    def fast(xs, *channels):
        return [batch_norm_act(x, *channels, negative_slope=slope, groups=case.groups) for x in xs]

    def eager(xs, weight, bias, mean, var):
        return [act_(F.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPS)) for x in xs]

    def cudnn(xs, *channels):
        return [act_(torch.ops.aten.cudnn_batch_norm(x, *channels, True, MOMENTUM, EPS)[0]) for x in xs]

    layout = case.channels_last, case.groups
    ways = {OURS: (fast, case.channels_last, 1), "eager": (eager, False, case.groups)}
    ways |= {"eager channels-last": (eager, *layout)} if case.channels_last else {}
    ways |= {"cudnn": (cudnn, *layout)} if device == "cuda" else {}
    ways |= {"torch.compile": (eager, *layout, True)} if case.compiled else {}
    return {name: lambda affine, way=way: Contender(affine, *way) for name, way in ways.items()}


def scale_and_shift(case: Case, device: str) -> list[torch.Tensor]:
    """Return weight and bias, in float32 whatever the dtype of x."""
    return [torch.rand(case.shape[1], device=device).add_(offset).requires_grad_() for offset in (0.5, -0.5)]


def tensors(case: Case, device: str) -> list[torch.Tensor]:
    """Return random x and dy in the layout of the case."""
    last = (case.shape[0], *case.shape[2:], case.shape[1])
    drawn = (torch.randn(last, device=device).to(case.dtype).movedim(-1, 1) for _ in range(2))
    return [_laid_out(t, case.channels_last) for t in drawn]


def _laid_out(t, channels_last):
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t.contiguous()


def check(case: Case, device: str) -> tuple[dict[str, dict[str, float]], dict[str, str], dict[str, Contender]]:
    """Return each contender's relative errors against float64, why rivals are left out, and the contenders.

    tgan_fast may have twice the error of the best eager contender.
    """
    affine = scale_and_shift(case, device)
    contenders = {name: make(affine) for name, make in makers_for(case, device).items()}
    x, dy = tensors(case, device)
    exact = [t.detach().double().requires_grad_() for t in (x, *affine)]
    groups = [F.batch_norm(group, None, None, *exact[1:], True, eps=EPS) for group in exact[0].chunk(case.groups)]
    v = torch.cat(groups)
    # No gradient where rounding may decide on which side of the activation a value falls.
    dy.masked_fill_(v.abs() < 1e-4, 0)
    y = torch.where(v > 0, v, case.negative_slope * v)
    expected = y.detach(), *torch.autograd.grad(y, exact, dy.double())
    del groups, v, y

    def both_passes(contender):
        feed = contender.feed(x, dy)
        ys = contender.forward(feed)
        *dxs, dweight, dbias = contender.backward(ys, feed)
        return torch.cat([part.detach() for part in ys]), torch.cat(dxs), dweight, dbias

    def errors_of(got):
        errors = [rounded(((a.double() - b).norm() / b.norm()).item()) for a, b in zip(got, expected, strict=True)]
        return dict(zip(RESULTS["forward"] + RESULTS["backward"], errors, strict=True))

    def allowed(name, errors):
        eager = [errors[other] for other in EAGER if name == OURS and other in errors]
        far = FAR[case.dtype]
        return {key: min([far, *(2 * found[key] + ROUNDING for found in eager)]) for key in errors[name]}

    calls = {name: partial(both_passes, contender) for name, contender in contenders.items()}
    return *accuracy.check(case, calls, errors_of, allowed, calls.keys() - {OURS}), contenders


def measure(run: Run, case: Case) -> dict:
    """Check and time one case."""
    if case.compiled:
        torch.compiler.reset()
    torch.manual_seed(0)
    # The compiled backward may not give away what it saved: it runs again and again.
    with harness.side_stream(run.device), torch._functorch.config.patch(donated_buffer=False):
        errors, left_out, contenders = check(case, run.device)
        # Each set has x and y, or x and dy.
        count = min(MOST_INPUT_SETS[run.device], run.input_set_count(2 * case.nbytes))
        drawn = [tensors(case, run.device) for _ in range(count)]
        feeds = [{name: contenders[name].feed(*pair) for name in errors} for pair in drawn]
        forwards = {name: lambda feeds, name=name: contenders[name].forward(feeds[name]) for name in errors}
        rivals, rounds = errors.keys() - {OURS}, ROUNDS[run.device]
        timings = {"forward": run.measure(forwards, feeds, rounds, rivals=rivals)}
        outputs = [{name: (call(of_set), of_set[name]) for name, call in forwards.items()} for of_set in feeds]
        backwards = {name: lambda outputs, name=name: contenders[name].backward(*outputs[name]) for name in errors}
        timings["backward"] = run.measure(backwards, outputs, rounds, rivals=rivals)

    def more(part, name):
        return {"error": {result: errors[name][result] for result in RESULTS[part]} if name in errors else None}

    rows = []
    for part, passes in PASSES.items():
        rows += run.rows(timings[part], part, Work(0, passes * case.nbytes), more=partial(more, part))
    dtype = str(case.dtype).removeprefix("torch.")
    return {**case._asdict(), "dtype": dtype, "input_sets": count, "timings": rows, "left_out": left_out}


def calls_for(run: Run, case: Case) -> dict[str, Callable]:
    """Return for each part and contender what makes a call."""

    def maker(part, make):
        contender = make(scale_and_shift(case, run.device))
        feed = contender.feed(*tensors(case, run.device))
        with torch._functorch.config.patch(donated_buffer=False):
            ys = contender.forward(feed)
            contender.backward(ys, feed)
        return partial(contender.forward, feed) if part == "forward" else partial(contender.backward, ys, feed)

    makers = makers_for(case, run.device)
    return {f"{part} {name}": partial(maker, part, make) for part in PASSES for name, make in makers.items()}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return a GPU's goals for images, the model's largest tensors; a CPU is slower for the sake of accuracy."""
    if device == "cpu":
        return []
    sizes = {str(case): case.nbytes for case in _gpu_cases() if case.name == "image"}
    largest = max(sizes, key=sizes.get)
    timings = {record["case"]: record["timings"] for record in records}
    goals = {"share": [], "lead": []}
    for part in PASSES:
        rows = {case: [row for row in timings.get(case, []) if row["part"] == part] for case in sizes}
        share = next((row["share_of_floor"] for row in rows[largest]), None)
        goals["share"].append(Goal(f"of a copy's rate, {part} of {largest}", share, 0.85, at_most=False))
        ratios = [[row["ratio"] for row in of if not row["contender"].startswith(OURS)] for of in rows.values()]
        lead = min(map(min, ratios)) if all(ratios) else None
        text = f"times as fast as the fastest rival, {part} of every image"
        goals["lead"].append(Goal(text, lead, 1, at_most=False))
    return goals["share"] + goals["lead"]


SECTION = Section(
    name="batch_norm_act",
    title="batch norm + activation in training; error: relative to float64, of y, and of dx, dweight and dbias",
    cases=cases_for,
    measure=measure,
    calls=calls_for,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
