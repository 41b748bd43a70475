"""A whole training iteration: TrainingStep against the notebook's and against tuned PyTorch.

    python -m benchmarks.bench_step --device cuda

The losses of all contenders (contenders.py) must agree with float64. Compiled rivals run in separate processes:
torch.compile's CUDA graphs clear the cuBLAS workspaces whose addresses other graphs hold.
"""

import copy
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import accuracy, contenders, harness, suite
from benchmarks.contenders import (
    CLIP_INTERVAL,
    IN_GRAPH,
    NOTEBOOK,
    NOTEBOOK_FP32,
    SAME_ARITHMETIC,
    SEED,
    TUNED,
    Notebook,
    Start,
)
from benchmarks.harness import Timing
from benchmarks.result_files import Goal, Label, rounded
from benchmarks.suite import Run, Section
from tgan_fast import VideoDiscriminator, VideoGenerator, reference
from tgan_fast.cuda_graph import CudaGraphMode
from tgan_fast.precision import Precision
from tgan_fast.training import PRESETS, TrainingConfig, TrainingStep, train

WITHOUT_CLIPPING, WITH_CLIPPING, WITH_DATA = "without clipping", "with clipping", "with its data"
CLIPPED = "tgan_fast with clipping"  # the name of this contender while it is timed
TRAINING = "training run"  # name of the case; the other cases time iterations alone
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
STRONG = (TUNED, IN_GRAPH, COMPILED, COMPILED_QUICKLY)  # the goal compares with the best of these
# Measured in separate processes; the second one only if the first is not ready in time.
APART = (COMPILED, COMPILED_QUICKLY)
# Time limits of other processes; IN_GRAPH is first tried in one, since a failed capture breaks a process, or hangs.
SECONDS = {IN_GRAPH: 60, COMPILED: 240, COMPILED_QUICKLY: 90}

ITERATIONS = 81_000  # of a training run
BATCH_SIZES = {"cpu": (4, 8), "cuda": (32,)}  # the usual one first
SMOKE_WIDTH, SMOKE_BATCH = 1 / 16, 2
ROUNDS = {"cpu": 3, "cuda": 4}
CYCLES = 4  # in a turn on a GPU, so that the host's head start at its beginning has little effect
# Timed iterations of a training run, and earlier ones, in which graphs are captured and memory is reserved.
TRAINING_ITERATIONS, UNCOUNTED_ITERATIONS = {"cpu": 20, "cuda": 3000}, {"cpu": 5, "cuda": 200}

# These errors of losses are always allowed, since eager PyTorch's losses may happen to be nearly exact.
ALWAYS_ALLOWED = {"fp32": 1e-3, "tf32": 5e-3, "bf16": 2e-2}
# Iterations compared with float64, after which both CUDA graphs of tgan_fast are recorded. RMSprop amplifies
# rounding: after six, errors are 1e-2 to 5e-2 in float32 on a CPU, and 5e-2 in bfloat16 autocast. A CUDA graph that
# does not train exceeds the allowed error.
CHECKED = {"cpu": 1, "cuda": 8}
DRIFT_ALLOWED = 0.2


