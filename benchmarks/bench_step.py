"""A whole training iteration: TrainingStep against the notebook's, and against plain PyTorch tuned in every usual way.

    python -m benchmarks.bench_step --device cuda

All contenders (contenders.py) begin with the same weights, latents and videos, and first their losses must agree with
float64. Then they take turns. tgan_fast runs once without singular value clipping and once with it in every fifth
iteration, as in training; for the others the clipping with torch.linalg.svd is timed by itself, and a fifth of it
added. On a GPU follow the memory that each needs, larger batches with the rivals that are ready at once, and a training
run with its data. Rivals that compile are measured in a process of their own: torch.compile's CUDA graphs clear the
cuBLAS workspaces whose addresses other graphs hold.
"""

import functools
import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent import futures
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks import accuracy, contenders, harness, suite
from benchmarks.contenders import IN_GRAPH, NOTEBOOK, NOTEBOOK_FP32, SAME_ARITHMETIC, SEED, TUNED, Notebook, Start
from benchmarks.harness import Timing
from benchmarks.results import Goal, Label, rounded
from benchmarks.suite import Run, Section
from benchmarks.training_run import time_training
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.cuda_graph import CudaGraphMode
from tgan_fast.errors import InputError, telling_of_memory
from tgan_fast.precision import Precision
from tgan_fast.training import PRESETS, TrainingConfig, TrainingStep

WITHOUT_CLIPPING, WITH_CLIPPING, WITH_DATA = "without clipping", "with clipping", "with its data"
CLIPPED = "tgan_fast with clipping"  # the name of this contender while it is timed
UNWASTED = "without wasted work"
COMPILED, COMPILED_QUICKLY = "tuned, max-autotune", "tuned, reduce-overhead"
RIVALS = {
    NOTEBOOK: Notebook,
    NOTEBOOK_FP32: contenders.StrictNotebook,
    UNWASTED: contenders.WithoutWaste,
    TUNED: contenders.Tuned,
    IN_GRAPH: contenders.TunedInGraph,
    COMPILED: contenders.Compiled,
    COMPILED_QUICKLY: contenders.CompiledQuickly,
}
# Those that shall be beaten clearly.
STRONG = (TUNED, IN_GRAPH, COMPILED, COMPILED_QUICKLY)
# Measured in a process of its own; the second only where the first is not ready in time.
APART = (COMPILED, COMPILED_QUICKLY)
# Time limits in another process, where IN_GRAPH is only tried first: a failed capture ruins a process, or hangs.
SECONDS = {IN_GRAPH: 60, COMPILED: 240, COMPILED_QUICKLY: 90}

CYCLE = 5  # iterations, one of which clips
ITERATIONS = 81_000  # of a training run
DEFAULT_BATCH = {"cpu": 4, "cuda": 32}
LARGER_BATCHES = (64, 128, 256)
SMOKE_WIDTH, SMOKE_BATCH = 1 / 16, 2
# Videos of a turn on a GPU: so many that the host's head start at its beginning does not count.
TURN = 4 * CYCLE * DEFAULT_BATCH["cuda"]
ROUNDS = {"cpu": 3, "cuda": 4}
# tgan_fast's before it is timed, and before its memory is read: both of its CUDA graphs are recorded by then.
WARM_UP = {"cpu": 0, "cuda": 2 * CYCLE}
METHODS = {"cpu": "perf_counter", "cuda": "events around iterations, each contender as its users run it"}
TRAINING_ITERATIONS = {"cpu": 20, "cuda": 3000}

# Errors of losses that are always allowed, since two losses may happen to be nearly exact. Bfloat16 autocast is off by
# 5e-3 of them on a CPU, float32 by 2e-7.
ALWAYS_ALLOWED = {"fp32": 1e-3, "tf32": 5e-3, "bf16": 2e-2}
# Iterations compared with float64. RMSprop enlarges every rounding: of six, float32 itself is off by 1e-2 to 5e-2 on a
# CPU, bfloat16 autocast by 5e-2. A CUDA graph that does not train is off by more than what is allowed.
CHECKED = {"cpu": 1, "cuda": 8}
DRIFT_ALLOWED = 0.2


class Case(NamedTuple):
    """Iterations by themselves, or a training run with its data."""

    batch_size: int
    whole_run: bool = False

    def __str__(self):
        return "training run" if self.whole_run else f"batch {self.batch_size}"


