"""Every convolution of both networks, forward and backward, in every form: which ones should stand in the table.

    python -m benchmarks.bench_convolutions --device cuda

Every form is first compared with float64, on two samples. Then the forms of a layer take turns on the same random
tensors, each pass by itself, in the precision of training. FLOPs and bytes are those that the mathematics needs,
whatever a form really computes. What forms make of x is a part of its own. At the end stands what to change in
`tgan_fast.ops.convolution.forms.TABLE`.
"""

import importlib
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from benchmarks import harness, suite
from benchmarks.ceilings import Work
from benchmarks.results import rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast.models.sizes import scaled
from tgan_fast.ops.convolution import forms
from tgan_fast.ops.convolution.forms import DIRECT, TABLE, Form, Passes
from tgan_fast.precision import Precision, arithmetic, compute_dtype, resolve_precision

BATCH = {"cpu": 4, "cuda": 32}
# What a CPU computes in some seconds; on a GPU as many as fit.
ROUNDS = {"cpu": harness.FEWEST_ROUNDS, "cuda": None}
SMOKE_WIDTH, SMOKE_BATCH = 1 / 16, 1
CHECKED_SAMPLES = 2
FRAMES = 16
PREPARE = "prepare"
# The table is to be changed where another entry is better by more than this share of the operation's time.
MARGIN = 0.03
# Of a result's norm: both sides of a comparison are rounded at the end.
ROUNDINGS = 2

# How often the passes run in an iteration, on the batch of the layer: the generator twice forward and once backward,
# the discriminator on real and fake videos together, and once more on half as many, then without gradients of its
# weights.
GENERATOR, DISCRIMINATOR, FIRST = Passes(2, 1, 1), Passes(1.5, 1.5, 1), Passes(1.5, 0.5, 1)


