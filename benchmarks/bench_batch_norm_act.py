"""Batch norm + residual + activation in training, forward and backward, against eager PyTorch, cuDNN and torch.compile.

    python -m benchmarks.bench_batch_norm_act --device cuda

GB/s count the bytes that two passes over the tensors need, not those that a contender moves: forward reads x twice and
writes y, backward reads x and dy twice and writes dx. With a residual, forward reads it once, too; backward first reads
x, dy and the residual and writes the residual's gradient, then reads x and this gradient and writes dx.

On a CPU a call costs some 70 µs in Python before the kernel starts, where eager PyTorch needs half as much: tensors of
less than 100,000 values show little else.

apex's bn_add_relu is not measured, because apex must be built from source; "cudnn + compiled add-ReLU" comes closest to
it in PyTorch.
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
from tgan_fast.choices import ActivationName
from tgan_fast.ops import batch_norm_act
from tgan_fast.ops.batch_norm.geometry import to_layout

EPS, MOMENTUM = 1e-5, 0.1
PASSES = {"forward": 3, "backward": 5}  # values moved per value of x
RESIDUAL_PASSES = {"forward": 4, "backward": 7}
RESULTS = "y", "dx", "dweight", "dbias", "dresidual"
KINKS = {"leaky_relu": (0,), "silu": (), "hardswish": (-3, 3)}  # where the activation's derivative jumps
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
    residual: bool = False
    activation: ActivationName = "leaky_relu"

    @property
    def nbytes(self):
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def passes(self):
        return RESIDUAL_PASSES if self.residual else PASSES

    def __str__(self):
        layout = "channels-last" if self.channels_last else "contiguous"
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        residual = ", residual" if self.residual else ""
        activation = "" if self.activation == "leaky_relu" else f", {self.activation}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name} {list(self.shape)} {dtype} {layout}{groups}{residual}{activation}"


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


def block_ends(batch: int) -> list[Case]:
    """Return the batch norms of ResNet-50 with a residual, for images of 224×224 pixels, the largest first."""
    shapes = ((256 << stage, 56 >> stage) for stage in range(4))
    return [Case("ResNet-50", (batch, channels, side, side), residual=True) for channels, side in shapes]


def inside_blocks(batch: int) -> list[Case]:
    """Return the other batch norms of ResNet-50 with ReLU, the largest first; strides are those of the paper."""
    shapes = ((64, 112), *((64 << stage, 56 >> stage) for stage in range(4)))
    return [Case("ResNet-50", (batch, channels, side, side)) for channels, side in shapes]


def unet(batch: int, side: int = 256) -> list[Case]:
    """Return the batch norms of a U-Net on square images, the largest first."""
    return [Case("U-Net", (batch, 64 << level, side >> level, side >> level)) for level in range(5)]


def mobile(batch: int) -> list[Case]:
    """Return one batch norm each of EfficientNet-B0 and MobileNetV3, which have other activations."""
    return [
        Case("EfficientNet", (batch, 96, 112, 112), activation="silu"),
        Case("MobileNetV3", (batch, 240, 28, 28), activation="hardswish"),
    ]


GPU_CASES = [
    *images(32),
    *discriminator(32),
    *vectors(32),
    *block_ends(32),
    *images(64),
    *inside_blocks(32),
    *unet(32),
    *mobile(32),
    *(network(128)[0] for network in (block_ends, inside_blocks, unet)),
    *(Case("large", shape) for shape in ((64, 256, 56, 56), (8, 64, 16, 64, 64))),
    *vectors(64),
    *images(32, torch.float32),
    *images(32, torch.bfloat16, False)[::2],
]
CPU_CASES = [
    *images(1),
    *discriminator(1),
    *vectors(2),
    *block_ends(2),
    inside_blocks(2)[0],
    unet(1, 128)[0],
    *mobile(2),
    Case("large", (2, 64, 56, 56)),
]


def cases_for(run: Run) -> list[Case]:
    """Return the cases, the most important first."""
    if run.smoke:
        smallest = images(1)[-1], discriminator(1)[1], block_ends(1)[-1], mobile(1)[-1]
        return [case._replace(dtype=torch.float32) for case in smallest]
    cases, compiled = GPU_CASES, [*images(32), discriminator(32)[0], vectors(32)[0], unet(32)[0], *mobile(32)]
    if run.device == "cpu":
        cases = [case._replace(dtype=torch.float32) for case in CPU_CASES]
        compiled = [case for case in cases if case.name in ("image", "discriminator")]
    compiled += [case for case in cases if case.residual]
    # torch.compile needs seconds for each case, so on a GPU it takes part only where there is a residual or where it
    # generates another kernel.
    return [case._replace(compiled=case in compiled and not run.own_only) for case in cases]


class Problem:
    """Contender: an operation and its tensors; eager layers are called once for each part of x."""

    def __init__(self, operation, channels_last, parts, x, dy, weight, bias, residual=None):
        def split(tensor):
            return [part.detach() for part in to_layout(tensor.clone(), channels_last).chunk(parts)]

        self.dys, self.xs = split(dy), [part.requires_grad_() for part in split(x)]
        self.residuals = [] if residual is None else [part.requires_grad_() for part in split(residual)]
        self.operation, self.affine = operation, [weight, bias]
        self.running = [torch.zeros_like(weight), torch.ones_like(weight)]
        self.ys = self.forward()

    def forward(self) -> list[torch.Tensor]:
        """Return the parts of y."""
        return self.operation(self.xs, self.residuals or [None] * len(self.xs), *self.affine, *self.running)

    def backward(self) -> tuple[torch.Tensor, ...]:
        """Return gradients of the parts of x, of weight, of bias and of the parts of the residual."""
        return torch.autograd.grad(self.ys, (*self.xs, *self.affine, *self.residuals), self.dys, retain_graph=True)


def activate_(v: torch.Tensor, case: Case) -> torch.Tensor:
    """Return the activation of v, in place where autograd need not copy v before."""
    if case.activation != "leaky_relu":
        return getattr(F, case.activation)(v)
    return F.relu_(v) if case.negative_slope == 0 else F.leaky_relu_(v, case.negative_slope)


def makers_for(case: Case, device: str) -> dict[str, Callable[..., Problem]]:
    """Return functions by name that make each contender's problem from the same tensors."""

    # Only arguments that the case needs: --compare also runs revisions that lack the others.
    options = {"negative_slope": case.negative_slope, "groups": case.groups}
    options |= {} if case.activation == "leaky_relu" else {"activation": case.activation}
    compiled = partial(torch.compile, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)

    def fast(xs, residuals, *channels):
        added = {"residual": residuals[0]} if case.residual else {}
        return [batch_norm_act(xs[0], *channels, **options, **added)]

    def add_act_(y, residual):
        return activate_(y if residual is None else y.add_(residual), case)

    def eager(xs, residuals, weight, bias, mean, var):
        ys = (F.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPS) for x in xs)
        return list(map(add_act_, ys, residuals))

    def cudnn(add_act, xs, residuals, *channels):
        ys = (torch.ops.aten.cudnn_batch_norm(x, *channels, True, MOMENTUM, EPS)[0] for x in xs)
        return list(map(add_act, ys, residuals))

    layout = case.channels_last, case.groups
    makers = {OURS: partial(Problem, fast, case.channels_last, 1), "eager": partial(Problem, eager, False, case.groups)}
    if case.channels_last:
        makers["eager channels-last"] = partial(Problem, eager, *layout)
    if device == "cuda":
        makers["cudnn"] = partial(Problem, partial(cudnn, add_act_), *layout)
    if device == "cuda" and case.compiled and case.residual:
        add_relu = compiled(lambda y, residual: F.relu(y + residual))
        makers["cudnn + compiled add-ReLU"] = partial(Problem, partial(cudnn, add_relu), *layout)
    if case.compiled:
        makers["torch.compile"] = partial(Problem, compiled(eager), *layout)
    return makers


