"""Singular value clipping, against torch.linalg.svd, the Gram matrix's eigenvalues and Emerging-Optimizers.

    python -m benchmarks.bench_singular_value_clip --device cuda

Every contender first clips the same weights; the results are compared with the definition in float64. Then all
take turns, in place, as in training. Clipping a clipped weight is cheaper, so turns begin with fresh weights, whose
copy is not timed. "eigh" is the package's backend; "Gram + eigh" is a user's version in plain PyTorch, in float32.

The first cases are the weights of TGAN's discriminator. The others are weights of transformers, where the errors on
eight spectra are part of the results, so that no rival is left out because its error is large. `spectral_hardcap` of
Emerging-Optimizers needs Python 3.12 and `pip install '.[benchmarks]'`.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch.profiler import profile

from benchmarks import accuracy, harness, result_files, suite
from benchmarks.ceilings import Work
from benchmarks.contenders import CLIP_INTERVAL, LEARNING_RATE
from benchmarks.harness import Timing
from benchmarks.result_files import Goal, rounded
from benchmarks.spectra import SPECTRA, weight_of
from benchmarks.suite import Run, Section
from tgan_fast import reference
from tgan_fast.ops import singular_value_clip, singular_value_clip_
from tgan_fast.ops.clipping import CUDA_BACKENDS, choose_backends

FIVE = "all five"
DISCRIMINATOR = ((64, 192), (128, 4096), (256, 8192), (512, 16384), (1, 8192))
GRAM = "Gram + eigh"
HARDCAP = "spectral_hardcap"
FAST = "fast"  # accuracy="fast"
CALL, REPLAY = "call", "replay"  # an ordinary call, and the replay of a CUDA graph
LARGEST_SINGULAR_VALUE = 1.4  # approximate, of the Gaussian weights
# Relative to a weight's norm; a rival with a larger error computes something else, since float32 reaches 1e-6.
TOLERANCE = 1e-4
TIMED = ("gaussian", "training")  # spectra on which transformers' weights are clipped in turns
# Largest error on any spectrum: the goals of "auto" and "fast". Nothing is timed if "fast" misses its own.
LARGEST_ERROR = {"auto": 1e-7, FAST: 5e-6}


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


class Size(NamedTuple):
    """Weight of a transformer, [*batch, rows, columns], the spectra that are checked, and the rounds of slow calls."""

    shape: tuple[int, ...]
    spectra: tuple[str, ...] = tuple(SPECTRA)
    rounds: int = harness.FEWEST_ROUNDS

    def __str__(self):
        return f"transformer {'×'.join(map(str, self.shape))}"


SMOKE_SIZES = [Size((24, 40)), Size((2, 16, 16), ("gaussian", "log-spaced"), 1)]
SIZES = [Size(shape) for shape in ((768, 768), (768, 3072), (1024, 4096), (12, 1024, 1024))]
# A decomposition takes up to minutes on a CPU.
SIZES.append(Size((4096, 4096), ("gaussian", "log-spaced"), 1))


class Inputs(NamedTuple):
    """Weights, and their values before they are clipped."""

    weights: list[torch.Tensor]
    fresh: list[torch.Tensor]


def by_gram(weights: list[torch.Tensor]) -> None:
    """Clip by the eigenvalues of the Gram matrix."""
    for weight in weights:
        squared, u = torch.linalg.eigh(weight @ weight.mT)
        weight.copy_((u * squared.clamp(min=1).rsqrt().unsqueeze(-2)) @ u.mT @ weight)


def by_svd(weights: list[torch.Tensor], driver: str | None = None) -> None:
    """Clip by the definition."""
    for weight in weights:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False, driver=driver)
        weight.copy_((u * s.clamp(max=1).unsqueeze(-2)) @ vh)


def by_hardcap(weights: list[torch.Tensor]) -> None:
    """Clip by Emerging-Optimizers, which takes matrices one by one."""
    # It is imported here, because a rival may be missing.
    from emerging_optimizers.orthogonalized_optimizers.spectral_clipping_utils import spectral_hardcap

    for weight in weights:
        for matrix in weight.view(-1, *weight.shape[-2:]):
            matrix.copy_(spectral_hardcap(matrix, 1.0))


DRIVERS = {f"svd {driver}": partial(by_svd, driver=driver) for driver in ("gesvd", "gesvdj", "gesvda")}
USUAL_RIVALS = {GRAM: by_gram, "svd": by_svd, HARDCAP: by_hardcap}
RIVALS = USUAL_RIVALS | DRIVERS


def missing_rivals() -> dict[str, str]:
    """Return the reasons why rivals cannot be imported, by their names."""
    try:
        by_hardcap([])
    except ImportError as error:
        return {HARDCAP: f"{harness.short_reason(error)}: run pip install '.[benchmarks]' with Python 3.12 or newer"}
    return {}


def contenders_for(device: str) -> dict[str, Callable]:
    """Return the package's contenders by the names of their backends, then the rivals that can be imported."""
    missing = missing_rivals()
    rivals = {name: clip for name, clip in RIVALS.items() if name not in missing}
    if device == "cpu":  # "auto" is "eigh" there, and PyTorch has only one driver
        return {"auto": singular_value_clip_} | {name: rivals[name] for name in USUAL_RIVALS if name in rivals}
    own = {name: partial(singular_value_clip_, backend=name) for name in ("auto", "eigh", "gemm", *CUDA_BACKENDS)}
    return own | rivals


