"""Batch norm + activation in training, forward and backward, against eager PyTorch, cuDNN and torch.compile.

    python -m benchmarks.bench_batch_norm_act --device cuda

Every contender is first compared with the definition in float64. Then all take turns on the same random tensors. GB/s
count the bytes that two passes over the tensors need, whatever a contender really moves: forward reads x twice and
writes y, backward reads x and dy twice and writes dx.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch._functorch.config
import torch.nn.functional as F
import tyro

from benchmarks import harness
from tgan_fast.ops import batch_norm_act

EPS, MOMENTUM = 1e-5, 0.1
PASSES = {"forward": 3, "backward": 5}  # values moved for each of x
RESULTS = ("y", "dx", "dweight", "dbias")
# Whose numbers tgan_fast must match, and who may refuse a case.
EAGER = ("eager", "eager channels-last")
OPTIONAL = ("cudnn", "torch.compile")
# Relative to a tensor's norm; both sides of a comparison are rounded to float32 at best.
ROUNDING = 2 * torch.finfo(torch.float32).eps


class Case(NamedTuple):
    """A tensor to be normalised."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = True
    negative_slope: float = 0.0
    groups: int = 1
    compiled: bool = True  # torch.compile takes part

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
    """The batch norms of the generator's image part, for videos of 16 frames."""
    shapes = ((256, 8, 8), (128, 16, 16), (64, 32, 32), (32, 64, 64))
    return [Case("image", (16 * batch, *shape), dtype, **options) for shape in shapes]


def vectors(batch, dtype, **options) -> list[Case]:
    """The small batch norms of the generator: its temporal part and its two linear layers."""
    shapes = ((batch, 512, 1), (batch, 256, 2), (batch, 128, 4), (batch, 128, 8), (16 * batch, 4096), (batch, 4096))
    return [Case("vector", shape, dtype, channels_last=False, **options) for shape in shapes]


def discriminator(batch, dtype, **options) -> list[Case]:
    """The discriminator's batch norms, on real and fake videos in one tensor."""
    shapes = ((128, 4, 16, 16), (256, 2, 8, 8), (512, 1, 4, 4))
    options |= {"negative_slope": 0.2, "groups": 2}
    return [Case("discriminator", (2 * batch, *shape), dtype, **options) for shape in shapes]


def large(shapes, dtype) -> list[Case]:
    """As in networks other than TGAN."""
    return [Case("large", shape, dtype) for shape in shapes]


