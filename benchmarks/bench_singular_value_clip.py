"""Singular value clipping of TGAN's discriminator, against torch.linalg.svd and the eigenvalues of the Gram matrix.

    python -m benchmarks.bench_singular_value_clip --device cuda

Every contender first clips the same weights as the definition in float64 does. Then all take turns, in place, as in
training. A clipped weight clipped again is another and cheaper problem: fewer polynomials, perhaps nothing to change.
So each turn begins with fresh weights, copied outside of what is timed; a copy within it would cost a tenth of the
0.3 ms that are the goal, and leave the weights in the cache.
"""

import functools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness
from benchmarks.harness import NOT_MEASURED, Goal
from tgan_fast import reference
from tgan_fast.ops import BackendError, singular_value_clip_
from tgan_fast.ops.singular_value_clip import choose

Clip = Callable[[list[torch.Tensor]], None]  # in place

FIVE = "all five"
DISCRIMINATOR = ((64, 192), (128, 4096), (256, 8192), (512, 16384), (1, 8192))
LARGE = ((1024, 8192), (2048, 8192))
STATES = ("gaussian", "training")
DRIVERS = {"cpu": (None,), "cuda": (None, "gesvd", "gesvdj", "gesvda")}
# Of the Gaussian weights, about.
LARGEST_SINGULAR_VALUE = 1.4
CLIP_INTERVAL, LEARNING_RATE = 5, 5e-5
# Seconds that a contender may take in a case, unless it needs more for the fewest rounds.
SECONDS = {"cpu": 20, "cuda": 2}
FEWEST_ROUNDS = 3
# Of a weight's norm. A driver of torch.linalg.svd that is off by more does something else; float32 allows 1e-6.
TOLERANCE = 1e-4
# Both sides of a comparison are rounded to float32 at best.
ROUNDING = 2 * torch.finfo(torch.float32).eps


class Case(NamedTuple):
    """Weights that are clipped in one call."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    state: str

    def __str__(self):
        return f"{self.name} {' '.join(f'{rows}×{columns}' for rows, columns in self.shapes)}, {self.state}"


class Inputs(NamedTuple):
    """Weights, and what they are before they are clipped."""

    weights: list[torch.Tensor]
    fresh: list[torch.Tensor]


class Probe(NamedTuple):
    """What a contender does on a GPU, apart from its time."""

    launches: dict[str, int | None]  # kernels of one call, by case
    refusal: str | None  # why it cannot be captured in a CUDA graph


class Accuracy(NamedTuple):
    """Of the worst of a case's weights, against the definition in float64."""

    error: float  # relative to the weight's norm
    excess: float  # largest singular value − 1


def cases_for(device, smoke) -> list[Case]:
    """What is measured, the most important first."""
    if smoke:
        return [Case("small", ((6, 20), (1, 9)), state) for state in STATES]
    cases = [Case(FIVE, DISCRIMINATOR, state) for state in STATES]
    cases += [Case("alone", (shape,), state) for shape in DISCRIMINATOR for state in STATES]
    # An SVD of these takes seconds.
    return cases if device == "cpu" else cases + [Case("large", (shape,), "gaussian") for shape in LARGE]


def contenders_for(device) -> dict[str, Clip]:
    """The package's own by the names of their backends; torch.linalg.svd by those of its drivers."""

    def by_backend(backend):
        return lambda weights: singular_value_clip_(weights, backend=backend)

    def by_svd(driver):
        def clip(weights):
            for weight in weights:
                u, s, vh = torch.linalg.svd(weight, full_matrices=False, driver=driver)
                weight.copy_((u * s.clamp(max=1)) @ vh)

        return clip

    backends = ("auto", "eigh", "gemm", *(("cuda",) if device == "cuda" else ()))
    drivers = {_svd_name(driver): by_svd(driver) for driver in DRIVERS[device]}
    return {backend: by_backend(backend) for backend in backends} | drivers


def _svd_name(driver):
    return "svd" if driver is None else f"svd {driver}"


def is_svd(name) -> bool:
    """Whether a contender is torch.linalg.svd."""
    return name.startswith("svd")


def replayed(name) -> str:
    """The name under which a contender's CUDA graph is timed."""
    return f"{name} replayed"


def make_inputs(case, device) -> Inputs:
    """Random weights in the state of the case."""
    fresh = [random_weight(shape, case.state, device) for shape in case.shapes]
    return Inputs([weight.clone() for weight in fresh], fresh)