def contenders_for_size(size: Size, device: str) -> dict[str, Callable]:
    """Return the package's contenders for one weight, then the rivals that can be imported."""
    clip = partial(singular_value_clip_, batch_dims=len(size.shape) - 2)
    own = {"auto": clip, FAST: partial(clip, accuracy="fast")}
    if device == "cuda":
        matrix = torch.empty(size.shape[-2:], device=device)
        kernels = CUDA_BACKENDS if choose_backends([matrix], "cuda") == ["cuda"] else ()
        own |= {name: partial(clip, backend=name) for name in ("eigh", "gemm", *kernels)}
    missing = missing_rivals()
    return own | {name: rival for name, rival in USUAL_RIVALS.items() if name not in missing}


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


def check_size(
    size: Size, contenders: dict[str, Callable], fresh: dict[str, torch.Tensor]
) -> tuple[dict[str, dict], dict[str, str]]:
    """Return each contender's error on each spectrum, and the reasons why rivals cannot run.

    The package's contenders have limits: rounding to float32 where they are exact, and "fast" that of `LARGEST_ERROR`
    and the error of `spectral_hardcap`, up to rounding to float32. Rivals have none.
    """
    # In float64 the Gram matrix gives the same result as the definition to 1e-13, many times faster.
    expected = {spectrum: weight.double() for spectrum, weight in fresh.items()}
    by_gram(list(expected.values()))

    def errors_of_calls(clip):
        errors = {}
        for spectrum, weight in fresh.items():
            clipped = weight.clone()
            clip([clipped])
            errors[spectrum] = accuracy.relative([clipped], [expected[spectrum]])
        return errors

    def allowed(name, found):
        if name in RIVALS:
            return dict.fromkeys(fresh, math.inf)
        if name != FAST:
            return dict.fromkeys(fresh, accuracy.FLOAT32_ROUNDING)
        rival = found.get(HARDCAP, dict.fromkeys(fresh, math.inf))
        return {each: min(LARGEST_ERROR[FAST], rival[each] + accuracy.FLOAT32_ROUNDING) for each in fresh}

    calls = {name: partial(errors_of_calls, clip) for name, clip in contenders.items()}
    return accuracy.check_contenders(size, calls, lambda errors: errors, allowed, RIVALS)


def measure_size(run: Run, size: Size) -> dict:
    """Check a transformer's weight on each of its spectra, and time the spectra of `TIMED`."""
    torch.manual_seed(0)
    contenders = contenders_for_size(size, run.device)
    if run.own_only:
        contenders = {name: clip for name, clip in contenders.items() if name not in RIVALS}
    fresh = {spectrum: weight_of(spectrum, size.shape).to(run.device) for spectrum in size.spectra}
    errors, left_out = check_size(size, contenders, fresh)
    nbytes, rows = fresh["gaussian"].nbytes, []
    count = 1 if run.device == "cpu" else run.input_set_count(nbytes)
    for spectrum in (each for each in TIMED if each in fresh):
        input_sets = [Inputs([fresh[spectrum].clone()], [fresh[spectrum]]) for _ in range(count)]
        # Rivals take too long to be timed twice.
        names = [name for name in errors if spectrum == TIMED[0] or name not in RIVALS]
        timings = time_calls(run, {name: contenders[name] for name in names}, input_sets, size.rounds)
        more = errors if spectrum == TIMED[0] else {}
        rows += run.rows(
            timings, spectrum, Work(0, 2 * nbytes), more=lambda name, more=more: {"errors": more.get(name)}
        )
    return {**size._asdict(), "input_sets": count, "timings": rows, "left_out": left_out | missing_rivals()}


def measure(run: Run, case: Case | Size) -> dict:
    """Check and time one case."""
    if isinstance(case, Size):
        return measure_size(run, case)
    torch.manual_seed(0)
    contenders, first = contenders_for(run.device), make_inputs(case, run.device)
    if run.own_only:  # the errors of the others are compared with that of "svd"
        contenders = {name: clip for name, clip in contenders.items() if name not in RIVALS or name == "svd"}
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
    more = {"launches": launches, "seconds_an_iteration": step, "left_out": left_out | missing_rivals()}
    return {**case._asdict(), "input_sets": count, "timings": rows, **more}


def time_parts(run: Run, contenders: dict[str, Callable], input_sets: list[Inputs]) -> dict[str, dict]:
    """Return timings of ordinary calls and, on a GPU, of graph replays of contenders that do not wait for the host."""
    parts = {CALL: time_calls(run, contenders, input_sets)}
    if run.device == "cuda":
        own = {name: clip for name, clip in contenders.items() if not decomposes(name) and name not in RIVALS}
        parts[REPLAY] = run.measure(calls_of(own), input_sets, prepare=restore)
    return parts


