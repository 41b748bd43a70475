"""Singular value clipping of TGAN's discriminator, against torch.linalg.svd and the eigenvalues of the Gram matrix.

    python -m benchmarks.bench_singular_value_clip --device cuda

Every contender first clips the same weights as the definition in float64 does. Then all take turns, in place, as in
training. A clipped weight clipped again is another and cheaper problem: fewer polynomials, perhaps nothing to change.
So each turn begins with fresh weights, copied outside of what is timed; a copy within it would cost a tenth of the
0.3 ms that are the goal, and leave the weights in the cache.

"eigh" is the package's backend; "Gram + eigh" is how one would write it in plain PyTorch, in float32.
"""

import functools
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness, results, suite
from benchmarks.ceilings import Work
from benchmarks.harness import Timing
from benchmarks.results import Goal, rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast import reference
from tgan_fast.ops import BackendError, singular_value_clip, singular_value_clip_
from tgan_fast.ops.singular_value_clip import choose

Clip = Callable[[list[torch.Tensor]], None]  # in place

FIVE = "all five"
DISCRIMINATOR = ((64, 192), (128, 4096), (256, 8192), (512, 16384), (1, 8192))
# rows² · columns, by which an SVD grows, is no more than that of 512×16384.
LARGE = {"cpu": (640, 2048), "cuda": (1024, 4096)}
STATES = ("gaussian", "training")
GRAM = "Gram + eigh"
DRIVERS = {"cpu": (None,), "cuda": (None, "gesvd", "gesvdj", "gesvda")}
MOST_ROWS_OF_GEMM = 256  # on a CPU, where it takes longest
CALL, REPLAY = "call", "replay"  # a plain call, and the replay of a CUDA graph
# Of the Gaussian weights, about.
LARGEST_SINGULAR_VALUE = 1.4
CLIP_INTERVAL, LEARNING_RATE = 5, 5e-5
# Of a weight's norm. A rival that is off by more does something else; float32 allows 1e-6.
TOLERANCE = 1e-4
# Both sides of a comparison are rounded to float32 at best.
ROUNDING = 2 * torch.finfo(torch.float32).eps


class Case(NamedTuple):
    """Weights that are clipped in one call."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    state: str

    def __str__(self):
        return f"{self.name}, {self.state}"


SMOKE = [Case("small", ((6, 20), (1, 9)), state) for state in STATES]


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


def cases_for(run: Run) -> list[Case]:
    """What is measured, the most important first."""
    if run.smoke:
        return SMOKE
    rows, columns = LARGE[run.device]
    return [
        *(Case(FIVE, DISCRIMINATOR, state) for state in STATES),
        *(Case(f"alone {rows}×{columns}", ((rows, columns),), "training") for rows, columns in DISCRIMINATOR),
        Case(f"large {rows}×{columns}", ((rows, columns),), "gaussian"),
    ]


def contenders_for(device: str) -> dict[str, Clip]:
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
    drivers = {"svd" if driver is None else f"svd {driver}": by_svd(driver) for driver in DRIVERS[device]}
    return {backend: by_backend(backend) for backend in backends} | {GRAM: _clip_by_gram} | drivers


def _clip_by_gram(weights):
    for weight in weights:
        squared, u = torch.linalg.eigh(weight @ weight.mT)
        weight.copy_((u * squared.clamp(min=1).rsqrt()) @ u.mT @ weight)


def is_svd(name: str) -> bool:
    """Whether a contender is torch.linalg.svd."""
    return name.startswith("svd")


def is_rival(name: str) -> bool:
    """Whether a contender is not the package's own."""
    return name == GRAM or is_svd(name)


def not_timed(case: Case, device: str) -> dict[str, str]:
    """Contenders of a device that would take their time to tell nothing new, and why."""
    if device == "cuda":
        return {}
    needless = {"eigh": "it is what auto does on a CPU"}
    if max(rows for rows, _ in case.shapes) > MOST_ROWS_OF_GEMM:
        needless["gemm"] = "it is made for GPUs; smaller weights show what it does on a CPU"
    return needless


