"""Batch norm + activation in training, forward and backward, against eager PyTorch, cuDNN and torch.compile.

    python -m benchmarks.bench_batch_norm_act --device cuda

Every contender is first compared with the definition in float64. Then all take turns on the same random tensors. GB/s
count the bytes that two passes over the tensors need, whatever a contender really moves: forward reads x twice and
writes y, backward reads x and dy twice and writes dx. The floor is the time in which a large copy moves as many.

On a CPU tgan_fast is slower than eager PyTorch where channels are last in memory, on purpose: PyTorch adds up a channel
in plain float32, tgan_fast the sums of its chunks in float64 (tgan_fast/ops/batch_norm/cpu.py). The errors show what
that is worth.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch._functorch.config
import torch.nn.functional as F

from benchmarks import harness, suite
from benchmarks.ceilings import Work
from benchmarks.harness import Timing
from benchmarks.results import Goal, rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast.ops import batch_norm_act

EPS, MOMENTUM = 1e-5, 0.1
PASSES = {"forward": 3, "backward": 5}  # values moved for each of x
RESULTS = {"forward": ("y",), "backward": ("dx", "dweight", "dbias")}
OURS = "tgan_fast"
# Whose numbers tgan_fast must match, and who may refuse a case.
EAGER = ("eager", "eager channels-last")
OPTIONAL = ("cudnn", "torch.compile")
# Relative to a tensor's norm; both sides of a comparison are rounded to float32 at best.
ROUNDING = 2 * torch.finfo(torch.float32).eps
# Likewise; ten times what rounding and adding up in plain float32 lead to. Who is off by more computes something else.
FAR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
SHARE, LEAD = 0.85, 1  # goals
# A CPU would spend most time on the smallest tensors, which stay in its cache whatever their number.
ROUNDS, MOST_INPUT_SETS = {"cpu": 5, "cuda": None}, {"cpu": 128, "cuda": 256}


class Case(NamedTuple):
    """A tensor to be normalised."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = True
    negative_slope: float = 0.0
    groups: int = 1
    compiled: bool = False  # torch.compile takes part

    @property
    def nbytes(self):
        """Of x."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __str__(self):
        layout = "channels-last" if self.channels_last else "contiguous"
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{self.name} {list(self.shape)} {_name(self.dtype)} {layout}{groups}"


class Contender(NamedTuple):
    """A way to do it."""

    operation: Callable  # (parts of x, weight, bias, running_mean, running_var) → parts of y
    channels_last: bool
    parts: int  # of x, each a tensor of its own
    running: list[torch.Tensor]  # mean and variance: each moves its own

    def forward(self, feed, affine):
        """The parts of y."""
        return self.operation(feed.xs, *affine, *self.running)


class Feed(NamedTuple):
    """What one contender gets: leaves, and the gradients of its results."""

    xs: list[torch.Tensor]
    dys: list[torch.Tensor]


def images(batch, dtype, **options) -> list[Case]:
    """The batch norms of the generator's image part, for videos of 16 frames, the largest first."""
    shapes = ((32, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8))
    return [Case("image", (16 * batch, *shape), dtype, **options) for shape in shapes]


def discriminator(batch, dtype) -> list[Case]:
    """The discriminator's batch norms, on real and fake videos in one tensor, the largest first."""
    shapes = ((128, 4, 16, 16), (256, 2, 8, 8), (512, 1, 4, 4))
    return [Case("discriminator", (2 * batch, *shape), dtype, negative_slope=0.2, groups=2) for shape in shapes]


def vectors(batch, dtype) -> list[Case]:
    """The small batch norms of the generator, those of its two linear layers first, then its temporal part."""
    contiguous = ((16 * batch, 4096), (batch, 4096), (batch, 512, 1))
    channels_last = ((batch, 256, 2), (batch, 128, 4), (batch, 128, 8))
    return [
        *(Case("vector", shape, dtype, channels_last=False) for shape in contiguous),
        *(Case("vector", shape, dtype) for shape in channels_last),
    ]