class Layer(NamedTuple):
    """A convolution at its real sizes."""

    name: str
    operation: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    with_bias: bool
    runs: Passes

    @property
    def forms(self) -> dict[str, Form]:
        """All of the operation that can compute this."""
        module = importlib.import_module(f"tgan_fast.ops.convolution.{self.operation}")
        tensors = [torch.empty(shape, device="meta") for shape in (self.x, self.weight)]
        return {name: form for name, form in module.FORMS.items() if forms.why_not(form, *tensors) is None}

    @property
    def out(self) -> int:
        return self.weight[1 if "transpose" in self.operation else 0]

    @property
    def flops(self) -> int:
        """Multiplications and additions of a pass."""
        if "transpose" in self.operation:
            return 2 * math.prod(self.x) * math.prod(self.weight[1:])
        # Of an input of two frames half of the kernel meets the padding.
        halves = 2 if self.operation == "conv3d_two_frames" else 1
        return 2 * self.x[0] * math.prod(size // 2 for size in self.x[2:]) * math.prod(self.weight) // halves

    def __str__(self):
        return self.name


class Feed(NamedTuple):
    """The tensors of a layer, the channels last in memory, and what each form has made of x."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    dy: torch.Tensor
    prepared: dict[str, torch.Tensor]


def cases_for(run: Run) -> list[Layer]:
    """What is measured: all layers, since an operation's entry in the table is of all of its layers."""
    return layers_for(SMOKE_BATCH, SMOKE_WIDTH) if run.smoke else layers_for(BATCH[run.device])


def layers_for(batch: int, width: float = 1.0) -> list[Layer]:
    """Those of both networks, in the order of the forward pass."""
    c512, c256, c128, c64, c32 = (scaled(channels, width) for channels in (512, 256, 128, 64, 32))
    latent, frames = 100, batch * FRAMES
    steps = ((c512, c256), (c256, c128), (c128, c128), (c128, latent))
    layers = [
        Layer(f"temporal {i + 1}", "conv_transpose1d_doubling", (batch, c, 2**i), (c, out, 4), True, GENERATOR)
        for i, (c, out) in enumerate(steps)
    ]
    images = ((batch, c256, c256, 4), (frames, c256, c256, 4), (frames, c256, c128, 8), (frames, c128, c64, 16))
    names = "deconvolution 1 of content", "deconvolution 1", "deconvolution 2", "deconvolution 3", "deconvolution 4"
    layers += [
        Layer(name, "conv_transpose2d_doubling", (n, c, size, size), (c, out, 4, 4), False, GENERATOR)
        for name, (n, c, out, size) in zip(names, (*images, (frames, c64, c32, 32)), strict=True)
    ]
    layers.append(
        Layer("deconvolution 5", "conv_transpose2d_same", (frames, c32, 64, 64), (c32, 3, 3, 3), True, GENERATOR)
    )
    videos = ((3, c64, 16, 64, FIRST), (c64, c128, 8, 32, DISCRIMINATOR), (c128, c256, 4, 16, DISCRIMINATOR))
    layers += [
        Layer(f"convolution {i}", "conv3d_halving", (2 * batch, c, t, size, size), (out, c, 4, 4, 4), True, runs)
        for i, (c, out, t, size, runs) in enumerate(videos, 1)
    ]
    last = (2 * batch, c256, 2, 8, 8), (c512, c256, 4, 4, 4)
    return [*layers, Layer("convolution 4", "conv3d_two_frames", *last, True, DISCRIMINATOR)]


def feed_of(layer: Layer, dtype: torch.dtype, device: str, samples: int | None = None) -> Feed:
    """Random tensors; weights of such a size that y is about as large as x."""
    x = _random((samples or layer.x[0], *layer.x[1:]), dtype, device)
    fan = layer.flops / 2 / math.prod(_y_shape(layer))
    weight = _random(layer.weight, dtype, device, fan**-0.5)
    bias = _random((layer.out,), dtype, device) if layer.with_bias else None
    dy = _random((len(x), *_y_shape(layer)[1:]), dtype, device)
    prepared = {name: form.prepare(x) for name, form in layer.forms.items() if form.prepare is not None}
    return Feed(x, weight, bias, dy, prepared)


def _random(shape, dtype, device, scale=1.0):
    last = (shape[0], *shape[2:], shape[1]) if len(shape) > 1 else shape
    values = torch.randn(last, device=device).mul_(scale).to(dtype)
    return values.movedim(-1, 1) if len(shape) > 1 else values


def _y_shape(layer):
    factor = {"conv_transpose2d_same": 1, "conv3d_halving": 0.5, "conv3d_two_frames": 0.5}.get(layer.operation, 2)
    return (layer.x[0], layer.out, *(int(size * factor) for size in layer.x[2:]))


def contenders_for(layer: Layer) -> Passes:
    """For each pass the forms that have it, as functions of a feed."""
    contenders = Passes({}, {}, {})
    for name, form in layer.forms.items():
        if form.forward is not None:
            contenders.forward[name] = _forward(form)
        if form.input_gradient is not None:
            contenders.input_gradient[name] = lambda feed, form=form: form.input_gradient(feed.dy, feed.x, feed.weight)
        if form.parameter_gradients is not None:
            contenders.parameter_gradients[name] = _parameter_gradients(name, form)
    return contenders


def _forward(form):
    def forward(feed):
        prepared = feed.x if form.prepare is None else form.prepare(feed.x)
        return form.forward(prepared, feed.weight, feed.bias)

    return forward


def _parameter_gradients(name, form):
    """Without preparing x: forward in the same form has done that."""

    def gradients(feed):
        wanted = True, feed.bias is not None
        return form.parameter_gradients(feed.dy, feed.prepared.get(name, feed.x), feed.weight, wanted)

    return gradients


def check(layer: Layer, contenders: Passes, dtype: torch.dtype, device: str) -> tuple[dict[str, dict], dict[str, str]]:
    """Relative errors against float64 by pass and form, and why forms are left out."""
    feed = feed_of(layer, dtype, device, CHECKED_SAMPLES)
    exact = Feed(*(value if value is None or isinstance(value, dict) else value.double() for value in feed))
    errors, left_out = {}, {}
    for which, calls in zip(Passes._fields, contenders, strict=True):
        truth = _tensors(calls["direct"](exact))
        errors[which] = {}
        for name, call in list(calls.items()):
            try:
                results = _tensors(call(feed))
            except RuntimeError as error:
                if name == "direct":
                    raise
                left_out[f"{which} {name}"] = harness.first_line(error)
                del calls[name]
                continue
            pairs = zip(results, truth, strict=True)
            errors[which][name] = rounded(max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs))
        _compare(layer, which, errors[which], dtype)
    return errors, left_out