def make_inputs(case: Case, device: str) -> Inputs:
    """Random weights in the state of the case."""
    fresh = [random_weight(shape, case.state, device) for shape in case.shapes]
    return Inputs([weight.clone() for weight in fresh], fresh)


def random_weight(shape: tuple[int, int], state: str, device: str) -> torch.Tensor:
    """Gaussian; or clipped, and then moved by RMSprop's steps until the next clipping, all in the same direction.

    Those of a single row may leave it within the threshold.
    """
    rows, columns = shape
    weight = torch.randn(shape, device=device) * (LARGEST_SINGULAR_VALUE / (rows**0.5 + columns**0.5))
    if state == "training":
        weight = singular_value_clip(weight, backend="eigh")
        weight += CLIP_INTERVAL * LEARNING_RATE * torch.randn_like(weight).sign()
    return weight


def restore(inputs: Inputs) -> None:
    """Make the weights what they were before they were clipped."""
    for weight, fresh in zip(*inputs, strict=True):
        weight.copy_(fresh)


@functools.cache
def probes_for(run: Run) -> dict[str, Probe]:
    """Of a GPU's contenders, each in a process of its own, all at the same time; none on a CPU."""
    if run.device == "cpu":
        return {}
    names = [name for name in contenders_for(run.device) if not (run.own_only and is_rival(name))]
    with ThreadPoolExecutor(len(names)) as threads:
        return dict(zip(names, threads.map(lambda name: probe(name, cases_for(run)), names), strict=True))