def large(shapes, dtype) -> list[Case]:
    """As in networks other than TGAN."""
    return [Case("large", shape, dtype) for shape in shapes]


def compiled(cases, count) -> list[Case]:
    """torch.compile takes part in the first `count`."""
    return [case._replace(compiled=index < count) for index, case in enumerate(cases)]


def cpu_cases() -> list[Case]:
    """Of small batches.

    torch.compile needs seconds a case, and is a slow rival here: the largest image must do.
    """
    dtype = torch.float32
    return [
        *compiled(images(1, dtype), 1),
        *discriminator(1, dtype),
        *vectors(2, dtype),
        *large([(2, 64, 56, 56)], dtype),
    ]


def gpu_cases() -> list[Case]:
    """Of training, and others.

    torch.compile tunes itself for many seconds a case. It takes part where it counts, in every image of the usual
    training, and in the largest tensors of the discriminator and of the vectors, where it writes other kernels.
    """
    dtype = torch.bfloat16
    return [
        *compiled(images(32, dtype), 4),
        *compiled(discriminator(32, dtype), 1),
        *compiled(vectors(32, dtype), 1),
        *large([(64, 256, 56, 56), (32, 64, 112, 112), (8, 64, 16, 64, 64)], dtype),
        *images(64, dtype),
        *vectors(64, dtype),
        *images(32, torch.float32),
        *images(32, dtype, channels_last=False)[::2],
    ]


def cases_for(run: Run) -> list[Case]:
    """What is measured, the most important first."""
    if run.smoke:
        return [images(1, torch.float32)[-1], discriminator(1, torch.float32)[1]]
    cases = cpu_cases() if run.device == "cpu" else gpu_cases()
    # Nobody's accuracy is judged by torch.compile's: where it is not timed, it need not compile.
    return compiled(cases, 0) if run.own_only else cases


def names_for(case, device) -> list[str]:
    """Of the contenders."""
    others = {
        "eager channels-last": case.channels_last,
        "cudnn": device == "cuda",
        "torch.compile": case.compiled,
    }
    return [OURS, "eager", *(name for name, takes_part in others.items() if takes_part)]


def contenders_for(case, device) -> dict[str, Contender]:
    """Each as its own users would write it: eager layers are called once a part and act in place."""
    slope = case.negative_slope

    def act_(y):
        return F.relu_(y) if slope == 0 else F.leaky_relu_(y, slope)

    def fast(xs, *channels):
        return [batch_norm_act(x, *channels, negative_slope=slope, groups=case.groups) for x in xs]

    def eager(xs, weight, bias, mean, var):
        return [act_(F.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPS)) for x in xs]

    def cudnn(xs, *channels):
        return [act_(torch.ops.aten.cudnn_batch_norm(x, *channels, True, MOMENTUM, EPS)[0]) for x in xs]

    def compile_(operation):
        options = {"mode": "max-autotune-no-cudagraphs", "dynamic": False, "fullgraph": True}
        return torch.compile(operation, **options) if case.compiled else operation

    def contender(operation, channels_last, parts):
        running = [fill(case.shape[1], device=device) for fill in (torch.zeros, torch.ones)]
        return Contender(operation, channels_last, parts, running)

    layout = case.channels_last, case.groups
    ways = {
        OURS: (fast, case.channels_last, 1),
        "eager": (eager, False, case.groups),
        "eager channels-last": (eager, *layout),
        "cudnn": (cudnn, *layout),
        "torch.compile": (compile_(eager), *layout),
    }
    return {name: contender(*ways[name]) for name in names_for(case, device)}


