"""Singular value clipping of TGAN's discriminator, against torch.linalg.svd and the eigenvalues of the Gram matrix.

    python -m benchmarks.bench_singular_value_clip --device cuda

Every contender first clips the same weights, which are compared with the definition in float64. Then all take turns, in
place, as in training. To clip a clipped weight again is another and cheaper problem, so each turn begins with fresh
weights, copied outside of what is timed: a copy within it would cost a tenth of the 0.3 ms that are the goal.

"eigh" is the package's backend; "Gram + eigh" is how one would write it in plain PyTorch, in float32. On a CPU "auto"
is "eigh", and "gemm", which is made for GPUs, takes part where the weights are small.
"""

import contextlib
import functools
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import accuracy, harness, results, suite
from benchmarks.ceilings import Work
from benchmarks.results import Goal, rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast import reference
from tgan_fast.ops import singular_value_clip, singular_value_clip_

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
LARGEST_SINGULAR_VALUE = 1.4  # of the Gaussian weights, about
CLIP_INTERVAL, LEARNING_RATE = 5, 5e-5
# Relative to a weight's norm. A rival with a larger error does something else; float32 allows 1e-6.
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
    """Weights, and their values before they are clipped."""

    weights: list[torch.Tensor]
    fresh: list[torch.Tensor]


def cases_for(run: Run) -> list[Case]:
    """Return the cases, the most important first."""
    if run.smoke:
        return SMOKE
    rows, columns = LARGE[run.device]
    return [
        *(Case(FIVE, DISCRIMINATOR, state) for state in STATES),
        *(Case(f"alone {rows}×{columns}", ((rows, columns),), "training") for rows, columns in DISCRIMINATOR),
        Case(f"large {rows}×{columns}", ((rows, columns),), "gaussian"),
    ]


def contenders_for(device: str, case: Case) -> dict[str, Clip]:
    """Return the package's contenders by the names of their backends, then the rivals."""

    def by_gram(weights):
        for weight in weights:
            squared, u = torch.linalg.eigh(weight @ weight.mT)
            weight.copy_((u * squared.clamp(min=1).rsqrt()) @ u.mT @ weight)

    def by_svd(driver, weights):
        for weight in weights:
            u, s, vh = torch.linalg.svd(weight, full_matrices=False, driver=driver)
            weight.copy_((u * s.clamp(max=1)) @ vh)

    backends = ["auto", "eigh", "gemm", "cuda"]
    if device == "cpu":
        small = all(rows <= MOST_ROWS_OF_GEMM for rows, _ in case.shapes)
        backends = ["auto", "gemm"] if small else ["auto"]
    own = {name: lambda weights, name=name: singular_value_clip_(weights, backend=name) for name in backends}
    svds = {" ".join(filter(None, ("svd", driver))): partial(by_svd, driver) for driver in DRIVERS[device]}
    return {**own, GRAM: by_gram, **svds}


def is_rival(name: str) -> bool:
    """Return whether a contender is not the package's own."""
    return name == GRAM or name.startswith("svd")


def make_inputs(case: Case, device: str) -> Inputs:
    """Return Gaussian weights; in training they were clipped, and then moved by RMSprop's steps in one direction."""
    fresh = []
    for rows, columns in case.shapes:
        weight = torch.randn(rows, columns, device=device) * (LARGEST_SINGULAR_VALUE / (rows**0.5 + columns**0.5))
        if case.state == "training":
            weight = singular_value_clip(weight, backend="eigh")
            weight += CLIP_INTERVAL * LEARNING_RATE * torch.randn_like(weight).sign()
        fresh.append(weight)
    return Inputs([weight.clone() for weight in fresh], fresh)


def restore(inputs: Inputs) -> None:
    """Give the weights the values that they had before they were clipped."""
    for weight, fresh in zip(*inputs, strict=True):
        weight.copy_(fresh)


@functools.cache
def probes_for(run: Run) -> dict[str, tuple[dict[str, int | None], str | None]]:
    """Probe a GPU's contenders, each in a process of its own, all at the same time; none on a CPU."""
    if run.device == "cpu":
        return {}
    cases, spawn = cases_for(run), multiprocessing.get_context("spawn")
    names = [name for name in contenders_for(run.device, cases[0]) if not (run.own_only and is_rival(name))]
    with contextlib.ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for name in names}
        futures = {name: pool.submit(probe, name, cases) for name, pool in pools.items()}
        errors = {name: future.exception() for name, future in futures.items()}
    refused = {name: ({}, harness.first_line(error)) for name, error in errors.items() if error}
    return {name: refused.get(name) or future.result() for name, future in futures.items()}


