"""Every convolution of both networks, forward and backward, with each algorithm of the package that fits it.

    python -m benchmarks.bench_convolutions --device cuda

FLOPs and bytes are those that the mathematics needs, not those of an algorithm. Some algorithms rearrange x, which
is part of their forward pass. The conclusion is what to change in `tgan_fast.ops.convolution.algorithms.TABLE`.
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
from benchmarks.result_files import rounded
from benchmarks.suite import Run, Section
from tgan_fast.ops.convolution.algorithms import DIRECT, TABLE, Algorithm, PerDirection, why_not
from tgan_fast.precision import arithmetic, compute_dtype, resolve_precision
from tgan_fast.sizes import scaled

ROUNDS = {"cpu": harness.FEWEST_ROUNDS, "cuda": None}
CHECKED_SAMPLES = 2
ROUNDINGS = 2  # allowed in addition, relative to a result's norm, since both results are rounded at the end
# The verdict is to change the table if another entry saves more than this share of the operation's time.
MARGIN = 0.03
# Runs of each direction in an iteration, on the batch of the layer: the generator runs twice forward and once backward,
# the discriminator on real and fake videos together, and once more on half as many, without gradients of its weights.
GENERATOR, DISCRIMINATOR, FIRST = PerDirection(2, 1, 1), PerDirection(1.5, 1.5, 1), PerDirection(1.5, 0.5, 1)
# In the order of the forward pass: operation, samples per video, channels of x and y, size of x.
LAYERS = {
    "temporal 1": ("conv_transpose1d_doubling", 1, 512, 256, (1,)),
    "temporal 2": ("conv_transpose1d_doubling", 1, 256, 128, (2,)),
    "temporal 3": ("conv_transpose1d_doubling", 1, 128, 128, (4,)),
    "temporal 4": ("conv_transpose1d_doubling", 1, 128, 100, (8,)),
    "deconvolution 1 of content": ("conv_transpose2d_doubling", 1, 256, 256, (4, 4)),
    "deconvolution 1": ("conv_transpose2d_doubling", 16, 256, 256, (4, 4)),
    "deconvolution 2": ("conv_transpose2d_doubling", 16, 256, 128, (8, 8)),
    "deconvolution 3": ("conv_transpose2d_doubling", 16, 128, 64, (16, 16)),
    "deconvolution 4": ("conv_transpose2d_doubling", 16, 64, 32, (32, 32)),
    "deconvolution 5": ("conv_transpose2d_same", 16, 32, 3, (64, 64)),
    "convolution 1": ("conv3d_halving", 2, 3, 64, (16, 64, 64)),
    "convolution 2": ("conv3d_halving", 2, 64, 128, (8, 32, 32)),
    "convolution 3": ("conv3d_halving", 2, 128, 256, (4, 16, 16)),
    "convolution 4": ("conv3d_two_frames", 2, 256, 512, (2, 8, 8)),
}


def _algorithms_of(operation: str) -> dict[str, Algorithm]:
    return importlib.import_module(f"tgan_fast.ops.convolution.{operation}").ALGORITHMS


def _entry_of(operation: str, device: str) -> PerDirection:
    return TABLE[operation].get(device, DIRECT)


class Layer(NamedTuple):
    """A convolution at its real sizes."""

    name: str
    operation: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    with_bias: bool
    runs: PerDirection

    @property
    def algorithms(self) -> dict[str, Algorithm]:
        """Return the algorithms in the table that can compute this, "direct" first."""
        used = {"direct", *itertools.chain.from_iterable(TABLE[self.operation].values())}
        tensors = [torch.empty(shape, device="meta") for shape in (self.x, self.weight)]
        return {
            name: algorithm
            for name, algorithm in _algorithms_of(self.operation).items()
            if name in used and why_not(algorithm, *tensors) is None
        }

    @property
    def flops(self) -> int:
        """Return the multiplications and additions of one direction."""
        places = self.x if "transpose" in self.operation else self.y
        # On an input of two frames, half of the kernel only reads padding.
        halves = 2 if self.operation == "conv3d_two_frames" else 1
        return 2 * math.prod((places[0], *places[2:])) * math.prod(self.weight) // halves

    def __str__(self):
        return self.name


class LayerInputs(NamedTuple):
    """A layer's tensors, with channels last in memory, and x as rearranged by each `Algorithm.prepare`."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    dy: torch.Tensor
    prepared: dict[Callable | None, torch.Tensor]