def probe(name: str, cases: list[Case]) -> Probe:
    """Count a contender's kernels and try to capture it, in another process.

    A profiler slows down what is launched after it, and after a failed capture PyTorch's allocator and random numbers
    are unusable.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        counted = process.submit(count_launches, name, cases)
        tried = process.submit(try_to_capture, name)
    launches = dict.fromkeys(map(str, cases)) if counted.exception() else counted.result()
    return Probe(launches, harness.first_line(tried.exception()) if tried.exception() else tried.result())


def count_launches(name: str, cases: list[Case]) -> dict[str, int | None]:
    """Kernels in one call, by case; None where the contender cannot run, or where the profiler may not look."""
    clip = contenders_for("cuda")[name]
    clip(make_inputs(SMOKE[0], "cuda").weights)  # loads the libraries
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


def try_to_capture(name: str) -> str | None:
    """None if a CUDA graph of the contender computes the same as a plain call, or why not."""
    inputs = make_inputs(SMOKE[0], "cuda")
    clip = contenders_for("cuda")[name]
    clip(inputs.weights)
    expected = [weight.clone() for weight in inputs.weights]
    calls = {name: lambda inputs: clip(inputs.weights)}
    method = harness.measure(calls, [inputs], "cuda", harness.FEWEST_ROUNDS, prepare=restore)[name].method
    if method.startswith(harness.WITHOUT_GRAPH):
        return method.removeprefix(f"{harness.WITHOUT_GRAPH}: ")
    same = all(
        (got - wanted).norm() <= ROUNDING * wanted.norm() for got, wanted in zip(inputs.weights, expected, strict=True)
    )
    return None if same else "its replay computes something else"


def check(case: Case, contenders: dict[str, Clip], inputs: Inputs) -> tuple[dict[str, Accuracy], dict[str, str]]:
    """How accurate each contender is, and why others are left out."""
    expected = [reference.clip_singular_values(weight.double().cpu()) for weight in inputs.fresh]
    found, left_out = {}, {}
    for name, clip in contenders.items():
        restore(inputs)
        try:
            _refuse_a_stand_in(name, inputs.weights)
            clip(inputs.weights)
            accuracy = accuracy_of(inputs.weights, expected)
        except RuntimeError as error:
            if name != "cuda" and not is_rival(name):
                raise
            left_out[name] = harness.first_line(error)
            continue
        if is_rival(name) and not accuracy.error <= TOLERANCE:
            left_out[name] = f"off by {accuracy.error:.1e} of the norm in float64"
        else:
            found[name] = accuracy
    _compare(case, found)
    return found, left_out


def _refuse_a_stand_in(name, weights):
    """Raise for a weight that "cuda" would hand to "gemm", which is a contender itself."""
    if name == "cuda" and set(choose(weights, name)) != {name}:
        raise BackendError("too large for it")


def accuracy_of(weights: list[torch.Tensor], expected: list[torch.Tensor]) -> Accuracy:
    """Compare clipped weights, none with more rows than columns, with float64 on the CPU."""
    got = [weight.double().cpu() for weight in weights]
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True)]
    # In float64 the Gram matrix tells the largest singular value to 1e-15.
    largest = [torch.linalg.eigvalsh(matrix @ matrix.mT)[-1].sqrt().item() for matrix in got]
    return Accuracy(rounded(max(errors)), rounded(max(largest) - 1))


def _compare(case, found):
    """Raise unless what the package does is about as accurate as the best rival."""
    best = min((accuracy.error for name, accuracy in found.items() if is_rival(name)), default=0.0)
    for name, accuracy in found.items():
        if not is_rival(name) and not accuracy.error <= 2 * best + ROUNDING:
            raise SystemExit(
                f"error: {case}: {name} is off by {accuracy.error:.1e} of the norm in float64, more than twice the "
                f"{best:.1e} of plain PyTorch: nothing is timed"
            )


def decomposes(name: str) -> bool:
    """Whether a contender asks for singular values or eigenvalues, which takes long and waits for the host."""
    return name == "eigh" or is_rival(name)


def input_set_count(run: Run, nbytes: int) -> int:
    """Fewer on a CPU: whatever a contender does takes much longer than to read the weights from memory."""
    count = run.input_set_count(nbytes)
    return count if run.device == "cuda" else max(1, count // 4)


def time_all(
    run: Run, contenders: dict[str, Clip], input_sets: list[Inputs], captured: list[str]
) -> dict[str, dict[str, Timing]]:
    """Timings of plain calls and, on a GPU, of the replays of `captured`; of what takes seconds in few rounds."""
    calls = {name: lambda inputs, clip=clip: clip(inputs.weights) for name, clip in contenders.items()}
    options = {"rivals": [name for name in calls if is_rival(name)], "prepare": restore}
    if run.device == "cpu":
        return {CALL: run.measure(calls, input_sets, harness.FEWEST_ROUNDS, **options, warm=True)}
    plain = options | {"uncaptured": dict.fromkeys(calls, "a plain call")}
    quick, slow = ({name: call for name, call in calls.items() if decomposes(name) is it} for it in (False, True))
    # A hundred times as long as the others: neither the cache nor turns with them matter.
    timings = {CALL: run.measure(quick, input_sets, **plain)}
    timings[CALL] |= run.measure(slow, input_sets[:1], harness.FEWEST_ROUNDS, **plain)
    if captured:
        timings[REPLAY] = run.measure({name: calls[name] for name in captured}, input_sets, **options)
    return timings


def measure(run: Run, case: Case) -> dict:
    """Check and time one case."""
    probes = probes_for(run)
    torch.manual_seed(0)
    needless = not_timed(case, run.device)
    contenders = {name: clip for name, clip in contenders_for(run.device).items() if name not in needless}
    first = make_inputs(case, run.device)
    accuracies, left_out = check(case, contenders, first)
    contenders = {name: contenders[name] for name in accuracies}
    count = input_set_count(run, nbytes_of(case))
    input_sets = [first, *(Inputs([weight.clone() for weight in first.fresh], first.fresh) for _ in range(count - 1))]
    captured = [name for name in contenders if name in probes and probes[name].refusal is None]
    timings = time_all(run, contenders, input_sets, captured)
    return {
        **case._asdict(),
        "input_sets": count,
        "timings": _rows(run, case, timings, accuracies, probes),
        "left_out": needless | left_out,
    }


def nbytes_of(case: Case) -> int:
    """Of its weights."""
    return 4 * sum(rows * columns for rows, columns in case.shapes)


def _rows(run, case, timings, accuracies, probes):
    """`speedup` is how many times as long the best driver of torch.linalg.svd takes."""
    work = Work(0, 2 * nbytes_of(case))  # every weight is read once and written once
    best = min((timing.median for name, timing in timings[CALL].items() if is_svd(name)), default=None)
    iteration = seconds_an_iteration(run.device) if case.name == FIVE else None

    def more(name, timing):
        accuracy = accuracies.get(name)
        return {
            "speedup": best and rounded(best / timing.median),
            "error": accuracy and accuracy.error,
            "excess": accuracy and accuracy.excess,
            "launches": probes[name].launches[str(case)] if name in probes else None,
            "share_of_iteration": iteration and rounded(timing.median / CLIP_INTERVAL / iteration),
        }

    return [
        run.row(Label(name, part), timing, work, **more(name, timing))
        for part, of_part in timings.items()
        for name, timing in of_part.items()
    ]


def seconds_an_iteration(device: str) -> float | None:
    """Of training, from the section "step" of the device's results; None before it was measured."""
    return results.sections_of(results.file_of(device)).get("step", {}).get("seconds_an_iteration")