def definition(case, x, weight, bias) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias, each part with its own statistics; before the activation."""
    parts = x.unflatten(0, (case.groups, -1))
    dims = [1, *range(3, parts.dim())]
    centered = parts - parts.mean(dims, keepdim=True)
    normalized = centered / (centered.square().mean(dims, keepdim=True) + EPS).sqrt()
    weight, bias = (vector.view(-1, *[1] * (x.dim() - 2)) for vector in (weight, bias))
    return (normalized * weight + bias).flatten(0, 1)


def scale_and_shift(case, device) -> list[torch.Tensor]:
    """weight and bias, in float32 whatever the dtype of x."""
    return [torch.rand(case.shape[1], device=device).add_(offset).requires_grad_() for offset in (0.5, -0.5)]


def tensors(case, device) -> list[torch.Tensor]:
    """Random x and dy in the layout of the case."""
    last = (case.shape[0], *case.shape[2:], case.shape[1])
    drawn = (torch.randn(last, device=device).to(case.dtype).movedim(-1, 1) for _ in range(2))
    return [laid_out(t, case.channels_last) for t in drawn]


def laid_out(t, channels_last) -> torch.Tensor:
    """t itself if it has that layout."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t.contiguous()


def feeds_of(x, dy, contenders) -> dict[str, Feed]:
    """What each contender gets; contenders that want the same share it."""

    @functools.cache
    def feed(channels_last, parts):
        xs, dys = (laid_out(t, channels_last).chunk(parts) for t in (x, dy))
        return Feed([part.detach().requires_grad_() for part in xs], list(dys))

    return {name: feed(contender.channels_last, contender.parts) for name, contender in contenders.items()}


def backward(ys, feed, affine) -> tuple[torch.Tensor, ...]:
    """Gradients of the parts of x, of weight and of bias."""
    return torch.autograd.grad(ys, (*feed.xs, *affine), feed.dys, retain_graph=True)