def tensors(case: Case, device: str) -> list[torch.Tensor]:
    """Return random x and dy, weight and bias, always in float32, and the residual if the case has one."""
    drawn = torch.randn(2 + case.residual, *case.shape, device=device).to(case.dtype)
    channels = torch.rand(2, case.shape[1], device=device) + torch.tensor([[0.5], [-0.5]], device=device)
    x, dy, *residual = (to_layout(t, case.channels_last) for t in drawn)
    return [x, dy, *(t.clone().requires_grad_() for t in channels), *residual]


def check(case: Case, makers: dict[str, Callable], device: str) -> tuple[dict[str, dict], dict[str, str]]:
    """Return each contender's relative errors against float64, and why rivals are left out.

    tgan_fast may have twice the error of the best eager contender.
    """
    x, dy, *others = tensors(case, device)
    exact = [t.detach().double().requires_grad_() for t in (x, *others)]
    groups = [F.batch_norm(group, None, None, *exact[1:3], True, eps=EPS) for group in exact[0].chunk(case.groups)]
    v = torch.cat(groups)
    # Gradients are 0 where rounding, also that of v before a residual is added, may decide on which side of a kink a
    # value falls.
    margin = 1e-4 + torch.finfo(case.dtype).eps / 2 * v.detach().abs()
    if case.residual:
        v = v + exact[3]
    for kink in KINKS[case.activation]:
        dy.masked_fill_((v.detach() - kink).abs() < margin, 0)
    y = activate_(v, case)
    expected = y.detach(), *torch.autograd.grad(y, exact, dy.double())
    del groups, margin, v, y

    def both_passes(make):
        problem = make(x, dy, *others)
        parts, gradients = len(problem.xs), problem.backward()
        dxs, affine, dresiduals = gradients[:parts], gradients[parts : parts + 2], gradients[parts + 2 :]
        y = torch.cat([part.detach() for part in problem.ys])
        return y, torch.cat(dxs), *affine, *([torch.cat(dresiduals)] if dresiduals else [])

    def errors_of(got):
        triples = zip(RESULTS[: len(expected)], got, expected, strict=True)
        return {name: accuracy.relative([a], [b]) for name, a, b in triples}

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
        # A set holds x and y, or x and dy, and perhaps a residual.
        drawn = [tensors(case, run.device) for _ in range(run.input_set_count((2 + case.residual) * case.nbytes))]
        input_sets = [{name: makers[name](*of_set) for name in errors} for of_set in drawn]
        for part, passes in case.passes.items():
            calls = {name: lambda problems, name=name, part=part: getattr(problems[name], part)() for name in errors}
            timings = run.measure(calls, input_sets, rivals=errors.keys() - {OURS})
            work = Work(0, passes * case.nbytes)
            rows += run.rows(timings, part, work, more=lambda name: {"error": errors.get(name)})
    dtype = str(case.dtype).removeprefix("torch.")
    return {**case._asdict(), "dtype": dtype, "input_sets": len(input_sets), "timings": rows, "left_out": left_out}