class Fast:
    """TrainingStep with the interface of its rivals."""

    memory_format = torch.channels_last_3d

    def __init__(self, start: Start, precision: Precision, clip_interval: int = 0, cuda_graph: CudaGraphMode = "auto"):
        networks = VideoGenerator(start.width), VideoDiscriminator(start.width)
        for network, same in zip(networks, start[:2], strict=True):
            network.load_state_dict(same.state_dict())
            network.to(start.device)
        options = {"precision": precision, "clip_interval": clip_interval, "cuda_graph": cuda_graph}
        self.precision, self.step = precision, TrainingStep(*networks, seed=SEED, **options)

    def __call__(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scalars = self.step(real)
        return scalars["loss_discriminator"], scalars["loss_generator"]


def fast(precision: Precision) -> str:
    """Return the name of tgan_fast in a precision."""
    return f"tgan_fast {precision}"


def cases_for(run: Run) -> list[str]:
    """Return the cases, the most important first; only a GPU has to wait for data."""
    cases = [f"batch {size}" for size in batch_sizes_of(run)]
    return [*cases, TRAINING] if run.smoke or run.device == "cuda" else cases


def batch_sizes_of(run: Run) -> tuple[int, ...]:
    """Return the sizes of batches, the usual one first."""
    return (SMOKE_BATCH,) if run.smoke else BATCH_SIZES[run.device]


def width_of(run: Run) -> float:
    """Return the width of the networks."""
    return SMOKE_WIDTH if run.smoke else 1.0


def makers_for(run: Run) -> dict[str, Callable[[Start], Any]]:
    """Return functions that make all possible contenders: tgan_fast first, and with clipping last of its own."""
    precisions = harness.precisions_for(run.device)
    own = {fast(precision): partial(Fast, precision=precision) for precision in precisions}
    own[CLIPPED] = partial(Fast, precision=precisions[0], clip_interval=CLIP_INTERVAL)
    # A CPU computes in float32 throughout, so only the users' version and the fastest take part.
    names = (NOTEBOOK, TUNED) if run.device == "cpu" else set(RIVALS).difference(APART if run.smoke else ())
    return own | {name: rival for name, rival in RIVALS.items() if name in names and not run.own_only}


def make_batches(batch_size: int, device: str) -> list[dict[torch.memory_format, torch.Tensor]]:
    """Return a cycle of random videos, each in both memory formats."""
    torch.manual_seed(0)
    videos = [torch.rand(batch_size, 3, 16, 64, 64, device=device) * 2 - 1 for _ in range(CLIP_INTERVAL)]
    layouts = torch.contiguous_format, torch.channels_last_3d
    return [{layout: video.contiguous(memory_format=layout) for layout in layouts} for video in videos]


def starting_point(run: Run, batch_size: int | None = None) -> tuple[Start, list]:
    """Return the initial networks and the batches of all contenders; by default batches of the usual size."""
    return Start.random(run.device, width_of(run)), make_batches(batch_size or batch_sizes_of(run)[0], run.device)


def call(contender, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Run an iteration, and return its losses."""
    return contender(batch[contender.memory_format])


def iterate(contender, batches, count) -> torch.Tensor:
    """Run iterations, and return their losses [count, 2] on the CPU."""
    return torch.stack([torch.stack(call(contender, batches[i % CLIP_INTERVAL])).double().cpu() for i in range(count)])


def exact_losses(start: Start, batches, count) -> torch.Tensor:
    """Return the losses of the first iterations without clipping, in float64."""
    doubled = [{layout: video.double() for layout, video in batch.items()} for batch in batches[:count]]
    return iterate(Notebook(start, torch.float64), doubled, count)


def errors_of(losses: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Return the relative errors of the first losses, and of all losses [iterations, 2]."""
    pairs = (losses[:1], exact[:1]), (losses, exact[: len(losses)])
    return tuple(accuracy.relative([got], [right]) for got, right in pairs)


def allowed_errors(precision: Precision, errors: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Return the largest errors that are allowed, given those of eager PyTorch."""
    first, all_together = errors.get(SAME_ARITHMETIC[precision], (0.0, 0.0))
    # The order matters, since max() returns a NaN only if it comes first.
    return max(ALWAYS_ALLOWED[precision], 2 * first), max(DRIFT_ALLOWED, 4 * all_together)


def set_up(run: Run, makers, start: Start, batches, exact) -> tuple[dict, dict, dict, dict]:
    """Return contenders that agree, errors, timings and memory from separate processes, and why some are left out."""
    made, apart = {}, {}

    def losses_of(name):
        if apart and name in APART:
            raise RuntimeError(f"stands in for {COMPILED}, which is ready")
        if name in SECONDS:
            with run.watch:
                losses, *measured = in_process(measure_alone, (name, run.device, run.smoke, len(exact)), SECONDS[name])
        if name in APART:
            apart[name] = measured
            return torch.tensor(losses, dtype=torch.float64)
        made[name] = makers[name](start)
        losses = iterate(made[name], batches, len(exact))
        # Clipping changes all iterations but the first.
        return losses[:1] if name == CLIPPED else losses

    def allowed(name, errors):
        return allowed_errors((made[name] if name in made else RIVALS[name]).precision, errors)

    calls = {name: partial(losses_of, name) for name in makers}
    errors, left_out = accuracy.check_contenders("a step", calls, partial(errors_of, exact=exact), allowed, RIVALS)
    for name in left_out:
        made.pop(name, None), apart.pop(name, None)
    return made, errors, apart, left_out


def measure(run: Run, case: str) -> dict:
    """Check and time iterations alone, on the same videos repeatedly, or measure a training run."""
    if case == TRAINING:
        return measure_training(run)
    size = int(case.split()[1])
    makers, (start, batches) = makers_for(run), starting_point(run, size)
    exact = exact_losses(start, batches, CHECKED[run.device])
    contenders, errors, apart, left_out = set_up(run, makers, start, batches, exact)
    timings = time_in_turns(run, contenders, batches)
    if not run.own_only:
        discriminator = copy.deepcopy(start.discriminator).to(run.device)
        svd, uncaptured = {"svd": lambda _: reference.constrain(discriminator)}, {"svd": "it waits for the GPU"}
        svd_seconds = run.measure(svd, [None], ROUNDS[run.device], uncaptured=uncaptured)["svd"].median
    own, *others = list(contenders)
    del contenders
    peaks = {name: contender_peak_bytes(makers[name], start, batches) for name in others}
    peaks[own] = peaks[CLIPPED]  # all that tgan_fast needs
    for name, (timing, peak) in apart.items():
        timings[name], peaks[name] = timing, peak
        run.rivals.add(name)
    clipped = {own: timings.pop(CLIPPED)} if CLIPPED in timings else {}
    for name in filter(run.rivals.__contains__, timings):
        rounds = [seconds + svd_seconds / CLIP_INTERVAL for seconds in timings[name].rounds]
        clipped[name] = Timing.of(rounds, f"{timings[name].method}; a fifth of torch.linalg.svd added")

    def more(name):
        return {"error": errors[name][0] if name in errors else None, "peak_bytes": peaks.get(name)}

    columns = (WITHOUT_CLIPPING, timings), (WITH_CLIPPING, clipped)
    return {
        "batch_size": size,
        "timings": [row for part, column in columns for row in run.rows(column, part, more=more)],
        "left_out": left_out,
    }


def time_in_turns(run: Run, contenders, batches) -> dict[str, Timing]:
    """Return timings of an iteration, in turns of whole cycles; on a CPU, of single iterations if nothing clips."""
    on_gpu, calls = run.device == "cuda", {name: partial(call, each) for name, each in contenders.items()}
    if CLIPPED in contenders and not on_gpu:
        calls[CLIPPED] = lambda _: [call(contenders[CLIPPED], batch) for batch in batches]
    timings = run.measure(
        calls,
        batches * (1 if run.smoke else CYCLES) if on_gpu else batches[:1],
        ROUNDS[run.device],
        rivals=contenders.keys() & RIVALS.keys(),
        # Synchronizing denies a contender a head start while the GPU still works for the previous one.
        prepare=(lambda _: torch.cuda.synchronize()) if on_gpu else None,
        uncaptured=dict.fromkeys(calls, "each as its users run it"),
        warm=True,
    )
    if CLIPPED in timings and not on_gpu:
        timings[CLIPPED] = Timing.of([seconds / CLIP_INTERVAL for seconds in timings[CLIPPED].rounds], "")
    return {name: timing._replace(method="each contender as its users run it") for name, timing in timings.items()}


def contender_peak_bytes(make, start, batches) -> int | None:
    """Return the peak GPU memory, without the batches, while a new contender runs; None on a CPU."""
    # The contender is new, since choosing algorithms takes memory once.
    count = CHECKED["cuda"]
    return harness.peak_bytes(lambda: iterate(make(start), batches, count)) if start.device == "cuda" else None


def measure_alone(name: str, device: str, smoke: bool, checked: int) -> tuple:
    """Return the first losses, the timing and the memory of a rival."""
    run = Run(device, smoke=smoke)
    start, batches = starting_point(run)
    contender = RIVALS[name](start)
    losses = iterate(contender, batches, checked).tolist()
    timing = time_in_turns(run, {name: contender}, batches)[name]
    del contender
    return losses, timing, contender_peak_bytes(RIVALS[name], start, batches)


def in_process(function: Callable, arguments: tuple, seconds: float) -> Any:
    """Return the result of a function of this module in a new process; RuntimeError if it fails or is too slow."""
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result(seconds)
        except futures.TimeoutError:
            raise RuntimeError(f"not ready after {seconds} s") from None
        except Exception as error:
            raise RuntimeError(harness.short_reason(error)) from error
        finally:
            # The process may hang, even at its exit.
            for process in pool._processes.values():
                process.kill()


def measure_training(run: Run) -> dict:
    """Measure a training run of the paper's preset with its data, samples and checkpoints."""
    precision, uncounted = harness.precisions_for(run.device)[0], UNCOUNTED_ITERATIONS[run.device]
    steps = {"precision": precision, "device": run.device, "steps": uncounted + TRAINING_ITERATIONS[run.device]}
    size = {"width": width_of(run), "batch_size": batch_sizes_of(run)[0]}
    config = TrainingConfig(**PRESETS["paper"] | size | steps)
    on_gpu, marks, step = run.device == "cuda", [], TrainingStep.__call__

    def mark():
        marks.append(torch.cuda.Event(enable_timing=True) if on_gpu else time.perf_counter())
        if on_gpu:
            marks[-1].record()

    def marked(*args):
        mark()
        scalars = step(*args)
        mark()
        return scalars

    with run.watch, tempfile.TemporaryDirectory() as folder, mock.patch.object(TrainingStep, "__call__", marked):
        train(config, Path(folder) / "run")
    start, *_ = marks = marks[2 * uncounted :]
    if on_gpu:
        torch.cuda.synchronize()
    times = [start.elapsed_time(mark) / 1e3 if on_gpu else mark - start for mark in marks]
    steps, total = [end - begin for begin, end in zip(times[::2], times[1::2], strict=True)], times[-1]
    row = run.row(Label(fast(precision), WITH_DATA), Timing.of([total / len(steps)], "mean of a whole run"))
    idle = rounded(1 - seconds_without_waits(steps, config.clip_interval) / total)
    return {**size, "gpu_idle": idle, "timings": [row], "left_out": {}}


def seconds_without_waits(steps: Sequence[float], clip_interval: int) -> float:
    """Return the time of all steps without waits for the host: each kind of step counts with its first quartile."""
    clipped = steps[::clip_interval]
    others = [seconds for index, seconds in enumerate(steps) if index % clip_interval]
    return sum(len(kind) * statistics.quantiles(kind, n=4)[0] for kind in (clipped, others))


def calls_for(run: Run, case: str) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Return functions that make calls of an iteration without clipping, for contenders without separate processes."""

    def make(maker):
        start, batches = starting_point(run, int(case.split()[1]))
        contender = maker(start)
        iterate(contender, batches, CHECKED[run.device])
        batches = itertools.cycle(batches)
        return lambda: call(contender, next(batches))

    makers = {} if case == TRAINING else makers_for(run)
    names = [name for name in makers if name not in (CLIPPED, *SECONDS)]
    return {f"{WITHOUT_CLIPPING} {name}": partial(make, makers[name]) for name in names}


def rows_of(records: list[dict], batch_size: int) -> dict[Label, dict]:
    """Return the rows of batches of one size; tgan_fast first."""
    records = [record for record in records if record["batch_size"] == batch_size]
    return {Label.of(row): row for record in records for row in record["timings"]}


def conclude(run: Run, records: list[dict]) -> dict:
    """Return the time of an iteration in training."""
    rows = rows_of(records, batch_sizes_of(run)[0])
    rows = [row for label, row in rows.items() if label.part == WITH_CLIPPING]
    return {"seconds_an_iteration": rows[0]["seconds"]} if rows else {}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals of tgan_fast; on a CPU there are some for every batch size, including clipping."""
    if device == "cpu":
        return _goals_on_cpu(records)
    rows = rows_of(records, BATCH_SIZES[device][0])
    own = next((label.contender for label in rows), "")

    def value(key, part, name=own, unit=1.0):
        found = rows.get(Label(name, part), {}).get(key)
        return None if found is None else rounded(found / unit)

    to_notebook = value("ratio", WITH_CLIPPING, NOTEBOOK)
    strong = [ratio for name in STRONG if (ratio := value("ratio", WITHOUT_CLIPPING, name)) is not None]
    peaks = [value("peak_bytes", WITHOUT_CLIPPING, name) for name in (own, NOTEBOOK)]
    minutes = value("seconds", WITH_CLIPPING, unit=60 / ITERATIONS)
    idle = next((record["gpu_idle"] for record in records if "gpu_idle" in record), None)
    return [
        Goal("ms an iteration without clipping", value("seconds", WITHOUT_CLIPPING, unit=1e-3), 3.0, True),
        Goal(f"minutes for {ITERATIONS:,} iterations with clipping", minutes, 5, True),
        Goal("times as fast as the notebook with torch.linalg.svd", to_notebook, 30, False),
        Goal("times as fast as the notebook without clipping", value("ratio", WITHOUT_CLIPPING, NOTEBOOK), 10, False),
        Goal("times as fast as the best of tuned, in a CUDA graph and compiled", min(strong, default=None), 2, False),
        Goal("GB of memory", value("peak_bytes", WITHOUT_CLIPPING, unit=1e9), 0.8, True),
        Goal("of the notebook's memory", None if None in peaks else rounded(peaks[0] / peaks[1]), 0.35, True),
        Goal("of a training run the GPU is idle", idle, 0.02, True),
    ]


def _goals_on_cpu(records):
    bounds = {NOTEBOOK: 2.8, suite.memory_kept(NOTEBOOK): 2.0, suite.memory_kept(TUNED): 1.4}
    goals = []
    for size in BATCH_SIZES["cpu"]:
        rows = rows_of(records, size)
        for name, bound in bounds.items():
            ratio = rows.get(Label(name, WITH_CLIPPING), {}).get("ratio")
            goals.append(Goal(f"times as fast as {name}, batch {size}", ratio, bound, at_most=False))
    return goals


SECTION = Section(
    name="step",
    title="a training iteration, without singular value clipping and with it in every fifth; error: of losses",
    cases=cases_for,
    measure=measure,
    calls=calls_for,
    conclude=conclude,
    goals=goals_for,
    both_ways=True,
)

if __name__ == "__main__":
    suite.main(SECTION)
