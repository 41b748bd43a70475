"""Singular value clipping of TGAN's discriminator, against torch.linalg.svd and the eigenvalues of the Gram matrix.

    python -m benchmarks.bench_singular_value_clip --device cuda

Every contender first clips the same weights; the results are compared with the definition in float64. Then all
take turns, in place, as in training. Clipping a clipped weight is cheaper, so turns begin with fresh weights, whose
copy is not timed. "eigh" is the package's backend; "Gram + eigh" is a user's version in plain PyTorch, in float32.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.profiler import profile

from benchmarks import accuracy, harness, result_files, suite
from benchmarks.ceilings import Work
from benchmarks.contenders import CLIP_INTERVAL, LEARNING_RATE
from benchmarks.result_files import Goal, rounded
from benchmarks.suite import Run, Section
from tgan_fast import reference
from tgan_fast.ops import singular_value_clip, singular_value_clip_

FIVE = "all five"
DISCRIMINATOR = ((64, 192), (128, 4096), (256, 8192), (512, 16384), (1, 8192))
GRAM = "Gram + eigh"
CALL, REPLAY = "call", "replay"  # an ordinary call, and the replay of a CUDA graph
LARGEST_SINGULAR_VALUE = 1.4  # approximate, of the Gaussian weights
# Relative to a weight's norm; a rival with a larger error computes something else, since float32 reaches 1e-6.
TOLERANCE = 1e-4


class Case(NamedTuple):
    """Weights that are clipped in one call."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    state: str

    def __str__(self):
        return f"{self.name}, {self.state}"


SMOKE = [Case("small", ((6, 20), (1, 9)), state) for state in ("gaussian", "training")]
CASES = [Case(FIVE, DISCRIMINATOR, state) for state in ("gaussian", "training")]
CASES += [Case(f"alone {rows}×{columns}", ((rows, columns),), "training") for rows, columns in DISCRIMINATOR]


class Inputs(NamedTuple):
    """Weights, and their values before they are clipped."""

    weights: list[torch.Tensor]
    fresh: list[torch.Tensor]


def by_gram(weights: list[torch.Tensor]) -> None:
    """Clip by the eigenvalues of the Gram matrix."""
    for weight in weights:
        squared, u = torch.linalg.eigh(weight @ weight.mT)
        weight.copy_((u * squared.clamp(min=1).rsqrt()) @ u.mT @ weight)


def by_svd(weights: list[torch.Tensor], driver: str | None = None) -> None:
    """Clip by the definition."""
    for weight in weights:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False, driver=driver)
        weight.copy_((u * s.clamp(max=1)) @ vh)


DRIVERS = {f"svd {driver}": partial(by_svd, driver=driver) for driver in ("gesvd", "gesvdj", "gesvda")}
RIVALS = {GRAM: by_gram, "svd": by_svd, **DRIVERS}


def contenders_for(device: str) -> dict[str, Callable]:
    """Return the package's contenders by the names of their backends, then the rivals."""
    if device == "cpu":  # "auto" is "eigh" there, and PyTorch has only one driver
        return {"auto": singular_value_clip_, GRAM: by_gram, "svd": by_svd}
    own = {name: partial(singular_value_clip_, backend=name) for name in ("auto", "eigh", "gemm", "cuda")}
    return own | RIVALS


def make_inputs(case: Case, device: str) -> Inputs:
    """Return Gaussian weights; the state "training" clips them and then adds RMSprop steps in one direction."""
    fresh = []
    for rows, columns in case.shapes:
        weight = torch.randn(rows, columns, device=device) * (LARGEST_SINGULAR_VALUE / (rows**0.5 + columns**0.5))
        if case.state == "training":
            weight = singular_value_clip(weight, backend="eigh")
            weight += CLIP_INTERVAL * LEARNING_RATE * torch.randn_like(weight).sign()
        fresh.append(weight)
    return Inputs([weight.clone() for weight in fresh], fresh)


def restore(inputs: Inputs) -> None:
    """Restore the values of the weights before they were clipped."""
    torch._foreach_copy_(*inputs)


def check(case: Case, contenders: dict[str, Callable], inputs: Inputs) -> tuple[dict[str, dict], dict[str, str]]:
    """Return each contender's error and the excess of its largest singular value over 1, and why rivals are left out.

    The package's contenders may have twice the error of the best rival.
    """
    expected = [reference.clip_singular_values(weight.double().cpu()) for weight in inputs.fresh]

    def clipped(clip):
        restore(inputs)
        clip(inputs.weights)
        return [weight.double().cpu() for weight in inputs.weights]

    def errors_of(got):
        # In float64 the Gram matrix gives the largest singular value to 1e-15.
        largest = torch.stack([torch.linalg.eigvalsh(matrix @ matrix.mT)[-1].sqrt() for matrix in got]).max()
        return {"norm": accuracy.relative(got, expected), "excess": rounded(largest.item() - 1)}

    def allowed(name, found):
        rivals = [errors["norm"] for other, errors in found.items() if other in RIVALS]
        best = min((error for error in rivals if error <= TOLERANCE), default=0.0)
        return {"norm": TOLERANCE if name in RIVALS else 2 * best + accuracy.FLOAT32_ROUNDING, "excess": TOLERANCE}

    calls = {name: partial(clipped, clip) for name, clip in contenders.items()}
    return accuracy.check_contenders(case, calls, errors_of, allowed, RIVALS)


