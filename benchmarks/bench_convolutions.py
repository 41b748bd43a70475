"""Every convolution of both networks, forward and backward, by each algorithm that the package uses for it.

    python -m benchmarks.bench_convolutions --device cuda

Every algorithm is first compared with float64, on two samples. Then the algorithms of a layer take turns on the same
random tensors, each pass by itself, in the precision of training. FLOPs and bytes are those that the mathematics needs,
whatever an algorithm computes. The conclusion is what to change in `tgan_fast.ops.convolution.forms.TABLE`.

Some algorithms rearrange x. That is part of their forward pass, which keeps the result for the parameters' gradients.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from benchmarks import accuracy, harness, suite
from benchmarks.ceilings import Work
from benchmarks.results import rounded
from benchmarks.suite import Run, Section
from tgan_fast.models.sizes import scaled
from tgan_fast.ops.convolution.forms import DIRECT, TABLE, Form, Passes, why_not
from tgan_fast.precision import arithmetic, compute_dtype, resolve_precision

BATCH = {"cpu": 4, "cuda": 32}
ROUNDS = {"cpu": harness.FEWEST_ROUNDS, "cuda": None}
SMOKE_WIDTH, SMOKE_BATCH = 1 / 16, 1
CHECKED_SAMPLES = 2
ROUNDINGS = 2  # of a result's norm: both sides of a comparison are rounded at the end
# The table is to be changed where another entry is better by more than this share of the operation's time.
MARGIN = 0.03
# Runs of the passes in an iteration, on the batch of the layer: the generator runs twice forward and once backward, the
# discriminator on real and fake videos together, and once more on half as many, then without gradients of its weights.
GENERATOR, DISCRIMINATOR, FIRST = Passes(2, 1, 1), Passes(1.5, 1.5, 1), Passes(1.5, 0.5, 1)
SEQUENCE, IMAGE, SAME, VIDEO, TWO_FRAMES = (
    "conv_transpose1d_doubling", "conv_transpose2d_doubling", "conv_transpose2d_same", "conv3d_halving",
    "conv3d_two_frames",
)  # fmt: skip
# In the order of the forward pass: operation, samples for each of the batch, channels of x and y, size of x.
LAYERS = {
    "temporal 1": (SEQUENCE, 1, 512, 256, (1,)),
    "temporal 2": (SEQUENCE, 1, 256, 128, (2,)),
    "temporal 3": (SEQUENCE, 1, 128, 128, (4,)),
    "temporal 4": (SEQUENCE, 1, 128, 100, (8,)),
    "deconvolution 1 of content": (IMAGE, 1, 256, 256, (4, 4)),
    "deconvolution 1": (IMAGE, 16, 256, 256, (4, 4)),
    "deconvolution 2": (IMAGE, 16, 256, 128, (8, 8)),
    "deconvolution 3": (IMAGE, 16, 128, 64, (16, 16)),
    "deconvolution 4": (IMAGE, 16, 64, 32, (32, 32)),
    "deconvolution 5": (SAME, 16, 32, 3, (64, 64)),
    "convolution 1": (VIDEO, 2, 3, 64, (16, 64, 64)),
    "convolution 2": (VIDEO, 2, 64, 128, (8, 32, 32)),
    "convolution 3": (VIDEO, 2, 128, 256, (4, 16, 16)),
    "convolution 4": (TWO_FRAMES, 2, 256, 512, (2, 8, 8)),
}


class Layer(NamedTuple):
    """A convolution at its real sizes."""

    name: str
    operation: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    with_bias: bool
    runs: Passes

    @property
    def algorithms(self) -> dict[str, Form]:
        """Those in the table that can compute this, "direct" first."""
        found = importlib.import_module(f"tgan_fast.ops.convolution.{self.operation}").FORMS
        used = {"direct", *itertools.chain.from_iterable(TABLE[self.operation].values())}
        tensors = [torch.empty(shape, device="meta") for shape in (self.x, self.weight)]
        return {name: form for name, form in found.items() if name in used and why_not(form, *tensors) is None}

    @property
    def flops(self) -> int:
        """Multiplications and additions of a pass."""
        places = self.x if "transpose" in self.operation else self.y
        # Of an input of two frames half of the kernel meets the padding.
        halves = 2 if self.operation == TWO_FRAMES else 1
        return 2 * math.prod((places[0], *places[2:])) * math.prod(self.weight) // halves

    def __str__(self):
        return self.name


class Feed(NamedTuple):
    """A layer's tensors, with channels last in memory, and x as the algorithms rearrange it."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    dy: torch.Tensor
    prepared: dict[str, torch.Tensor]