def time_calls(
    run: Run, contenders: dict[str, Callable], input_sets: list[Inputs], rounds: int = harness.FEWEST_ROUNDS
) -> dict[str, Timing]:
    """Return timings of ordinary calls; `rounds` is the number of rounds on a CPU, and of decompositions on a GPU."""
    calls, options = calls_of(contenders), {"rivals": RIVALS, "prepare": restore}
    if run.device == "cpu":
        return run.measure(calls, input_sets, rounds, **options, warm=True)
    options["uncaptured"] = dict.fromkeys(calls, "a plain call")
    # A decomposition takes a hundred times as long as the others, so the cache and taking turns do not matter for it.
    slow = {name: call for name, call in calls.items() if decomposes(name)}
    quick = {name: call for name, call in calls.items() if name not in slow}
    timings = run.measure(quick, input_sets, **options)
    return timings | run.measure(slow, input_sets[:1], rounds, **options)


def calls_of(contenders: dict[str, Callable]) -> dict[str, Callable]:
    """Return the contenders as functions of `Inputs`."""
    return {name: lambda inputs, clip=clip: clip(inputs.weights) for name, clip in contenders.items()}


def decomposes(name: str) -> bool:
    """Return whether a contender on a GPU computes eigenvalues or singular values."""
    return name == "eigh" or (name in RIVALS and name != HARDCAP)


def launches_of(clip: Callable, inputs: Inputs) -> int | None:
    """Return the number of kernels in a call; None if the profiler sees none, for instance without permission."""
    restore(inputs)
    with profile() as profiler:
        clip(inputs.weights)
    names = [event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names) or None


def calls_for(run: Run, case: Case | Size) -> dict[str, Callable]:
    """Return functions that make each contender's call, which also copies the fresh weights.

    There are none for transformers' weights, because pytest-benchmark repeats calls that take up to minutes.
    """
    if isinstance(case, Size):
        return {}

    def maker(clip):
        inputs = make_inputs(case, run.device)
        return lambda: (restore(inputs), clip(inputs.weights))

    return {f"{CALL} {name}": partial(maker, clip) for name, clip in contenders_for(run.device).items()}


def details_of(record: dict) -> Iterator[str]:
    """Yield the errors of a transformer's weight on each spectrum."""
    found = {row["contender"]: row["errors"] for row in record["timings"] if row.get("errors")}
    if found:
        yield f"  {'error':24}" + "".join(f"{spectrum:>16}" for spectrum in record["spectra"])
        for name, errors in found.items():
            yield f"  {name:24}" + "".join(f"{errors[spectrum]:16.1e}" for spectrum in record["spectra"])


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals of an ordinary call of `auto`, and of transformers' weights."""
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
            *goals_for_sizes(records),
        ]
    text, step = f"of an iteration, clipping every {CLIP_INTERVAL}th, {wanted}", record.get("seconds_an_iteration")
    share = rounded(auto["seconds"] / CLIP_INTERVAL / step) if step else None
    return [
        Goal(f"ms, {wanted}", rounded(1e3 * auto["seconds"]) if auto else None, 0.3, at_most=True),
        Goal(f"times as fast as the best torch.linalg.svd, {wanted}", best_svd, 800, at_most=False),
        Goal(f"times as fast as {GRAM}, {wanted}", rows.get(GRAM, {}).get("ratio"), 60, at_most=False),
        Goal(f"launches, {wanted}", record.get("launches"), 4, at_most=True),
        Goal(text, share, 0.02, at_most=True),
        *goals_for_sizes(records),
    ]


def goals_for_sizes(records: list[dict]) -> Iterator[Goal]:
    """Yield the goals of each transformer's weight: the speed of "fast", and the largest errors of any spectrum."""
    for size in SIZES:
        timings = next((record["timings"] for record in records if record["case"] == str(size)), [])
        rows = {row["contender"]: row for row in timings if row["part"] == TIMED[0]}
        for rival in ("svd", HARDCAP):
            ratio = rounded(rows[rival]["seconds"] / rows[FAST]["seconds"]) if {rival, FAST} <= rows.keys() else None
            yield Goal(f"times as fast as {rival}, {FAST}, {size}", ratio, 1, at_most=False)
        for name, bound in LARGEST_ERROR.items():
            error = max(rows[name]["errors"].values()) if name in rows else None
            yield Goal(f"largest error of {name} on any spectrum, {size}", error, bound, at_most=True)


SECTION = Section(
    name="singular_value_clip",
    title="singular value clipping; error: of a weight's norm, against float64; largest singular value − 1",
    cases=lambda run: [*SMOKE, *SMOKE_SIZES] if run.smoke else [*CASES, *SIZES],
    measure=measure,
    calls=calls_for,
    details=details_of,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