def random_weight(shape, state, device) -> torch.Tensor:
    """Gaussian; or clipped, and then moved by RMSprop's steps until the next clipping, all in the same direction.

    Those of a single row may leave it within the threshold.
    """
    rows, columns = shape
    weight = torch.randn(shape, device=device) * (LARGEST_SINGULAR_VALUE / (rows**0.5 + columns**0.5))
    if state == "training":
        weight = reference.clip_singular_values(weight)
        weight += CLIP_INTERVAL * LEARNING_RATE * torch.randn_like(weight).sign()
    return weight


def restore(inputs) -> None:
    """Make the weights what they were before they were clipped."""
    for weight, fresh in zip(*inputs, strict=True):
        weight.copy_(fresh)


def probe(name, cases) -> Probe:
    """Count a contender's kernels and try to capture it, in a process of its own.

    A profiler slows down what is launched after it, and after a failed capture PyTorch's allocator and random numbers
    are unusable.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        counted = process.submit(count_launches, name, cases)
        tried = process.submit(try_to_capture, name)
    launches = dict.fromkeys(map(str, cases)) if counted.exception() else counted.result()
    return Probe(launches, harness.first_line(tried.exception()) if tried.exception() else tried.result())


def count_launches(name, cases) -> dict[str, int | None]:
    """Kernels in one call, by case; None where the contender cannot run, or where the profiler may not look."""
    clip = contenders_for("cuda")[name]
    clip(make_inputs(cases_for("cuda", smoke=True)[0], "cuda").weights)  # loads the libraries
    counts = {}
    for case in cases:
        weights = make_inputs(case, "cuda").weights
        try:
            counts[str(case)] = _kernels_in(lambda weights=weights: clip(weights)) or None
        except RuntimeError:
            counts[str(case)] = None
    return counts


def _kernels_in(call):
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return sum(event.get("cat") == "kernel" for event in events)


def try_to_capture(name) -> str | None:
    """None if a CUDA graph of the contender computes the same as a plain call, or why not."""
    inputs = make_inputs(cases_for("cuda", smoke=True)[0], "cuda")
    clip = contenders_for("cuda")[name]
    clip(inputs.weights)
    expected = [weight.clone() for weight in inputs.weights]
    calls = {name: lambda inputs: clip(inputs.weights)}
    method = harness.measure(calls, [inputs], "cuda", FEWEST_ROUNDS, prepare=restore)[name].method
    if method.startswith(harness.WITHOUT_GRAPH):
        return method.removeprefix(f"{harness.WITHOUT_GRAPH}: ")
    same = all(
        (got - wanted).norm() <= ROUNDING * wanted.norm() for got, wanted in zip(inputs.weights, expected, strict=True)
    )
    return None if same else "its replay computes something else"


def check(case, contenders, device) -> tuple[dict[str, Accuracy], dict[str, str]]:
    """How accurate each contender is, and why others are left out."""
    inputs = make_inputs(case, device)
    expected = [reference.clip_singular_values(weight.double().cpu()) for weight in inputs.fresh]
    found, left_out = {}, {}
    for name, clip in contenders.items():
        restore(inputs)
        try:
            _refuse_a_stand_in(name, inputs.weights)
            clip(inputs.weights)
            accuracy = accuracy_of(inputs.weights, expected)
        except RuntimeError as error:
            if name != "cuda" and not is_svd(name):
                raise
            left_out[name] = harness.first_line(error)
            continue
        if is_svd(name) and not accuracy.error <= TOLERANCE:
            left_out[name] = f"off by {accuracy.error:.1e} of the norm in float64"
        else:
            found[name] = accuracy
    _compare(case, found)
    return found, left_out


def _refuse_a_stand_in(name, weights):
    """Raise for a weight that "cuda" would hand to "gemm", which is a contender itself."""
    if name == "cuda" and set(choose(weights, name)) != {name}:
        raise BackendError("too large for it")


def accuracy_of(weights, expected) -> Accuracy:
    """Compare clipped weights, none with more rows than columns, with float64 on the CPU."""
    got = [weight.double().cpu() for weight in weights]
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True)]
    # In float64 the Gram matrix tells the largest singular value to 1e-15.
    largest = [torch.linalg.eigvalsh(matrix @ matrix.mT)[-1].sqrt().item() for matrix in got]
    return Accuracy(harness.rounded(max(errors)), harness.rounded(max(largest) - 1))


def _compare(case, found):
    """Raise unless what the package does is about as accurate as the best driver of torch.linalg.svd."""
    best = min((accuracy.error for name, accuracy in found.items() if is_svd(name)), default=0.0)
    for name, accuracy in found.items():
        if not is_svd(name) and not accuracy.error <= 2 * best + ROUNDING:
            raise SystemExit(
                f"error: {case}: {name} is off by {accuracy.error:.1e} of the norm in float64, more than twice the "
                f"{best:.1e} of torch.linalg.svd: not timed"
            )


def rounds_of(clip, inputs, sets, device) -> int:
    """Fewer for a contender of which one call takes long. Not its first call, which loads libraries."""
    restore(inputs)
    _wait_for(device)
    begin = time.perf_counter()
    clip(inputs.weights)
    _wait_for(device)
    affordable = int(SECONDS[device] / (sets * (time.perf_counter() - begin)))
    return min(harness.ROUNDS[device], max(FEWEST_ROUNDS, affordable))


def _wait_for(device):
    if device == "cuda":
        torch.cuda.synchronize()


def time_all(contenders, input_sets, device, probes, smoke) -> dict[str, harness.Timing]:
    """Timings of plain calls, and of the replays of those that can be captured."""
    sets = len(input_sets)
    rounds = {name: 2 if smoke else rounds_of(clip, input_sets[0], sets, device) for name, clip in contenders.items()}
    calls = {name: lambda inputs, clip=clip: clip(inputs.weights) for name, clip in contenders.items()}
    uncaptured = dict.fromkeys(calls, "a plain call")
    for name in contenders:
        if name in probes and probes[name].refusal is None:
            calls[replayed(name)], rounds[replayed(name)] = calls[name], rounds[name]
    return harness.measure(calls, input_sets, device, rounds, prepare=restore, uncaptured=uncaptured)


def run(case, device, copy, probes, smoke) -> dict:
    """Check and time one case; the record that goes into the file of results."""
    torch.manual_seed(0)
    contenders = contenders_for(device)
    accuracies, left_out = check(case, contenders, device)
    contenders = {name: clip for name, clip in contenders.items() if name in accuracies}
    nbytes = 4 * sum(rows * columns for rows, columns in case.shapes)
    count = 2 if smoke else harness.input_set_count(nbytes, device)
    input_sets = [make_inputs(case, device) for _ in range(count)]
    timings = time_all(contenders, input_sets, device, probes, smoke)
    rows = _rows(case, timings, accuracies, probes, seconds_an_iteration(device))
    return {
        **case._asdict(),
        "input_sets": count,
        "floor_seconds": harness.rounded(2 * nbytes / copy),  # every weight read once and written once
        "contenders": rows,
        "left_out": left_out,
        "goals": [goal.record() for goal in goals_for(case, device, rows)],
    }


def _rows(case, timings, accuracies, probes, iteration):
    """`speedup` is how many times as long the best driver of torch.linalg.svd takes."""
    best = min((timing.median for name, timing in timings.items() if is_svd(name)), default=None)
    replays = {replayed(name) for name in accuracies}
    return [
        {
            "contender": name,
            **_figures("", timing),
            **_figures("replay_", timings.get(replayed(name))),
            "speedup": None if best is None else harness.rounded(best / timing.median),
            "error": accuracies[name].error if name in accuracies else None,
            "excess": accuracies[name].excess if name in accuracies else None,
            "launches": probes[name].launches[str(case)] if name in probes else None,
            "share_of_iteration": _share(case, timing.median, iteration),
        }
        for name, timing in timings.items()
        if name not in replays
    ]


def _figures(prefix, timing):
    """None where there is no timing."""
    names = "seconds", "p10", "p90", "method"
    record = dict.fromkeys(names) if timing is None else timing.record()
    return {f"{prefix}{name}": value for name, value in record.items()}


def _share(case, seconds, iteration):
    return None if iteration is None or case.name != FIVE else harness.rounded(seconds / CLIP_INTERVAL / iteration)


def seconds_an_iteration(device) -> float | None:
    """Of training, from the section "step" of the device's results; None before it was measured."""
    path = harness.results_file(device)
    sections = json.loads(path.read_text())["sections"] if path.exists() else {}
    return sections.get("step", {}).get("seconds_an_iteration")