def layers_for(batch: int, width: float = 1.0) -> list[Layer]:
    """Return the layers of both networks."""
    layers = []
    for name, (operation, samples, *channels, size) in LAYERS.items():
        channels, out = (scaled(count, width) if count not in (3, 100) else count for count in channels)
        kernel = (3 if operation == SAME else 4,) * len(size)
        weight = (channels, out, *kernel) if "transpose" in operation else (out, channels, *kernel)
        factor = 1 if operation == SAME else 2 if "transpose" in operation else 0.5
        x, y = (batch * samples, channels, *size), (batch * samples, out, *(int(factor * extent) for extent in size))
        runs = FIRST if name == "convolution 1" else GENERATOR if "transpose" in operation else DISCRIMINATOR
        layers.append(Layer(name, operation, x, weight, y, operation != IMAGE, runs))
    return layers


def feed_of(layer: Layer, dtype: torch.dtype, device: str, samples: int | None = None) -> Feed:
    """Return random tensors; weights of such a size that y is about as large as x."""

    def random(shape, scale=1.0):
        values = torch.randn((shape[0], *shape[2:], *shape[1:2]), device=device).mul_(scale).to(dtype)
        return values.movedim(-1, 1) if len(shape) > 1 else values

    count = samples or layer.x[0]
    x = random((count, *layer.x[1:]))
    weight = random(layer.weight, (2 * math.prod(layer.y) / layer.flops) ** 0.5)
    bias = random(layer.y[1:2]) if layer.with_bias else None
    prepared = {name: form.prepare(x) for name, form in layer.algorithms.items() if form.prepare is not None}
    return Feed(x, weight, bias, random((count, *layer.y[1:])), prepared)


def calls_for(layer: Layer) -> dict[str, dict[str, Callable[[Feed], list[torch.Tensor]]]]:
    """Return for each pass the algorithms that have it, as functions of a feed."""

    def forward(form, feed):
        return [form.forward(feed.x if form.prepare is None else form.prepare(feed.x), feed.weight, feed.bias)]

    def input_gradient(form, feed):
        return [form.input_gradient(feed.dy, feed.x, feed.weight)]

    def parameter_gradients(name, form, feed):
        wanted = True, feed.bias is not None
        return form.parameter_gradients(feed.dy, feed.prepared.get(name, feed.x), feed.weight, wanted)[: sum(wanted)]

    forms = layer.algorithms.items()
    return {
        "forward": {name: partial(forward, form) for name, form in forms if form.forward},
        "input_gradient": {name: partial(input_gradient, form) for name, form in forms if form.input_gradient},
        "parameter_gradients": {
            name: partial(parameter_gradients, name, form) for name, form in forms if form.parameter_gradients
        },
    }


def check(layer: Layer, part: str, calls: dict[str, Callable], dtype: torch.dtype, device: str):
    """Return the errors of a pass relative to float64, and why algorithms that the package does not use are left out.

    An algorithm may have twice the error of the library's.
    """
    feed = feed_of(layer, dtype, device, CHECKED_SAMPLES)
    truth = calls["direct"](Feed(*(t.double() if isinstance(t, torch.Tensor) else t for t in feed)))

    def error_of(got):
        pairs = zip(got, truth, strict=True)
        return rounded(max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs))

    def allowed(_, errors):
        return 2 * errors["direct"] + ROUNDINGS * torch.finfo(dtype).eps

    used = {"direct", getattr(_entry(layer.operation, device), part)}
    runs = {name: partial(call, feed) for name, call in calls.items()}
    return accuracy.check(f"{layer}: {part}", runs, error_of, allowed, calls.keys() - used)