def measure(run: Run, case: Case) -> dict:
    """Check and time one case."""
    torch.manual_seed(0)
    contenders, first = contenders_for(run.device), make_inputs(case, run.device)
    errors, left_out = check(case, contenders, first)
    nbytes = sum(weight.nbytes for weight in first.weights)
    count = run.input_set_count(nbytes)
    if run.device == "cpu":  # contenders take much longer than reading the weights from memory
        count = max(1, count // 4)
    input_sets = [first, *(Inputs([weight.clone() for weight in first.fresh], first.fresh) for _ in range(count - 1))]
    rows = []
    for part, timings in time_parts(run, {name: contenders[name] for name in errors}, input_sets).items():
        rows += run.rows(timings, part, Work(0, 2 * nbytes), more=lambda name: {"error": errors.get(name)})
    # The profiler runs last, since it slows down later launches.
    launches = launches_of(contenders["auto"], first) if run.device == "cuda" else None
    # The device's results have the step's time once it was measured.
    step = result_files.sections_of(result_files.file_of(run.device)).get("step", {}).get("seconds_an_iteration")
    more = {"launches": launches, "seconds_an_iteration": step, "left_out": left_out}
    return {**case._asdict(), "input_sets": count, "timings": rows, **more}


def time_parts(run: Run, contenders: dict[str, Callable], input_sets: list[Inputs]) -> dict[str, dict]:
    """Return timings of ordinary calls and, on a GPU, of graph replays of contenders that do not wait for the host."""
    calls = {name: lambda inputs, clip=clip: clip(inputs.weights) for name, clip in contenders.items()}
    options = {"rivals": RIVALS, "prepare": restore}
    if run.device == "cpu":
        return {CALL: run.measure(calls, input_sets, harness.FEWEST_ROUNDS, **options, warm=True)}
    plain = options | {"uncaptured": dict.fromkeys(calls, "a plain call")}
    # A decomposition takes a hundred times as long as the others, so the cache and taking turns do not matter for it.
    slow = {name: call for name, call in calls.items() if name == "eigh" or name in RIVALS}
    quick = {name: call for name, call in calls.items() if name not in slow}
    timings = run.measure(quick, input_sets, **plain)
    timings |= run.measure(slow, input_sets[:1], harness.FEWEST_ROUNDS, **plain)
    return {CALL: timings, REPLAY: run.measure(quick, input_sets, **options)}


def launches_of(clip: Callable, inputs: Inputs) -> int | None:
    """Return the number of kernels in a call; None if the profiler sees none, for instance without permission."""
    restore(inputs)
    with profile() as profiler:
        clip(inputs.weights)
    names = [event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names) or None


def calls_for(run: Run, case: Case) -> dict[str, Callable]:
    """Return functions that make each contender's call, which also copies the fresh weights."""

    def maker(clip):
        inputs = make_inputs(case, run.device)
        return lambda: (restore(inputs), clip(inputs.weights))

    return {f"{CALL} {name}": partial(maker, clip) for name, clip in contenders_for(run.device).items()}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals of an ordinary call of `auto`."""
    wanted = str(CASES[0])
    record = next((record for record in records if record["case"] == wanted), {"timings": []})
    rows = {row["contender"]: row for row in record["timings"] if row["part"] == CALL}
    auto, svd = rows.get("auto", {}), rows.get("svd")
    best_svd = min((row["ratio"] for name, row in rows.items() if name.startswith("svd")), default=None)
    if device == "cpu":
        errors = [row["error"]["norm"] for row in (auto, svd)] if svd else None
        return [
            Goal(f"times as fast as torch.linalg.svd, {wanted}", best_svd, 4, at_most=False),
            Goal(f"times its error, {wanted}", errors and rounded(errors[0] / errors[1]), 1, at_most=True),
            Goal(f"times as fast as {GRAM}, {wanted}", rows.get(GRAM, {}).get("ratio"), 1, at_most=False),
            Goal(f"error, {wanted}", auto["error"]["norm"] if auto else None, 1e-7, at_most=True),
        ]
    text, step = f"of an iteration, clipping every {CLIP_INTERVAL}th, {wanted}", record.get("seconds_an_iteration")
    share = rounded(auto["seconds"] / CLIP_INTERVAL / step) if step else None
    return [
        Goal(f"ms, {wanted}", rounded(1e3 * auto["seconds"]) if auto else None, 0.3, at_most=True),
        Goal(f"times as fast as the best torch.linalg.svd, {wanted}", best_svd, 800, at_most=False),
        Goal(f"times as fast as {GRAM}, {wanted}", rows.get(GRAM, {}).get("ratio"), 60, at_most=False),
        Goal(f"launches, {wanted}", record.get("launches"), 60, at_most=True),
        Goal(text, share, 0.02, at_most=True),
    ]


SECTION = Section(
    name="singular_value_clip",
    title="singular value clipping; error: of a weight's norm, against float64; largest singular value − 1",
    cases=lambda run: SMOKE if run.smoke else CASES,
    measure=measure,
    calls=calls_for,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