def layers_for(batch: int, width: float = 1.0) -> list[Layer]:
    """Return the layers of both networks."""
    layers = []
    for name, (operation, samples, *channels, size) in LAYERS.items():
        channels, out = (scaled(count, width) if count not in (3, 100) else count for count in channels)
        kernel = (3 if operation == "conv_transpose2d_same" else 4,) * len(size)
        weight = (channels, out, *kernel) if "transpose" in operation else (out, channels, *kernel)
        factor = 1 if operation == "conv_transpose2d_same" else 2 if "transpose" in operation else 0.5
        x, y = (batch * samples, channels, *size), (batch * samples, out, *(int(factor * extent) for extent in size))
        runs = FIRST if name == "convolution 1" else GENERATOR if "transpose" in operation else DISCRIMINATOR
        layers.append(Layer(name, operation, x, weight, y, operation != "conv_transpose2d_doubling", runs))
    return layers


def layer_inputs(layer: Layer, dtype: torch.dtype, device: str, samples: int | None = None) -> LayerInputs:
    """Return random tensors; weights are scaled so that y is about as large as x."""

    def random(shape, scale=1.0):
        values = torch.randn((shape[0], *shape[2:], *shape[1:2]), device=device).mul_(scale).to(dtype)
        return values.movedim(-1, 1) if len(shape) > 1 else values

    count = samples or layer.x[0]
    x = random((count, *layer.x[1:]))
    weight = random(layer.weight, (2 * math.prod(layer.y) / layer.flops) ** 0.5)
    bias = random(layer.y[1:2]) if layer.with_bias else None
    prepared = {each.prepare: each.prepare(x) if each.prepare else x for each in layer.algorithms.values()}
    return LayerInputs(x, weight, bias, random((count, *layer.y[1:])), prepared)


def directions_of(layer: Layer) -> dict[str, dict[str, Callable[[LayerInputs], list[torch.Tensor]]]]:
    """Return the algorithms of each direction as functions of a layer's inputs."""

    def forward(algorithm, feed):
        x = algorithm.prepare(feed.x) if algorithm.prepare else feed.x
        return [algorithm.forward(x, feed.weight, feed.bias)]

    def input_gradient(algorithm, feed):
        return [algorithm.input_gradient(feed.dy, feed.x, feed.weight)]

    def parameter_gradients(algorithm, feed):
        wanted, x = (True, feed.bias is not None), feed.prepared[algorithm.prepare]
        return algorithm.parameter_gradients(feed.dy, x, feed.weight, wanted)[: sum(wanted)]

    return {
        call.__name__: {name: partial(call, each) for name, each in layer.algorithms.items() if each[index]}
        for index, call in enumerate((forward, input_gradient, parameter_gradients))
    }


def check(layer: Layer, part: str, calls: dict[str, Callable], dtype: torch.dtype, device: str):
    """Return a direction's errors relative to float64, and why algorithms that the package does not use are left out.

    An algorithm may have twice the error of the library's algorithm.
    """
    feed = layer_inputs(layer, dtype, device, CHECKED_SAMPLES)
    x, weight, bias, dy = (None if t is None else t.double() for t in feed[:4])
    truth = calls["direct"](LayerInputs(x, weight, bias, dy, {None: x}))

    def allowed(_, errors):
        return 2 * errors["direct"] + ROUNDINGS * torch.finfo(dtype).eps

    others = calls.keys() - {"direct", getattr(_entry_of(layer.operation, device), part)}
    runs = {name: partial(call, feed) for name, call in calls.items()}
    return accuracy.check_contenders(f"{layer}: {part}", runs, partial(accuracy.relative, truth=truth), allowed, others)