def measure(run: Run, layer: Layer) -> dict:
    """Check and time one layer."""
    precision = resolve_precision("auto", torch.device(run.device))
    dtype = compute_dtype(precision, torch.float32)
    torch.manual_seed(0)
    rows, left_out = [], {}
    with arithmetic(precision), torch.no_grad():
        first = feed_of(layer, dtype, run.device)
        # Each pass reads or writes every tensor of its equation once.
        nbytes = first.x.nbytes + first.weight.nbytes + first.dy.nbytes
        count = run.input_set_count(nbytes)
        if run.device == "cpu":  # so many exceed the cache once, and a layer takes seconds
            count = max(1, count // 2)
        feeds = [first, *(feed_of(layer, dtype, run.device) for _ in range(count - 1))]
        for part, calls in calls_for(layer).items():
            # cuDNN would also measure its algorithms for the two samples of a check, which takes longer than the rest.
            torch.backends.cudnn.benchmark = False
            errors, wrong = check(layer, part, calls, dtype, run.device)
            torch.backends.cudnn.benchmark = True
            left_out |= {f"{part} {name}": reason for name, reason in wrong.items()}
            timings = run.measure({name: calls[name] for name in errors}, feeds, ROUNDS[run.device])
            bias = 0 if first.bias is None or part == "input_gradient" else first.bias.nbytes
            work = Work(layer.flops, nbytes + bias)
            rows += run.rows(timings, part, work, precision, lambda name, of=errors: {"error": of.get(name)})
    sizes = {**layer._asdict(), "dtype": str(dtype).removeprefix("torch.")}
    return {**sizes, "input_sets": count, "timings": rows, "left_out": left_out}


def iteration_seconds(record: dict, passes: Passes) -> float:
    """Return a layer's time in an iteration with these algorithms, or "direct" where it does not have them."""
    seconds = {(row["part"], row["contender"]): row["seconds"] for row in record["timings"]}
    parts = zip(record["runs"], Passes._fields, passes, strict=True)
    return sum(runs * seconds.get((part, name), seconds[part, "direct"]) for runs, part, name in parts)


def verdict_for(operation: str, layers: list[dict], device: str) -> dict:
    """Return the entry of the table, the best one, the time of all layers of the operation, and whether they agree."""
    rows = [row for layer in layers for row in layer["timings"] if not row["contender"].endswith("again")]
    names = [sorted({row["contender"] for row in rows if row["part"] == part}) for part in Passes._fields]
    forms = importlib.import_module(f"tgan_fast.ops.convolution.{operation}").FORMS
    candidates = [
        passes
        for passes in itertools.starmap(Passes, itertools.product(*names))
        # The gradients can only read a rearranged x that their own algorithm's forward pass has made.
        if passes.parameter_gradients == passes.forward or forms[passes.parameter_gradients].prepare is None
    ]

    def seconds(passes):
        return sum(iteration_seconds(layer, passes) for layer in layers)

    best, entry = min(candidates, key=seconds), _entry(operation, device)
    floors = [{row["part"]: row["floor_seconds"] for row in layer["timings"]} for layer in layers]
    runs = [dict(zip(Passes._fields, layer["runs"], strict=True)) for layer in layers]
    floor = sum(count * of[part] for of, by_part in zip(floors, runs, strict=True) for part, count in by_part.items())
    times = {"table": seconds(entry), "best": seconds(best), "direct": seconds(DIRECT), "floor": floor}
    return {
        "operation": operation,
        "table": entry,
        "best": best,
        **{f"{name}_seconds": rounded(value) for name, value in times.items()},
        "agree": best == entry or times["best"] > (1 - MARGIN) * times["table"],
    }


def _entry(operation, device):
    return TABLE[operation].get(device, DIRECT)


def conclude(run: Run, records: list[dict]) -> dict:
    """Return what to change in the table."""
    layers = {}
    for record in records:
        layers.setdefault(record["operation"], []).append(record)
    verdicts = [verdict_for(operation, found, run.device) for operation, found in layers.items()]
    return {"device_type": run.device, "verdicts": verdicts}


def conclusion(payload: dict) -> Iterator[str]:
    """Yield the verdicts for people."""
    verdicts, columns = payload["verdicts"], ("direct", "table", "best", "floor")
    together = {f"{name}_seconds": sum(verdict[f"{name}_seconds"] for verdict in verdicts) for name in columns}
    yield f"{'ms in an iteration':30}" + "".join(f"{name:>10}" for name in columns)
    for verdict in (*verdicts, {"operation": "together"} | together):
        yield f"{verdict['operation']:30}" + "".join(f"{1e3 * verdict[f'{name}_seconds']:10.4f}" for name in columns)
    for verdict in verdicts:
        said = "agrees" if verdict["agree"] else f"should be {verdict['best']}"
        yield f"TABLE[{verdict['operation']!r}][{payload['device_type']!r}] {said}"


SECTION = Section(
    name="convolutions",
    title="every convolution of both networks by every algorithm; error: of a result's norm, against float64",
    cases=lambda run: layers_for(SMOKE_BATCH, SMOKE_WIDTH) if run.smoke else layers_for(BATCH[run.device]),
    measure=measure,
    details=lambda record: [f"  {record['operation']}, x {[*record['x']]}, weight {[*record['weight']]}"],
    conclude=conclude,
    conclusion=conclusion,
)

if __name__ == "__main__":
    suite.main(SECTION)