def goals_for(case, device, rows) -> list[Goal]:
    """What `auto` shall reach in a plain call."""
    if case.name != FIVE:
        return []
    rows = {row["contender"]: row for row in rows}
    auto = rows["auto"]
    if device == "cpu":
        return [
            Goal("times as fast as torch.linalg.svd", auto["speedup"], 4, at_most=False),
            Goal("times its error", harness.rounded(auto["error"] / rows["svd"]["error"]), 1, at_most=True),
        ]
    over_eigh = harness.rounded(rows["eigh"]["seconds"] / auto["seconds"])
    return [
        Goal("ms", harness.rounded(1e3 * auto["seconds"]), 0.3, at_most=True),
        Goal("times as fast as the best torch.linalg.svd", auto["speedup"], 800, at_most=False),
        Goal("times as fast as Gram + eigh", over_eigh, 60, at_most=False),
        Goal("launches", auto["launches"], 60, at_most=True),
        Goal("of an iteration, clipping every 5th", auto["share_of_iteration"], 0.02, at_most=True),
    ]


def print_probes(probes) -> None:
    """Which contenders cannot be captured."""
    for name, found in probes.items():
        if found.refusal is not None:
            print(f"  {name:12}no CUDA graph: {found.refusal}")


def print_case(case, record) -> None:
    """Its lines of the table."""
    print(f"\n{case}: {record['input_sets']} input sets, floor {1e3 * record['floor_seconds']:.4f} ms")
    for row in record["contenders"]:
        times = "".join(f"{1e3 * row[key]:11.4f}" for key in ("seconds", "p10", "p90"))
        replay = _cell(row["replay_seconds"] and 1e3 * row["replay_seconds"], "11.4f")
        accuracy = _cell(row["error"], "10.1e") + _cell(row["excess"], "11.1e")
        launches = _cell(row["launches"], "10")
        share = f"{NOT_MEASURED:>18}" if record["name"] == FIVE else ""
        if row["share_of_iteration"] is not None:
            share = f"{100 * row['share_of_iteration']:16.2f} %"
        print(f"  {row['contender']:12}{times}{replay}{_cell(row['speedup'], '10.2f')}{accuracy}{launches}{share}")
        # What could be captured once may not be so at this size.
        if (row["replay_method"] or "").startswith(harness.WITHOUT_GRAPH):
            print(f"  {row['contender']:12}replay timed by {row['replay_method']}")
    for name, reason in record["left_out"].items():
        print(f"  {name:12}left out: {reason}")
    for goal in record["goals"]:
        print(f"  {Goal(*(goal[name] for name in Goal._fields))}")