def _tensors(result):
    """What a pass returns, as a list without those that were not wanted."""
    return [tensor for tensor in (result if isinstance(result, tuple) else (result,)) if tensor is not None]


def _compare(layer, which, errors, dtype):
    """Raise unless every form is about as accurate as the library's convolution."""
    for name, error in errors.items():
        if not error <= 2 * errors["direct"] + ROUNDINGS * torch.finfo(dtype).eps:
            raise SystemExit(
                f"error: {layer}: {which} in the form {name!r} is off by {error:.1e} of its norm in float64, more than "
                f"twice the {errors['direct']:.1e} of the library's convolution: nothing is timed"
            )


def calls_for(layer: Layer, contenders: Passes) -> dict[str, dict]:
    """The functions of a feed that are timed, by part and form: the passes, and what forms make of x."""
    prepares = {
        name: lambda feed, form=form: form.prepare(feed.x)
        for name, form in layer.forms.items()
        if form.prepare is not None
    }
    return contenders._asdict() | ({PREPARE: prepares} if prepares else {})


def works_for(layer: Layer, feed: Feed) -> dict[str, Work]:
    """What the passes need: each reads or writes every tensor of its equation once."""
    parameters = sum(tensor.nbytes for tensor in (feed.weight, feed.bias) if tensor is not None)
    needed = {
        "forward": feed.x.nbytes + parameters + feed.dy.nbytes,
        "input_gradient": feed.dy.nbytes + feed.weight.nbytes + feed.x.nbytes,
        "parameter_gradients": feed.dy.nbytes + feed.x.nbytes + parameters,
    }
    return {which: Work(layer.flops, nbytes) for which, nbytes in needed.items()}