def check(case, contenders, affine, device) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Relative errors against float64 of each contender, and why others are left out.

    Raises:
        SystemExit: tgan_fast is less accurate than it should be.
    """
    x, dy = tensors(case, device)
    exact = [t.detach().double().requires_grad_() for t in (x, *affine)]
    v = definition(case, *exact)
    # No gradient where rounding may decide on which side of the activation a value falls.
    dy.masked_fill_(v.abs() < 1e-4, 0)
    y = torch.where(v > 0, v, case.negative_slope * v)
    expected = y.detach(), *torch.autograd.grad(y, exact, dy.double())
    del v, y

    errors, left_out = {}, {}
    for name, feed in feeds_of(x, dy, contenders).items():
        try:
            ys = contenders[name].forward(feed, affine)
            *dxs, dweight, dbias = backward(ys, feed, affine)
        except RuntimeError as error:
            if name not in OPTIONAL:
                raise
            left_out[name] = harness.first_line(error)
            continue
        got = torch.cat([part.detach() for part in ys]), torch.cat(dxs), dweight, dbias
        pairs = zip(got, expected, strict=True)
        norms = [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]
        errors[name] = dict(zip(sum(RESULTS.values(), ()), map(rounded, norms), strict=True))
    left_out |= _take_out_wrong_rivals(case, errors)
    _compare(case, errors)
    return errors, left_out


def _take_out_wrong_rivals(case, errors):
    """Of `errors`; returns why."""
    wrong = {}
    for name in [name for name in errors if name != OURS]:
        for result, error in errors[name].items():
            if not error <= FAR[case.dtype]:
                wrong.setdefault(name, f"{result} is off by {error:.1e} of its norm in float64")
    for name in wrong:
        del errors[name]
    return wrong


def _compare(case, errors):
    """Raise unless tgan_fast is about as accurate as the best of the eager contenders: at most twice as far off."""
    for result, error in errors[OURS].items():
        twice = [2 * errors[name][result] + ROUNDING for name in EAGER if name in errors]
        allowed = min([FAR[case.dtype], *twice])
        if not error <= allowed:
            raise SystemExit(
                f"error: {case}: {result} of {OURS} is off by {error:.1e} of its norm in float64, more than "
                f"the allowed {allowed:.1e}: nothing is timed"
            )


def time_both(run, contenders, inputs, affine) -> dict[str, dict[str, Timing]]:
    """Timings of forward and of backward; `inputs` are the feeds of every rotating input set."""

    def forward_of(name):
        return lambda feeds: contenders[name].forward(feeds[name], affine)

    def backward_of(name):
        return lambda outputs: backward(*outputs[name], affine)

    rivals = [name for name in contenders if name != OURS]
    forwards = {name: forward_of(name) for name in contenders}
    timings = {"forward": run.measure(forwards, inputs, ROUNDS[run.device], rivals=rivals)}
    outputs = [{name: (call(feeds), feeds[name]) for name, call in forwards.items()} for feeds in inputs]
    backwards = {name: backward_of(name) for name in contenders}
    timings["backward"] = run.measure(backwards, outputs, ROUNDS[run.device], rivals=rivals)
    return timings


def measure(run: Run, case: Case) -> dict:
    """Check and time one case."""
    if case.compiled:
        torch.compiler.reset()
    # The compiled backward may not give away what it saved: it runs again and again.
    with harness.side_stream(run.device), torch._functorch.config.patch(donated_buffer=False):
        return _measure(run, case)


def _measure(run, case):
    torch.manual_seed(0)
    affine = scale_and_shift(case, run.device)
    contenders = contenders_for(case, run.device)
    errors, left_out = check(case, contenders, affine, run.device)
    contenders = {name: contender for name, contender in contenders.items() if name in errors}
    # Each has x and y, or x and dy.
    count = min(MOST_INPUT_SETS[run.device], run.input_set_count(2 * case.nbytes))
    inputs = [feeds_of(*tensors(case, run.device), contenders) for _ in range(count)]
    timings = time_both(run, contenders, inputs, affine)

    def rows(part):
        def more(name):
            return {"error": {result: errors[name][result] for result in RESULTS[part]} if name in errors else None}

        return run.rows(timings[part], part, Work(0, PASSES[part] * case.nbytes), more=more)

    return {
        **case._asdict(),
        "dtype": _name(case.dtype),
        "input_sets": count,
        "timings": [row for part in PASSES for row in rows(part)],
        "left_out": left_out,
    }


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def labels_for(run: Run, case: Case) -> list[Label]:
    """Of a case's timings."""
    return [Label(name, part) for part in PASSES for name in (*names_for(case, run.device), harness.again(OURS))]


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """What a GPU shall reach on images, the largest tensors of the model; a CPU is slower for the sake of accuracy."""
    if device == "cpu":
        return []
    images = [case for case in gpu_cases() if case.name == "image"]
    largest = max(images, key=lambda case: case.nbytes)
    rows = {
        (record["case"], part): [row for row in record["timings"] if row["part"] == part]
        for record in records
        for part in PASSES
    }

    def share(part):
        found = rows.get((str(largest), part))
        return found and found[0]["share_of_floor"]

    def smallest_lead(part):
        leads = [lead(rows.get((str(case), part), [])) for case in images]
        return None if None in leads else min(leads)

    return [
        *(Goal(f"of a copy's rate, {part} of {largest}", share(part), SHARE, at_most=False) for part in PASSES),
        *(
            Goal(f"times as fast as the fastest rival, {part} of every image", smallest_lead(part), LEAD, at_most=False)
            for part in PASSES
        ),
    ]


def lead(rows) -> float | None:
    """How many times as long as tgan_fast the fastest rival takes, of the rows of one part; None without rivals."""
    return min((row["ratio"] for row in rows if row["contender"] not in (OURS, harness.again(OURS))), default=None)


SECTION = Section(
    name="batch_norm_act",
    title="batch norm + activation in training; error: relative to float64, of y, and of dx, dweight and dbias",
    cases=cases_for,
    measure=measure,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