def calls_for(run: Run, case: Case) -> dict[str, Callable]:
    """Return functions that make the calls, by part and contender."""

    def maker(part, make):
        if case.compiled:
            torch.compiler.reset()  # because PyTorch limits how often a function is compiled
        with torch._functorch.config.patch(donated_buffer=False):
            problem = make(*tensors(case, run.device))
            problem.backward()
        return getattr(problem, part)

    makers = makers_for(case, run.device).items()
    return {f"{part} {name}": partial(maker, part, make) for part in PASSES for name, make in makers}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals; on a GPU they concern images, the model's largest tensors, and residuals."""
    if device == "cpu":
        return _goals_on_cpu(records)
    largest, goals = str(images(64)[0]), []
    kinds = {
        "every image": {str(case) for case in GPU_CASES if case.name == "image"},
        "every ResNet-50 batch norm with a residual": {str(case) for case in GPU_CASES if case.residual},
    }
    rows = [(record["case"], row) for record in records for row in record["timings"]]
    for part in PASSES:
        share = next((row["share_of_floor"] for case, row in rows if case == largest and row["part"] == part), None)
        goals.append(Goal(f"of a copy's rate, {part} of {largest}", share, 0.85, at_most=False))
    for kind, cases in kinds.items():
        for part in PASSES:
            of_part = [(case, row) for case, row in rows if case in cases and row["part"] == part]
            rivals = [(case, row["ratio"]) for case, row in of_part if OURS not in row["contender"]]
            lead = min(ratio for _, ratio in rivals) if {case for case, _ in rivals} == cases else None
            goals.append(Goal(f"times as fast as the fastest rival, {part} of {kind}", lead, 1, at_most=False))
    return goals


def _goals_on_cpu(records):
    def is_image(record):
        return record["name"] in ("image", "discriminator")

    def is_vector(record, dimensions):
        return record["name"] == "vector" and len(record["shape"]) == dimensions

    def has_residual(record):
        return record["residual"]

    goals, residual = [], "every ResNet-50 batch norm with a residual"
    for text, matches, parts, bound in (
        ("forward of every image and discriminator", is_image, ["forward"], 1.3),
        ("backward of every image and discriminator", is_image, ["backward"], 1.8),
        ("every vector of a linear layer", partial(is_vector, dimensions=2), PASSES, 1.0),
        ("every vector of the temporal part", partial(is_vector, dimensions=3), PASSES, 0.9),
        (f"forward of {residual}", has_residual, ["forward"], 1.15),
        (f"backward of {residual}", has_residual, ["backward"], 1.15),
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
    title="batch norm + residual + activation in training; error: relative to float64, of y and of each gradient",
    cases=cases_for,
    measure=measure,
    calls=calls_for,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