def input_set_count(run: Run, works: dict[str, Work]) -> int:
    """On a CPU half as many as elsewhere: they exceed the cache once, and a layer shall take seconds."""
    count = run.input_set_count(min(work.nbytes for work in works.values()))
    return count if run.device == "cuda" else max(1, count // 2)


def measure(run: Run, layer: Layer) -> dict:
    """Check and time one layer."""
    precision = precision_of(run)
    dtype = compute_dtype(precision, torch.float32)
    torch.manual_seed(0)
    contenders = contenders_for(layer)
    with arithmetic(precision), torch.no_grad():
        with _without_choosing_algorithms():
            errors, left_out = check(layer, contenders, dtype, run.device)
        first = feed_of(layer, dtype, run.device)
        works = works_for(layer, first)
        count = input_set_count(run, works)
        feeds = [first, *(feed_of(layer, dtype, run.device) for _ in range(count - 1))]
        timings = {
            part: run.measure(calls, feeds, ROUNDS[run.device]) for part, calls in calls_for(layer, contenders).items()
        }
    record = {
        **layer._asdict(),
        "dtype": str(dtype).removeprefix("torch."),
        "input_sets": count,
        "timings": [
            run.row(Label(name, part), timing, works.get(part), precision, error=errors.get(part, {}).get(name))
            for part, named in timings.items()
            for name, timing in named.items()
        ],
        "left_out": left_out,
    }
    return record | {"table": _of_layer(record, _entry(layer.operation, run.device)), "best": best([record])[0]}


def precision_of(run: Run) -> Precision:
    """That of training."""
    return resolve_precision("auto", torch.device(run.device))


def labels_for(run: Run, layer: Layer) -> list[Label]:
    """Of a layer's timings, whoever is left out."""
    calls = calls_for(layer, contenders_for(layer))
    return [Label(name, part) for part, named in calls.items() for name in (*named, harness.again(next(iter(named))))]


@contextmanager
def _without_choosing_algorithms() -> Iterator[None]:
    """cuDNN would measure its algorithms for the two samples of a check too, which takes longer than all the rest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def iteration_seconds(record: dict, passes: Passes) -> float:
    """What a layer takes in an iteration in these forms, with "direct" for those that it does not have."""
    seconds = {(timing["part"], timing["contender"]): timing["seconds"] for timing in record["timings"]}
    passes = _of_layer(record, passes)
    total = sum(
        runs * seconds[which, name] for runs, which, name in zip(record["runs"], Passes._fields, passes, strict=True)
    )
    if passes.parameter_gradients != passes.forward:
        total += record["runs"][2] * seconds.get((PREPARE, passes.parameter_gradients), 0.0)
    return total


def _of_layer(record, passes):
    """Those that the layer has, "direct" for the others."""
    measured = {(timing["part"], timing["contender"]) for timing in record["timings"]}
    named = zip(Passes._fields, passes, strict=True)
    return Passes(*(name if (which, name) in measured else "direct" for which, name in named))


def best(records: list[dict]) -> tuple[Passes, float]:
    """The forms in which layers take least, the same for all of them, and how long that is."""
    measured = [
        {t["contender"] for r in records for t in r["timings"] if t["part"] == which} for which in Passes._fields
    ]
    names = [sorted(name for name in column if not name.endswith("again")) for column in measured]
    candidates = (Passes(*choice) for choice in itertools.product(*names))
    seconds = {passes: sum(iteration_seconds(record, passes) for record in records) for passes in candidates}
    return min(seconds.items(), key=lambda item: item[1])


def verdicts_for(records: list[dict], device: str) -> list[dict]:
    """For every operation the entry of the table, the best one, and whether they agree."""
    verdicts = []
    for operation in dict.fromkeys(record["operation"] for record in records):
        of_operation = [record for record in records if record["operation"] == operation]
        entry = _entry(operation, device)
        seconds = sum(iteration_seconds(record, entry) for record in of_operation)
        winner, least = best(of_operation)
        verdicts.append(
            {
                "operation": operation,
                "table": entry,
                "best": winner,
                "table_seconds": rounded(seconds),
                "best_seconds": rounded(least),
                "direct_seconds": rounded(sum(iteration_seconds(record, DIRECT) for record in of_operation)),
                "floor_seconds": rounded(sum(map(_floor_seconds, of_operation))),
                "agree": winner == entry or least > (1 - MARGIN) * seconds,
            }
        )
    return verdicts


def _entry(operation, device):
    return TABLE[operation].get(device, DIRECT)


def _floor_seconds(record):
    """What a layer takes in an iteration at best."""
    floors = {row["part"]: row["floor_seconds"] for row in record["timings"] if row["part"] != PREPARE}
    return sum(runs * floors[which] for runs, which in zip(record["runs"], Passes._fields, strict=True))


def details(record: dict) -> Iterator[str]:
    """The layer's sizes, and its forms."""
    yield f"  {record['operation']}, x {list(record['x'])}, weight {list(record['weight'])}, {record['dtype']}"
    for text, passes in (("in the table", record["table"]), ("best", record["best"])):
        names = ", ".join(f"{which} {name}" for which, name in zip(Passes._fields, passes, strict=True))
        yield f"  {text:14}{names}"


def conclude(run: Run, records: list[dict]) -> dict:
    """What to change in the table."""
    batch = SMOKE_BATCH if run.smoke else BATCH[run.device]
    return {
        "device_type": run.device,
        "precision": precision_of(run),
        "batch_size": batch,
        "verdicts": verdicts_for(records, run.device),
    }


def conclusion(payload: dict) -> Iterator[str]:
    """The verdicts for people."""
    verdicts, device = payload["verdicts"], payload["device_type"]
    keys = "direct_seconds", "table_seconds", "best_seconds", "floor_seconds"
    yield "ms in an iteration, all layers of an operation together"
    yield f"  {'':28}{'direct':>10}{'table':>10}{'best':>10}{'floor':>10}"
    together = {"operation": "together", **{key: sum(verdict[key] for verdict in verdicts) for key in keys}}
    for verdict in (*verdicts, together):
        yield f"  {verdict['operation']:28}" + "".join(f"{1e3 * verdict[key]:10.4f}" for key in keys)
    for verdict in verdicts:
        said = "agrees" if verdict["agree"] else f"should be {verdict['best']}"
        yield f"TABLE[{verdict['operation']!r}][{device!r}] {said}"


SECTION = Section(
    name="convolutions",
    title="every convolution of both networks in every form; error: of a result's norm, against float64",
    cases=cases_for,
    measure=measure,
    details=details,
    conclude=conclude,
    conclusion=conclusion,
)

if __name__ == "__main__":
    suite.main(SECTION)