class Fast:
    """TrainingStep, called as its rivals are."""

    memory_format = torch.channels_last_3d

    def __init__(self, start: Start, precision: Precision, clip_interval: int = 0, cuda_graph: CudaGraphMode = "auto"):
        generator, discriminator = VideoGenerator(start.width), VideoDiscriminator(start.width)
        generator.load_state_dict(start.generator)
        discriminator.load_state_dict(start.discriminator)
        networks = generator.to(start.device), discriminator.to(start.device)
        options = {"precision": precision, "clip_interval": clip_interval, "cuda_graph": cuda_graph}
        self.precision, self.step = precision, TrainingStep(*networks, seed=SEED, **options)

    def prepare(self, real: torch.Tensor) -> None:
        """Do nothing: the first iterations prepare what is needed."""

    def __call__(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scalars = self.step(real)
        return scalars["loss_discriminator"], scalars["loss_generator"]


def fast(precision: Precision) -> str:
    """Return the name of tgan_fast in an arithmetic."""
    return f"tgan_fast {precision}"


def cases_for(run: Run) -> list[Case]:
    """Return the cases, the most important first."""
    first = Case(SMOKE_BATCH if run.smoke else DEFAULT_BATCH[run.device])
    if run.device == "cpu" and not run.smoke:
        return [first]
    return [first, first._replace(whole_run=True), *map(Case, () if run.smoke else LARGER_BATCHES)]


def width_of(run: Run) -> float:
    """Return the width of the networks."""
    return SMOKE_WIDTH if run.smoke else 1.0


def makers_for(run: Run, case: Case) -> dict[str, Callable[[Start], Any]]:
    """Return what makes the contenders that might take part; tgan_fast first, at last among its own with clipping."""
    first, *others = harness.precisions_for(run.device)
    larger = case.batch_size in LARGER_BATCHES
    own = {fast(precision): partial(Fast, precision=precision) for precision in (first, *([] if larger else others))}
    own[CLIPPED] = partial(Fast, precision=first, clip_interval=CYCLE)
    if run.own_only:
        return own
    if run.device == "cpu":
        names = [NOTEBOOK, UNWASTED, TUNED]  # what differs where all is float32
    elif larger:
        names = [TUNED, IN_GRAPH]
    else:
        names = [name for name in RIVALS if not (run.smoke and name in APART)]
    return own | {name: RIVALS[name] for name in names}


def make_batches(batch_size: int, device: str) -> list[dict[torch.memory_format, torch.Tensor]]:
    """Return a cycle of random videos, each in both memory formats."""
    torch.manual_seed(0)
    videos = [torch.rand(batch_size, 3, 16, 64, 64, device=device) * 2 - 1 for _ in range(CYCLE)]
    formats = torch.contiguous_format, torch.channels_last_3d
    return [{form: video.contiguous(memory_format=form) for form in formats} for video in videos]


def call(contender, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Do an iteration; return its losses."""
    return contender(batch[contender.memory_format])


def iterate(contender, batches, count) -> list[torch.Tensor]:
    """Do iterations; return the losses [2] of each on the CPU."""
    return [torch.stack(call(contender, batches[index % CYCLE])).double().cpu() for index in range(count)]


def exact_losses(start: Start, batches, count) -> torch.Tensor:
    """Return the losses of the first iterations without clipping, in float64."""
    doubled = [{form: video.double() for form, video in batch.items()} for batch in batches[:count]]
    return torch.stack(iterate(Notebook(start, torch.float64), doubled, count))


class Errors(NamedTuple):
    """Errors of a contender's losses, in units of their size, against float64."""

    first: float  # of the first iteration
    drift: float  # of all that are compared

    @classmethod
    def of(cls, got: torch.Tensor, exact: torch.Tensor) -> "Errors":
        """Compare losses [iterations, 2] with as many of the exact ones."""
        pairs = (got[:1], exact[:1]), (got, exact[: len(got)])
        return cls(*(rounded(((losses - right).norm() / right.norm()).item()) for losses, right in pairs))


def allowed_errors(precision: Precision, errors: dict[str, Errors]) -> Errors:
    """Return the largest errors that are allowed, given those of eager PyTorch."""
    eager = errors.get(SAME_ARITHMETIC[precision], Errors(0.0, 0.0))
    # In this order: max() returns a NaN only if it comes first.
    return Errors(max(ALWAYS_ALLOWED[precision], 2 * eager.first), max(DRIFT_ALLOWED, 4 * eager.drift))


def disagreement(error: Errors, precision: Precision, errors: dict[str, Errors]) -> str | None:
    """Return why what a contender computes is something else; None if it is not."""
    allowed = allowed_errors(precision, errors)
    if error.first <= allowed.first and error.drift <= allowed.drift:
        return None
    return "its losses are off by {:.1e}, later {:.1e}, more than {:.1e}, {:.1e}".format(*error, *allowed)


def set_up(run: Run, case: Case, makers, start: Start, batches, exact) -> tuple[dict, dict[str, Errors], dict, dict]:
    """Make contenders and compare their losses with the exact ones.

    Returns:
        Contenders that run and agree; errors; timing and memory of those in processes of their own; why others are left
        out.

    Raises:
        SystemExit: tgan_fast computes something else.
    """
    contenders, apart = {}, {}

    def losses_of(name):
        if name in APART:
            if apart:
                raise RuntimeError(f"stands in for {COMPILED}, which is ready")
            arguments = name, run.device, run.smoke, case, len(exact)
            with run.watch:
                losses, rounds, peak = in_process(_measure_alone, arguments, SECONDS[name])
            apart[name] = Timing.of(rounds, f"{METHODS[run.device]}, in a process of its own"), peak
            return torch.tensor(losses, dtype=torch.float64)
        if name == IN_GRAPH and refusal() is not None:
            raise RuntimeError(refusal())
        contender = makers[name](start)
        contender.prepare(batches[0][contender.memory_format])
        # Clipping changes all but the first iteration.
        losses = torch.stack(iterate(contender, batches, 1 if name == CLIPPED else len(exact)))
        contenders[name] = contender
        return losses

    def allowed(name, errors):
        return allowed_errors((contenders[name] if name in contenders else RIVALS[name]).precision, errors)

    calls = {name: partial(losses_of, name) for name in makers}
    errors, left_out = accuracy.check(case, calls, lambda losses: Errors.of(losses, exact), allowed, RIVALS)
    contenders, apart = ({name: each[name] for name in errors if name in each} for each in (contenders, apart))
    return contenders, errors, apart, left_out


def measure(run: Run, case: Case) -> dict:
    """Check and time one case.

    Raises:
        SystemExit: tgan_fast computes something else, or the GPU has too little memory.
    """
    try:
        with telling_of_memory(f"{case.batch_size} videos do not fit into the memory: leave {case} out with --only"):
            return measure_training(run, case) if case.whole_run else measure_iterations(run, case)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def measure_iterations(run: Run, case: Case) -> dict:
    """Measure iterations by themselves, on the same videos again and again."""
    start, makers = Start.random(run.device, width_of(run)), makers_for(run, case)
    batches, larger = make_batches(case.batch_size, run.device), case.batch_size in LARGER_BATCHES
    exact = exact_losses(start, batches, 1 if larger else CHECKED[run.device])
    contenders, errors, apart, left_out = set_up(run, case, makers, start, batches, exact)
    timings, svd, peaks = time_in_turns(run, contenders, batches), time_svd(run, contenders), {}
    names = list(contenders)
    del contenders
    if run.device == "cuda" and not larger:
        # Of new contenders, since choosing algorithms takes memory once; all that tgan_fast needs is with clipping.
        peaks = {name: peak_bytes(partial(makers[name], start), batches) for name in names}
        peaks[names[0]] = peaks[CLIPPED]
    for name, (timing, peak) in apart.items():
        timings[name], peaks[name] = timing, peak
        run.rivals.add(name)
    return {
        "batch_size": case.batch_size,
        "width": start.width,
        "svd_seconds": svd and rounded(svd),
        "timings": _rows(run, case, timings, svd, errors, peaks),
        "left_out": left_out,
    }


def time_in_turns(run: Run, contenders, batches) -> dict[str, Timing]:
    """Return timings of an iteration: in turns of whole cycles, but on a CPU of one iteration where nothing clips."""
    calls, sets = {name: partial(call, contender) for name, contender in contenders.items()}, batches[:1]
    if run.device == "cuda":
        sets = batches * (1 if run.smoke else max(1, TURN // CYCLE // len(batches[0][torch.contiguous_format])))
    elif CLIPPED in contenders:
        calls[CLIPPED] = lambda _: [call(contenders[CLIPPED], batch) for batch in batches]
    for name in contenders.keys() - RIVALS.keys():
        iterate(contenders[name], batches, WARM_UP[run.device])
    timings = run.measure(
        calls,
        sets,
        ROUNDS[run.device],
        rivals=contenders.keys() & RIVALS.keys(),
        # Nobody gets a head start while the GPU works for the one before.
        prepare=(lambda _: torch.cuda.synchronize()) if run.device == "cuda" else None,
        uncaptured=dict.fromkeys(calls, "each as its users run it"),
        warm=True,
    )
    if run.device == "cpu" and CLIPPED in timings:
        timings[CLIPPED] = Timing.of([seconds / CYCLE for seconds in timings[CLIPPED].rounds], "")
    return {name: timing._replace(method=METHODS[run.device]) for name, timing in timings.items()}


def time_svd(run: Run, contenders) -> float | None:
    """Return the seconds in which torch.linalg.svd clips all weights; None without a rival."""
    rival = next((contender for name, contender in contenders.items() if name in RIVALS), None)
    if rival is None:
        return None
    calls, uncaptured = {"svd": lambda _: rival.constrain()}, {"svd": "it waits for the GPU"}
    return run.measure(calls, [None], ROUNDS[run.device], uncaptured=uncaptured, warm=True)["svd"].median


def _rows(run, case, timings, svd, errors, peaks):
    own, method = next(iter(timings)), f"{METHODS[run.device]}; a fifth of torch.linalg.svd added"
    clipped = {own: timings.pop(CLIPPED)} | {
        name: Timing.of([seconds + svd / CYCLE for seconds in timing.rounds], method)
        for name, timing in timings.items()
        if name in RIVALS
    }

    def without(name):
        return {"error": errors[name].first if name in errors else None, "peak_bytes": peaks.get(name)}

    def with_clipping(name):
        error = errors[CLIPPED if name == own else name].first
        return {"error": error, **speed_of(clipped[name].median, case.batch_size)}

    rows = run.rows(timings, WITHOUT_CLIPPING, more=without)
    return [*rows, *run.rows(clipped, WITH_CLIPPING, more=with_clipping)]


def speed_of(seconds: float, batch_size: int) -> dict[str, float]:
    """Return the speed of iterations that take so long with all that belongs to them."""
    return {"videos_per_second": rounded(batch_size / seconds), "minutes": rounded(ITERATIONS * seconds / 60)}


def peak_bytes(make: Callable[[], Any], batches) -> int:
    """Return the most memory in use on a GPU, but for the batches, while a new contender prepares itself and runs."""

    def run():
        contender = make()
        contender.prepare(batches[0][contender.memory_format])
        iterate(contender, batches, WARM_UP["cuda"])

    return harness.peak_bytes(run)


@functools.cache
def refusal() -> str | None:
    """Return why the rival in a CUDA graph cannot run on the GPU, tried in another process; None if it can."""
    try:
        in_process(_measure_alone, (IN_GRAPH, "cuda", False, Case(DEFAULT_BATCH["cuda"]), 2), SECONDS[IN_GRAPH])
    except RuntimeError as error:
        return str(error)
    return None


def _measure_alone(name, device, smoke, case, checked):
    run = Run(device, smoke=smoke)
    make = partial(RIVALS[name], Start.random(device, width_of(run)))
    contender, batches = make(), make_batches(case.batch_size, run.device)
    contender.prepare(batches[0][contender.memory_format])
    losses = torch.stack(iterate(contender, batches, checked)).tolist()
    rounds = time_in_turns(run, {name: contender}, batches)[name].rounds
    del contender
    return losses, rounds, peak_bytes(make, batches) if run.device == "cuda" else None


def in_process(function: Callable, arguments: tuple, seconds: float) -> Any:
    """Call a function of this module in a new process and return its result.

    Raises:
        RuntimeError: It raised an error or took longer than `seconds`, or its process died.
    """
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result(seconds)
        except futures.TimeoutError:
            raise RuntimeError(f"not ready after {seconds} s") from None
        except Exception as error:
            raise RuntimeError(harness.first_line(error)) from error
        finally:
            # It may hang, also at its end.
            for process in pool._processes.values():
                process.kill()


def measure_training(run: Run, case: Case) -> dict:
    """Measure a training run of the paper's preset with its data, samples and checkpoints."""
    precision, iterations = harness.precisions_for(run.device)[0], TRAINING_ITERATIONS[run.device]
    size = {"width": width_of(run), "batch_size": case.batch_size}
    config = TrainingConfig(**PRESETS["paper"] | size | {"precision": precision, "device": run.device})
    with run.watch:
        timing, idle = time_training(config, iterations)
    row = run.row(Label(fast(precision), WITH_DATA), timing, **speed_of(timing.median, case.batch_size))
    return {**size, "iterations": iterations, "gpu_idle": rounded(idle), "timings": [row], "left_out": {}}


def calls_for(run: Run, case: Case) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Return what makes calls of an iteration without clipping, of contenders that need no process of their own."""

    def make(maker):
        contender, batches = maker(Start.random(run.device, width_of(run))), make_batches(case.batch_size, run.device)
        iterate(contender, batches, WARM_UP[run.device])
        batches = itertools.cycle(batches)
        return lambda: call(contender, next(batches))

    makers = {} if case.whole_run else makers_for(run, case)
    return {
        f"{WITHOUT_CLIPPING} {name}": partial(make, maker)
        for name, maker in makers.items()
        if name not in (IN_GRAPH, CLIPPED, *APART)
    }


def usual_rows(records: list[dict], device: str) -> dict[Label, dict]:
    """Return the rows of batches of the default size; tgan_fast first."""
    usual = [record for record in records if record["batch_size"] == DEFAULT_BATCH[device]]
    return {Label.of(row): row for record in usual for row in record["timings"]}


def conclude(run: Run, records: list[dict]) -> dict:
    """Return the time of an iteration in training."""
    own = fast(harness.precisions_for(run.device)[0])
    row = usual_rows(records, run.device).get(Label(own, WITH_CLIPPING))
    return {} if row is None else {"seconds_an_iteration": row["seconds"]}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals of tgan_fast on batches of the default size."""
    rows = usual_rows(records, device)
    own = next((label.contender for label in rows), "")

    def value(key, part, name=own, unit=1.0):
        found = rows.get(Label(name, part), {}).get(key)
        return None if found is None else rounded(found / unit)

    to_notebook = value("ratio", WITH_CLIPPING, NOTEBOOK)
    if device == "cpu":
        return [Goal("times as fast as the notebook, clipping included", to_notebook, 2, at_most=False)]
    strong = [ratio for name in STRONG if (ratio := value("ratio", WITHOUT_CLIPPING, name)) is not None]
    peaks = [value("peak_bytes", WITHOUT_CLIPPING, name) for name in (own, NOTEBOOK)]
    idle = next((record["gpu_idle"] for record in records if "gpu_idle" in record), None)
    return [
        Goal("ms an iteration without clipping", value("seconds", WITHOUT_CLIPPING, unit=1e-3), 3.0, True),
        Goal(f"minutes for {ITERATIONS:,} iterations with clipping", value("minutes", WITH_CLIPPING), 5, True),
        Goal("times as fast as the notebook with torch.linalg.svd", to_notebook, 30, False),
        Goal("times as fast as the notebook without clipping", value("ratio", WITHOUT_CLIPPING, NOTEBOOK), 10, False),
        Goal("times as fast as the best of tuned, in a CUDA graph and compiled", min(strong, default=None), 2, False),
        Goal("GB of memory", value("peak_bytes", WITHOUT_CLIPPING, unit=1e9), 0.8, True),
        Goal("of the notebook's memory", None if None in peaks else rounded(peaks[0] / peaks[1]), 0.35, True),
        Goal("of a training run the GPU is idle", idle, 0.02, True),
    ]


def details(record: dict) -> Iterator[str]:
    """Describe clipping, memory, and a training run."""
    if "gpu_idle" in record:
        (row,) = record["timings"]
        yield (
            f"  {record['iterations']} iterations: {row['videos_per_second']:.0f} videos/s, {row['minutes']:.1f} "
            f"minutes for {ITERATIONS:,} iterations; GPU idle {100 * record['gpu_idle']:.1f} %"
        )
    elif record["svd_seconds"] is not None:
        yield f"  torch.linalg.svd clips all weights in {1e3 * record['svd_seconds']:.1f} ms"
    for row in record["timings"]:
        if row.get("peak_bytes") is not None:
            yield f"  {row['contender']} needs {row['peak_bytes'] / 1e9:.3f} GB"


SECTION = Section(
    name="step",
    title="a training iteration, without singular value clipping and with it in every fifth; error: of losses",
    cases=cases_for,
    measure=measure,
    calls=calls_for,
    details=details,
    conclude=conclude,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