def probe(name: str, cases: list[Case]) -> tuple[dict[str, int | None], str | None]:
    """Return the number of kernels in a contender's call by case, and why it cannot be captured in a CUDA graph.

    A profiler slows down later launches, and a capture that failed leaves PyTorch's allocator unusable.
    """
    clip, inputs = contenders_for("cuda", SMOKE[0])[name], make_inputs(SMOKE[0], "cuda")
    clip(inputs.weights)
    expected = [weight.clone() for weight in inputs.weights]
    launches = {str(case): _kernels_of(clip, case) for case in cases}
    calls = {name: lambda inputs: clip(inputs.weights)}
    method = harness.measure(calls, [inputs], "cuda", harness.FEWEST_ROUNDS, prepare=restore)[name].method
    if method.startswith(harness.WITHOUT_GRAPH):
        return launches, method.removeprefix(f"{harness.WITHOUT_GRAPH}: ")
    pairs = zip(inputs.weights, expected, strict=True)
    same = all((got - wanted).norm() <= ROUNDING * wanted.norm() for got, wanted in pairs)
    return launches, None if same else "its replay computes something else"


def _kernels_of(clip, case):
    """Return None where the contender cannot run, or where the profiler is not allowed to count."""
    weights = make_inputs(case, "cuda").weights
    torch.cuda.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            clip(weights)
            torch.cuda.synchronize()
    except RuntimeError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return sum(event.get("cat") == "kernel" for event in events) or None


def check(case: Case, contenders: dict[str, Clip], inputs: Inputs) -> tuple[dict[str, dict], dict[str, str]]:
    """Return each contender's error and the excess of its largest singular value over 1, and why rivals are left out.

    The package's own may have twice the error of the best rival.
    """
    expected = [reference.clip_singular_values(weight.double().cpu()) for weight in inputs.fresh]

    def clipped(clip):
        restore(inputs)
        clip(inputs.weights)
        return [weight.double().cpu() for weight in inputs.weights]

    def errors_of(got):
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True)]
        # In float64 the Gram matrix tells the largest singular value to 1e-15.
        largest = [torch.linalg.eigvalsh(matrix @ matrix.mT)[-1].sqrt().item() for matrix in got]
        return {"error": rounded(max(errors)), "excess": rounded(max(largest) - 1)}

    def allowed(name, found):
        rivals = [errors["error"] for other, errors in found.items() if is_rival(other)]
        best = min((error for error in rivals if error <= TOLERANCE), default=0.0)
        return {"error": TOLERANCE if is_rival(name) else 2 * best + ROUNDING, "excess": TOLERANCE}

    calls = {name: partial(clipped, clip) for name, clip in contenders.items()}
    return accuracy.check(case, calls, errors_of, allowed, list(filter(is_rival, contenders)))