def _cell(value, form):
    """Blank where there is no value."""
    width = int(form.split(".")[0])
    return " " * width if value is None else f"{value:{form}}"


def main(device: Literal["cpu", "cuda"] = "cpu", smoke: bool = False) -> None:
    """Print a table and write it to benchmarks/results.

    Args:
        device: where to run.
        smoke: only show that everything runs, in some seconds, and write nothing.
    """
    cases = cases_for(device, smoke)
    copy = harness.copy_bandwidth(device)
    print(f"{harness.device_name(device)}, torch {torch.__version__}, copy {copy / 1e9:.0f} GB/s")
    probes = {name: probe(name, cases) for name in contenders_for(device)} if device == "cuda" else {}
    print_probes(probes)
    print(
        "ms of a plain call and of a CUDA graph's replay; times as fast as the best torch.linalg.svd; error and largest"
    )
    print("singular value − 1 in float64; kernels launched; share of a training iteration if every fifth clips")
    print(f"{'':14}{'ms':>11}{'p10':>11}{'p90':>11}{'replay':>11}{'speedup':>10}", end="")
    print(f"{'error':>10}{'max σ − 1':>11}{'launches':>10}{'of an iteration':>18}")
    common = {
        "copy_bytes_per_second": harness.rounded(copy),
        "not_captured": {name: found.refusal for name, found in probes.items() if found.refusal is not None},
    }
    run_case = functools.partial(run, device=device, copy=copy, probes=probes, smoke=smoke)
    harness.record_cases("singular_value_clip", cases, run_case, print_case, device, write=not smoke, **common)


if __name__ == "__main__":
    tyro.cli(main)