def cases_for(device, smoke) -> list[Case]:
    """What is measured. On a GPU torch.compile tunes itself for many seconds a case: batch 32 in bfloat16 must do."""
    if smoke:
        return [images(1, torch.float32, compiled=False)[0], discriminator(1, torch.float32, compiled=False)[1]]
    if device == "cpu":
        dtype = torch.float32
        return [*images(1, dtype), *discriminator(1, dtype), *vectors(2, dtype), *large([(2, 64, 56, 56)], dtype)]
    dtype = torch.bfloat16
    return [
        *images(32, dtype),
        *discriminator(32, dtype),
        *vectors(32, dtype),
        *large([(64, 256, 56, 56), (32, 64, 112, 112), (8, 64, 16, 64, 64)], dtype),
        *images(64, dtype, compiled=False),
        *vectors(64, dtype, compiled=False),
        *images(32, torch.float32, compiled=False),
        *images(32, dtype, channels_last=False, compiled=False)[1::2],
    ]


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

    def contender(operation, channels_last, parts):
        running = [fill(case.shape[1], device=device) for fill in (torch.zeros, torch.ones)]
        return Contender(operation, channels_last, parts, running)

    layout = case.channels_last, case.groups
    contenders = {"tgan_fast": contender(fast, case.channels_last, 1), "eager": contender(eager, False, case.groups)}
    if case.channels_last:
        contenders["eager channels-last"] = contender(eager, *layout)
    if device == "cuda":
        contenders["cudnn"] = contender(cudnn, *layout)
    if case.compiled:
        compiled = torch.compile(eager, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
        contenders["torch.compile"] = contender(compiled, *layout)
    return contenders


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


def tensors(case, affine, device) -> list[torch.Tensor]:
    """Random x and dy in the layout of the case."""
    last = (case.shape[0], *case.shape[2:], case.shape[1])
    x, dy = (torch.randn(last, device=device).to(case.dtype).movedim(-1, 1) for _ in range(2))
    # No gradient where rounding may decide on which side of the activation a value falls.
    v = definition(case, x.double(), *(vector.detach().double() for vector in affine))
    dy.masked_fill_(v.abs() < 1e-4, 0)
    return [laid_out(t, case.channels_last) for t in (x, dy)]


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


def check(case, contenders, affine, device) -> tuple[dict, dict]:
    """Relative errors against float64 of each contender, and why others are left out."""
    x, dy = tensors(case, affine, device)
    exact = [t.detach().double().requires_grad_() for t in (x, *affine)]
    v = definition(case, *exact)
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
        errors[name] = dict(zip(RESULTS, map(harness.rounded, norms), strict=True))
    _compare(case, errors)
    return errors, left_out


def _compare(case, errors):
    """Raise unless tgan_fast is about as accurate as the best of the eager contenders."""
    for result, error in errors["tgan_fast"].items():
        best = min(errors[name][result] for name in EAGER if name in errors)
        if not error <= 2 * best + ROUNDING:
            raise SystemExit(
                f"error: {case}: {result} of tgan_fast is off by {error:.1e} of its norm in float64, more than twice "
                f"the {best:.1e} of eager PyTorch: not timed"
            )


def time_both(contenders, inputs, affine, device, rounds) -> dict[str, dict[str, harness.Timing]]:
    """Timings of forward and of backward; `inputs` are the feeds of every rotating input set."""

    def forward_of(name):
        return lambda feeds: contenders[name].forward(feeds[name], affine)

    def backward_of(name):
        return lambda results: backward(*results[name], affine)

    forwards = {name: forward_of(name) for name in contenders}
    timings = {"forward": harness.measure(forwards, inputs, device, rounds)}
    results = [{name: (call(feeds), feeds[name]) for name, call in forwards.items()} for feeds in inputs]
    backwards = {name: backward_of(name) for name in contenders}
    timings["backward"] = harness.measure(backwards, results, device, rounds)
    return timings


def run(case, device, copy, smoke) -> dict:
    """Check and time one case; the record that goes into the file of results."""
    torch.compiler.reset()
    torch.manual_seed(0)
    affine = scale_and_shift(case, device)
    contenders = contenders_for(case, device)
    errors, left_out = check(case, contenders, affine, device)
    contenders = {name: contender for name, contender in contenders.items() if name in errors}
    nbytes = torch.Size(case.shape).numel() * case.dtype.itemsize
    count = 2 if smoke else harness.input_set_count(nbytes, device)
    inputs = [feeds_of(*tensors(case, affine, device), contenders) for _ in range(count)]
    timings = time_both(contenders, inputs, affine, device, rounds=2 if smoke else None)
    records = [
        {"contender": name, "pass": direction, **_figures(timing, PASSES[direction] * nbytes, timings[direction], copy)}
        for direction in PASSES
        for name, timing in timings[direction].items()
    ]
    return {
        **case._asdict(),
        "dtype": _name(case.dtype),
        "input_sets": count,
        "timings": records,
        "errors": errors,
        "left_out": left_out,
    }


def _figures(timing, nbytes, rivals, copy):
    """`ratio` is how many times as long as tgan_fast it takes."""
    return {
        **timing.record(),
        "gigabytes_per_second": harness.rounded(nbytes / timing.median / 1e9),
        "share_of_copy": harness.rounded(nbytes / timing.median / copy),
        "ratio": harness.rounded(timing.median / rivals["tgan_fast"].median),
    }


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def print_case(case, record) -> None:
    """Its lines of the table."""
    print(f"\n{case}, {record['input_sets']} input sets")
    for name in dict.fromkeys(timing["contender"] for timing in record["timings"]):
        cells = "".join(
            f"{1e3 * t['seconds']:11.4f}{t['gigabytes_per_second']:8.1f}{100 * t['share_of_copy']:5.0f} %"
            f"{t['ratio']:7.2f}"
            for t in record["timings"]
            if t["contender"] == name
        )
        errors = record["errors"].get(name, {}).values()
        print(f"  {name:20}{cells}   {' '.join(f'{error:.0e}' for error in errors)}")
    for name, reason in record["left_out"].items():
        print(f"  {name:20}left out: {reason}")
    for timing in record["timings"]:
        if timing["method"].startswith(harness.WITHOUT_GRAPH):
            print(f"  {timing['contender']:20}{timing['pass']} timed by {timing['method']}")


def main(device: Literal["cpu", "cuda"] = "cpu", smoke: bool = False) -> None:
    """Print a table and write it to benchmarks/results.

    Args:
        device: where to run.
        smoke: only show that everything runs, in some seconds, and write nothing.
    """
    # The compiled backward may not give away what it saved: it runs again and again.
    torch._functorch.config.donated_buffer = False
    copy = harness.copy_bandwidth(device)
    print(f"{harness.device_name(device)}, torch {torch.__version__}, copy {copy / 1e9:.0f} GB/s")
    print("ratio: how many times as long as tgan_fast; errors: of y, dx, dweight, dbias against float64")
    columns = f"{'ms':>11}{'GB/s':>8}{'copy':>7}{'ratio':>7}"
    print(f"{'':22}{'forward':^33}{'backward':^33}\n{'':22}{columns}{columns}   errors")

    def run_case(case):
        with harness.side_stream(device):
            return run(case, device, copy, smoke)

    cases, common = cases_for(device, smoke), {"copy_bytes_per_second": harness.rounded(copy)}
    harness.record_cases("batch_norm_act", cases, run_case, print_case, device, write=not smoke, **common)


if __name__ == "__main__":
    tyro.cli(main)