def labels_for(run: Run, case: Case) -> list[Label]:
    """Of all timings that a case may have."""
    names = [name for name in contenders_for(run.device) if name not in not_timed(case, run.device)]
    names.append(harness.again("auto"))
    if run.device == "cpu":
        return [Label(name, CALL) for name in names]
    return [Label(name, part) for part in (CALL, REPLAY) for name in names] + [Label(harness.again("eigh"), CALL)]


def details(record: dict) -> Iterator[str]:
    """What else is known of each contender."""
    for row in record["timings"]:
        if row["part"] == CALL and row["excess"] is not None:
            said = [f"largest singular value − 1: {row['excess']:.1e}"]
            if row["speedup"] is not None:
                said.append(f"{row['speedup']:.4g} times as fast as the best torch.linalg.svd")
            if row["launches"] is not None:
                said.append(f"{row['launches']} launches")
            if row["share_of_iteration"] is not None:
                said.append(
                    f"{100 * row['share_of_iteration']:.2f} % of an iteration, clipping every {CLIP_INTERVAL}th"
                )
            yield f"  {row['contender']:14}{', '.join(said)}"


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """What a plain call of `auto` shall reach."""
    wanted = str(Case(FIVE, DISCRIMINATOR, "gaussian"))
    timings = [row for record in records if record["case"] == wanted for row in record["timings"]]
    rows = {row["contender"]: row for row in timings if row["part"] == CALL}
    auto = rows.get("auto", {})

    def over(key, one, other):
        """The quotient of a figure of two contenders."""
        if one not in rows or other not in rows:
            return None
        return rounded(rows[one][key] / rows[other][key])

    if device == "cpu":
        return [
            Goal(f"times as fast as torch.linalg.svd, {wanted}", auto.get("speedup"), 4, at_most=False),
            Goal(f"times its error, {wanted}", over("error", "auto", "svd"), 1, at_most=True),
        ]
    milliseconds = rounded(1e3 * auto["seconds"]) if auto else None
    return [
        Goal(f"ms, {wanted}", milliseconds, 0.3, at_most=True),
        Goal(f"times as fast as the best torch.linalg.svd, {wanted}", auto.get("speedup"), 800, at_most=False),
        Goal(f"times as fast as {GRAM}, {wanted}", over("seconds", GRAM, "auto"), 60, at_most=False),
        Goal(f"launches, {wanted}", auto.get("launches"), 60, at_most=True),
        Goal(
            f"of an iteration, clipping every {CLIP_INTERVAL}th, {wanted}",
            auto.get("share_of_iteration"),
            0.02,
            at_most=True,
        ),
    ]


def conclude(run: Run, records: list[dict]) -> dict:
    """Which contenders cannot be captured in a CUDA graph, and why."""
    refusals = {name: found.refusal for name, found in probes_for(run).items() if found.refusal is not None}
    return {"not_captured": refusals}


SECTION = Section(
    name="singular_value_clip",
    title="singular value clipping; error: of a weight's norm, against float64",
    cases=cases_for,
    measure=measure,
    details=details,
    conclude=conclude,
    conclusion=lambda payload: (f"{name}: no CUDA graph: {why}" for name, why in payload["not_captured"].items()),
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