def measure(run: Run, case: Case) -> dict:
    """Check and time one case."""
    probes = probes_for(run)
    torch.manual_seed(0)
    contenders, first = contenders_for(run.device, case), make_inputs(case, run.device)
    errors, left_out = check(case, contenders, first)
    nbytes = sum(weight.nbytes for weight in first.weights)
    count = run.input_set_count(nbytes)
    if run.device == "cpu":  # a contender takes much longer than to read the weights from memory
        count = max(1, count // 4)
    input_sets = [first, *(Inputs([weight.clone() for weight in first.fresh], first.fresh) for _ in range(count - 1))]
    refusals = {name: probes[name][1] for name in errors if name in probes}
    timings = _timings(run, {name: contenders[name] for name in errors}, input_sets, refusals)
    best_svd = min((timing.median for name, timing in timings[CALL].items() if name.startswith("svd")), default=None)
    iteration = None
    if case.name == FIVE:  # from the device's results, once it was measured
        iteration = results.sections_of(results.file_of(run.device)).get("step", {}).get("seconds_an_iteration")

    def more(name, timing):
        return {
            "speedup": best_svd and rounded(best_svd / timing.median),
            **errors.get(name, {"error": None, "excess": None}),
            "launches": probes[name][0].get(str(case)) if name in probes else None,
            "share_of_iteration": iteration and rounded(timing.median / CLIP_INTERVAL / iteration),
        }

    return {
        **case._asdict(),
        "input_sets": count,
        "timings": [
            run.row(Label(name, part), timing, Work(0, 2 * nbytes), **more(name, timing))
            for part, of_part in timings.items()
            for name, timing in of_part.items()
        ],
        "left_out": left_out | {f"{REPLAY} {name}": refusal for name, refusal in refusals.items() if refusal},
    }


def _timings(run, contenders, input_sets, refusals):
    """Return timings of plain calls and, on a GPU, of the replays of those that can be captured."""
    calls = {name: lambda inputs, clip=clip: clip(inputs.weights) for name, clip in contenders.items()}
    options = {"rivals": list(filter(is_rival, calls)), "prepare": restore}
    if run.device == "cpu":
        return {CALL: run.measure(calls, input_sets, harness.FEWEST_ROUNDS, **options, warm=True)}
    plain = options | {"uncaptured": dict.fromkeys(calls, "a plain call")}
    # A decomposition takes a hundred times as long as the others: neither the cache nor turns with them matter.
    slow = {name: call for name, call in calls.items() if name == "eigh" or is_rival(name)}
    quick = {name: call for name, call in calls.items() if name not in slow}
    timings = {CALL: run.measure(quick, input_sets, **plain)}
    timings[CALL] |= run.measure(slow, input_sets[:1], harness.FEWEST_ROUNDS, **plain)
    captured = {name: calls[name] for name, refusal in refusals.items() if refusal is None}
    return timings | ({REPLAY: run.measure(captured, input_sets, **options)} if captured else {})


def calls_for(run: Run, case: Case) -> dict[str, Callable]:
    """Return for each contender what makes a call, which also copies the fresh weights."""

    def maker(clip):
        inputs = make_inputs(case, run.device)
        return lambda: (restore(inputs), clip(inputs.weights))

    return {f"{CALL} {name}": partial(maker, clip) for name, clip in contenders_for(run.device, case).items()}


def details(record: dict) -> Iterator[str]:
    """Yield what else is known of each contender."""
    texts = {
        "excess": "largest singular value − 1: {:.1e}",
        "speedup": "{:.4g} times as fast as the best torch.linalg.svd",
        "launches": "{} launches",
        "share_of_iteration": f"{{:.2%}} of an iteration, clipping every {CLIP_INTERVAL}th",
    }
    for row in record["timings"]:
        if row["part"] == CALL and row["excess"] is not None:
            said = [text.format(row[key]) for key, text in texts.items() if row[key] is not None]
            yield f"  {row['contender']:14}{', '.join(said)}"


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals of a plain call of `auto`."""
    wanted = str(Case(FIVE, DISCRIMINATOR, "gaussian"))
    timings = [row for record in records if record["case"] == wanted for row in record["timings"]]
    rows = {row["contender"]: row for row in timings if row["part"] == CALL}
    auto = rows.get("auto", {})

    def over(key, one, other):
        return rounded(rows[one][key] / rows[other][key]) if {one, other} <= rows.keys() else None

    def goal(text, measured, bound, at_most):
        return Goal(f"{text}, {wanted}", measured, bound, at_most)

    if device == "cpu":
        return [
            goal("times as fast as torch.linalg.svd", auto.get("speedup"), 4, False),
            goal("times its error", over("error", "auto", "svd"), 1, True),
        ]
    share = f"of an iteration, clipping every {CLIP_INTERVAL}th"
    return [
        goal("ms", rounded(1e3 * auto["seconds"]) if auto else None, 0.3, True),
        goal("times as fast as the best torch.linalg.svd", auto.get("speedup"), 800, False),
        goal(f"times as fast as {GRAM}", over("seconds", GRAM, "auto"), 60, False),
        goal("launches", auto.get("launches"), 60, True),
        goal(share, auto.get("share_of_iteration"), 0.02, True),
    ]


SECTION = Section(
    name="singular_value_clip",
    title="singular value clipping; error: of a weight's norm, against float64",
    cases=cases_for,
    measure=measure,
    calls=calls_for,
    details=details,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