def measure(run: Run, layer: Layer) -> dict:
    """Check and time one layer."""
    precision = resolve_precision("auto", torch.device(run.device))
    dtype = compute_dtype(precision, torch.float32)
    torch.manual_seed(0)
    rows, left_out = [], {}
    with arithmetic(precision), torch.no_grad():
        first = layer_inputs(layer, dtype, run.device)
        # Each direction reads or writes every tensor of its equation once.
        nbytes = first.x.nbytes + first.weight.nbytes + first.dy.nbytes
        count = run.input_set_count(nbytes)
        if run.device == "cpu":  # this many exceed the cache once, and a layer takes seconds
            count = max(1, count // 2)
        feeds = [first, *(layer_inputs(layer, dtype, run.device) for _ in range(count - 1))]
        for part, calls in directions_of(layer).items():
            # cuDNN would also measure its algorithms for the two samples of a check, which takes longer than the rest.
            torch.backends.cudnn.benchmark = False
            errors, refused = check(layer, part, calls, dtype, run.device)
            torch.backends.cudnn.benchmark = True
            left_out |= {f"{part} {name}": reason for name, reason in refused.items()}
            timings = run.measure({name: calls[name] for name in errors}, feeds, ROUNDS[run.device])
            bias = 0 if first.bias is None or part == "input_gradient" else first.bias.nbytes
            work = Work(layer.flops, nbytes + bias)
            rows += run.rows(timings, part, work, precision, lambda name, of=errors: {"error": of.get(name)})
    return {**layer._asdict(), "input_sets": count, "timings": rows, "left_out": left_out}


def iteration_seconds(record: dict, algorithms: PerDirection, key: str = "seconds") -> float:
    """Return a layer's time per iteration with these algorithms, or with "direct" where it lacks them."""
    seconds = {(row["part"], row["contender"]): row[key] for row in record["timings"]}
    parts = zip(record["runs"], PerDirection._fields, algorithms, strict=True)
    return sum(runs * seconds.get((part, name), seconds[part, "direct"]) for runs, part, name in parts)


def verdict_for(operation: str, layers: list[dict], device: str) -> dict:
    """Return the table's entry and the best one, with the times of the operation's layers, and whether they agree."""
    algorithms, entry = _algorithms_of(operation), _entry_of(operation, device)
    names = [[name for name, each in algorithms.items() if getattr(each, part)] for part in PerDirection._fields]
    candidates = [
        chosen
        for chosen in itertools.starmap(PerDirection, itertools.product(*names))
        # Gradients can only read a rearranged x from the forward pass of the same algorithm.
        if chosen.parameter_gradients == chosen.forward or algorithms[chosen.parameter_gradients].prepare is None
    ]

    def seconds(chosen, key="seconds"):
        return rounded(sum(iteration_seconds(layer, chosen, key) for layer in layers))

    best = min(candidates, key=seconds)  # ties go to the first, "direct": an algorithm that was left out has its time
    return {
        "operation": operation,
        "table": entry,
        "best": best,
        "table_seconds": seconds(entry),
        "best_seconds": seconds(best),
        "direct_seconds": seconds(DIRECT),
        "floor_seconds": seconds(DIRECT, "floor_seconds"),
        "agree": best == entry or seconds(best) > (1 - MARGIN) * seconds(entry),
    }


def conclude(run: Run, records: list[dict]) -> dict:
    """Return the verdicts on the table's entries."""
    layers = itertools.groupby(records, key=lambda record: record["operation"])
    verdicts = [verdict_for(operation, list(found), run.device) for operation, found in layers]
    return {"device_type": run.device, "verdicts": verdicts}


def conclusion(payload: dict) -> Iterator[str]:
    """Yield the verdicts as lines of a table."""
    verdicts, columns = payload["verdicts"], ("direct", "table", "best", "floor")
    yield f"{'ms in an iteration':30}" + "".join(f"{name:>10}" for name in columns)
    for verdict in verdicts:
        yield f"{verdict['operation']:30}" + "".join(f"{1e3 * verdict[f'{name}_seconds']:10.4f}" for name in columns)
    for verdict in verdicts:
        said = "agrees" if verdict["agree"] else f"should be {verdict['best']}"
        yield f"TABLE[{verdict['operation']!r}][{payload['device_type']!r}] {said}"


SECTION = Section(
    name="convolutions",
    title="every convolution of both networks by every algorithm; error: of a result's norm, against float64",
    cases=lambda run: layers_for(1, 1 / 16) if run.smoke else layers_for({"cpu": 4, "cuda": 32}[run.device]),
    measure=measure,
    details=lambda record: [f"  {record['operation']}, x {[*record['x']]}, weight {[*record['weight']]}"],
    conclude=conclude,
    conclusion=conclusion,
)

if __name__ == "__main__":
    suite.main(SECTION)
