"""A whole training iteration: TrainingStep against the notebook's, and against plain PyTorch tuned in every usual way.

    python -m benchmarks.bench_step --device cuda

All contenders (contenders.py) begin with the same weights, latents and videos, and first their losses must agree with
float64. Then they take turns. tgan_fast runs once without singular value clipping and once with it in every fifth
iteration, as in training; for the others the clipping with torch.linalg.svd is timed by itself, and a fifth of it
added. Then follows the memory that each needs. Rivals that compile are measured last, in a process of their own:
torch.compile's CUDA graphs clear the cuBLAS workspaces whose addresses earlier graphs hold. On a GPU there are larger
batches, with the rivals that are ready at once, and a training run with its data.
"""

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks import harness, peak_memory, suite
from benchmarks.contenders import (
    IN_GRAPH,
    NOTEBOOK,
    NOTEBOOK_FP32,
    SAME_ARITHMETIC,
    SEED,
    TUNED,
    Compiled,
    CompiledQuickly,
    Notebook,
    Start,
    StrictNotebook,
    Tuned,
    TunedInGraph,
    WithoutWaste,
)
from benchmarks.harness import Timing
from benchmarks.results import Goal, rounded
from benchmarks.suite import Label, Run, Section
from benchmarks.training_run import time_training
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.cuda_graph import CudaGraphMode
from tgan_fast.errors import is_out_of_memory
from tgan_fast.precision import Precision
from tgan_fast.training import PRESETS, TrainingConfig, TrainingStep

WITHOUT_CLIPPING, WITH_CLIPPING, WITH_DATA = "without clipping", "with clipping", "with its data"
UNWASTED = "without wasted work"
COMPILED, COMPILED_QUICKLY = "tuned, max-autotune", "tuned, reduce-overhead"
RIVALS = {
    NOTEBOOK: Notebook,
    NOTEBOOK_FP32: StrictNotebook,
    UNWASTED: WithoutWaste,
    TUNED: Tuned,
    IN_GRAPH: TunedInGraph,
    COMPILED: Compiled,
    COMPILED_QUICKLY: CompiledQuickly,
}
# Those that shall be beaten clearly.
STRONG = (TUNED, IN_GRAPH, COMPILED, COMPILED_QUICKLY)
# Tried in a separate process first, because it may corrupt the process or hang.
PROBED = IN_GRAPH
# Measured in a process of its own.
APART = (COMPILED, COMPILED_QUICKLY)
# Time limit of each of these processes, in seconds.
SECONDS = {IN_GRAPH: 60, COMPILED: 240, COMPILED_QUICKLY: 90}
SECONDS_TO_END = 20

CYCLE = 5  # iterations, one of which clips
ITERATIONS = 81_000  # of a training run
DEFAULT_BATCH = {"cpu": 4, "cuda": 32}
LARGER_BATCHES = (64, 128, 256)
WIDTH = 1.0
SMOKE_WIDTH, SMOKE_BATCH = 1 / 16, 2
# Videos of a turn on a GPU: so many that the host's head start at its beginning does not count.
TURN = 4 * CYCLE * DEFAULT_BATCH["cuda"]
ROUNDS = {"cpu": 3, "cuda": 4}
# tgan_fast's before it is timed, and before its memory is read: both of its CUDA graphs are recorded by then.
WARM_UP = {"cpu": 0, "cuda": 2 * CYCLE}
METHODS = {"cpu": "perf_counter", "cuda": "events around iterations, each contender as its users run it"}

# Errors of losses that are always allowed, since two losses may happen to be nearly exact. Bfloat16 autocast is off by
# 5e-3 of them on a CPU, float32 by 2e-7.
ALWAYS_ALLOWED = {"fp32": 1e-3, "tf32": 5e-3, "bf16": 2e-2}
# Iterations compared with float64. RMSprop enlarges every rounding: of six, float32 itself is off by 1e-2 to 5e-2 on a
# CPU, bfloat16 autocast by 5e-2. A CUDA graph that does not train is off by more than what is allowed.
CHECKED = {"cpu": 1, "cuda": 8}
DRIFT_ALLOWED = 0.2

TRAINING_SECONDS, SMOKE_TRAINING_SECONDS = 10, 0.5


class Case(NamedTuple):
    """What is measured."""

    batch_size: int
    whole_run: bool = False  # a training run with its data, instead of iterations by themselves

    @property
    def larger(self):
        """Only contenders that need no long preparation take part."""
        return self.batch_size in LARGER_BATCHES

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
        self.precision = precision
        self.step = TrainingStep(
            *networks, clip_interval=clip_interval, seed=SEED, precision=precision, cuda_graph=cuda_graph
        )

    def prepare(self, real: torch.Tensor) -> None:
        """It prepares itself in its first iterations."""

    def __call__(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scalars = self.step(real)
        return scalars["loss_discriminator"], scalars["loss_generator"]


def fast(precision) -> str:
    """The name of tgan_fast in an arithmetic."""
    return f"tgan_fast {precision}"


def clipping(name) -> str:
    """The name of the contender that is tgan_fast with singular value clipping."""
    return f"{name} clipping"


def cases_for(run: Run) -> list[Case]:
    """What is measured, the most important first."""
    first = Case(SMOKE_BATCH if run.smoke else DEFAULT_BATCH[run.device])
    if run.smoke:
        return [first, first._replace(whole_run=True)]
    if run.device == "cpu":
        return [first]
    return [first, first._replace(whole_run=True), *map(Case, LARGER_BATCHES)]


def width_of(run) -> float:
    """Of the networks."""
    return SMOKE_WIDTH if run.smoke else WIDTH


def precisions_for(run, case) -> list[Precision]:
    """Of tgan_fast."""
    precisions = harness.precisions_for(run.device)
    return precisions[:1] if case.larger else precisions


def rivals_for(run, case) -> list[str]:
    """Those that might take part. On a CPU, where all is float32, those that differ there."""
    if run.own_only:
        return []
    if run.device == "cpu":
        return [NOTEBOOK, UNWASTED, TUNED]
    if case.larger:
        return [TUNED, IN_GRAPH]
    return [name for name in RIVALS if not (run.smoke and name in (COMPILED, COMPILED_QUICKLY))]


def without_refused(rivals, batch_size) -> tuple[list[str], dict[str, str]]:
    """Return the rivals that can run in this process, and for others the reason why they cannot."""
    names = [name for name in rivals if name not in APART]
    reason = refusal(batch_size) if PROBED in names else None
    if reason is None:
        return names, {}
    return [name for name in names if name != PROBED], {PROBED: reason}


def makers_for(start, precisions, rivals) -> dict[str, Callable]:
    """What makes each contender; tgan_fast in the first precision comes first, and once more with clipping."""
    own = fast(precisions[0])
    makers = {fast(precision): lambda p=precision: Fast(start, p) for precision in precisions}
    makers[clipping(own)] = lambda: Fast(start, precisions[0], CYCLE)
    return makers | {name: lambda name=name: RIVALS[name](start) for name in rivals}


def make_batches(batch_size, device) -> list[dict[torch.memory_format, torch.Tensor]]:
    """A cycle of random videos, each in both memory formats."""
    torch.manual_seed(0)
    videos = [torch.rand(batch_size, 3, 16, 64, 64, device=device) * 2 - 1 for _ in range(CYCLE)]
    formats = torch.contiguous_format, torch.channels_last_3d
    return [{form: video.contiguous(memory_format=form) for form in formats} for video in videos]


def iterate(contender, batches, count) -> list[torch.Tensor]:
    """The losses [2] of its next iterations, on the CPU."""
    return [torch.stack(contender(real)).double().cpu() for real in reals_of(contender, batches, count)]


def reals_of(contender, batches, count) -> list[torch.Tensor]:
    """The videos of its next iterations, beginning with the first batch."""
    return [batches[index % CYCLE][contender.memory_format] for index in range(count)]


def exact_losses(start, batches, count) -> torch.Tensor:
    """Of the first iterations without clipping, in float64."""
    doubled = [{form: video.double() for form, video in batch.items()} for batch in batches[:count]]
    return torch.stack(iterate(Notebook(start, torch.float64), doubled, count))


class Errors(NamedTuple):
    """Of a contender's losses, in units of their size, against float64."""

    first: float  # of the first iteration
    drift: float  # of all that are compared

    @classmethod
    def of(cls, got: torch.Tensor, exact: torch.Tensor) -> "Errors":
        """Compare losses [iterations, 2] with as many of the exact ones."""
        return cls(relative_error(got[:1], exact[:1]), relative_error(got, exact[: len(got)]))


def set_up(makers, batches, exact, device) -> tuple[dict, dict[str, Errors], dict[str, str]]:
    """Contenders that run and agree with the exact losses, their errors, and why the others are left out."""
    contenders, errors, left_out = {}, {}, {}
    for name, make in makers.items():
        try:
            contender = make()
            contender.prepare(batches[0][contender.memory_format])
            # Clipping changes all but the first iteration.
            count = 1 if name.endswith("clipping") else len(exact)
            got = torch.stack(iterate(contender, batches, count))
        except RuntimeError as error:
            if name not in RIVALS:
                raise
            left_out[name] = harness.first_line(error)
            continue
        contenders[name] = contender
        errors[name] = Errors.of(got, exact)
    for name in list(contenders):
        reason = disagreement(errors[name], precision_of(contenders[name], device), errors)
        if reason is not None and name not in RIVALS:
            raise SystemExit(f"error: {name}: {reason}: nothing is timed")
        if reason is not None:
            left_out[name] = reason
            del contenders[name]
    return contenders, errors, left_out


def relative_error(got, exact) -> float:
    """To four digits."""
    return rounded(((got - exact).norm() / exact.norm()).item())


def precision_of(contender, device) -> Precision:
    """A CPU computes all in float32."""
    return "fp32" if device == "cpu" else contender.precision


def disagreement(error: Errors, precision: Precision, errors: dict[str, Errors]) -> str | None:
    """Why what a contender computes is something else; None if it is not."""
    eager = errors.get(SAME_ARITHMETIC[precision], Errors(0.0, 0.0))
    # In this order: max() returns a NaN only if it comes first.
    allowed = Errors(max(ALWAYS_ALLOWED[precision], 2 * eager.first), max(DRIFT_ALLOWED, 4 * eager.drift))
    if not error.first <= allowed.first:
        return f"its first losses are off by {error.first:.1e}, more than {allowed.first:.1e}"
    if not error.drift <= allowed.drift:
        return f"its losses are off by {error.drift:.1e} after some iterations, more than {allowed.drift:.1e}"
    return None


def measure(run: Run, case: Case) -> dict:
    """Check and time one case.

    Raises:
        SystemExit: tgan_fast computes something else, or the GPU has too little memory.
    """
    try:
        return measure_training(run, case) if case.whole_run else measure_iterations(run, case)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # What the error's frames hold is freed before the next case.
    raise SystemExit(
        f"error: the memory of this GPU is too small for {case.batch_size} videos: leave the case out with --only"
    )


def measure_iterations(run, case) -> dict:
    """By themselves, on the same videos again and again."""
    start, precisions = Start.random(run.device, width_of(run)), precisions_for(run, case)
    # A graph that can be recorded for one batch can be for others, too.
    probed = DEFAULT_BATCH["cuda"] if case.larger else case.batch_size
    names = rivals_for(run, case)
    rivals, refusals = without_refused(names, probed)
    makers = makers_for(start, precisions, rivals)
    batches = make_batches(case.batch_size, run.device)
    checked = 1 if case.larger else CHECKED[run.device]
    exact = exact_losses(start, batches, checked)
    contenders, errors, left_out = set_up(makers, batches, exact, run.device)
    timings, svd = time_in_turns(run, contenders, batches)
    makers = {name: makers[name] for name in contenders}
    del contenders
    peaks = {} if case.larger else peaks_of(run, case, makers, batches)
    for name in names:
        if name in APART and not (name == COMPILED_QUICKLY and COMPILED in timings):
            try:
                apart = measure_apart(run, name, start, case.batch_size, exact, errors)
            except ApartError as error:
                left_out[name] = str(error)
                continue
            timings[name], errors[name], peaks[name] = apart
            run.rivals.add(name)
    return {
        "batch_size": case.batch_size,
        "width": start.width,
        "checked_iterations": checked,
        "svd_seconds": svd and rounded(svd),
        "timings": _rows(run, case, timings, svd, errors, peaks),
        "left_out": left_out | refusals,
    }


def time_in_turns(run, contenders, batches) -> tuple[dict[str, Timing], float | None]:
    """Of an iteration; and the seconds in which torch.linalg.svd clips all weights, None without a rival."""
    first = next(iter(contenders))
    own, rivals = ([name for name in contenders if (name in RIVALS) == rival] for rival in (False, True))
    counts = {name: iterations_of_a_turn(run, name, batches) for name in contenders}
    calls = {name: turn(contender, batches, counts[name]) for name, contender in contenders.items()}
    for name in own:
        iterate(contenders[name], batches, WARM_UP[run.device])
    if rivals:
        calls["svd"] = lambda _: contenders[rivals[0]].constrain()

    def wait(_):
        # So that nobody gets a head start while the GPU works for the one before.
        if run.device == "cuda":
            torch.cuda.synchronize()

    turns = run.measure(
        calls,
        [None],
        ROUNDS[run.device],
        rivals=[*rivals, "svd"],
        prepare=wait,
        uncaptured=dict.fromkeys(calls, "each as its users run it"),
        warm=True,
    )
    svd = turns.pop("svd").median if rivals else None
    counts[harness.again(first)] = counts[first]
    method = METHODS[run.device]
    return {name: Timing.of([s / counts[name] for s in timing.rounds], method) for name, timing in turns.items()}, svd


def turn(contender, batches, count) -> Callable:
    """Its next iterations, as a function of nothing."""
    reals = reals_of(contender, batches, count)

    def run(_=None):
        for real in reals:
            contender(real)

    return run


def iterations_of_a_turn(run, name, batches) -> int:
    """Whole cycles, but on a CPU no more iterations than are needed."""
    if run.device == "cpu":
        return CYCLE if name.endswith(clipping("")) else 1
    return CYCLE if run.smoke else CYCLE * max(1, TURN // CYCLE // len(batches[0][torch.contiguous_format]))


def _rows(run, case, timings, svd, errors, peaks):
    own = next(iter(timings))
    method = f"{METHODS[run.device]}; a fifth of torch.linalg.svd added"
    clipped = {own: timings.pop(clipping(own))} | {
        name: Timing.of([seconds + svd / CYCLE for seconds in timing.rounds], method)
        for name, timing in timings.items()
        if name in RIVALS
    }

    def without(name):
        return {"error": errors[name].first if name in errors else None, "peak_bytes": peaks.get(name)}

    def with_clipping(name):
        error = errors.get(clipping(name), errors[name])
        return {"error": error.first, **speed_of(clipped[name].median, case.batch_size)}

    return [
        *run.rows(timings, WITHOUT_CLIPPING, more=without),
        *run.rows(clipped, WITH_CLIPPING, more=with_clipping),
    ]


def speed_of(seconds, batch_size) -> dict[str, float]:
    """Of iterations that take so long with all that belongs to them."""
    return {"videos_per_second": rounded(batch_size / seconds), "minutes": rounded(ITERATIONS * seconds / 60)}


def peaks_of(run, case, makers, batches) -> dict[str, int | None]:
    """The most memory in use while a contender iterates, but for the batches, by name.

    On a GPU all that a new contender needs, tgan_fast with clipping; it is asked after the timing, since choosing
    algorithms takes memory once. On a CPU what an iteration needs on top of weights and averages, and of tgan_fast and
    the notebook only.
    """
    own = next(iter(makers))
    if run.device == "cpu":
        names = [name for name in (own, NOTEBOOK) if name in makers]
        columns = names, [width_of(run)] * len(names), [case.batch_size] * len(names)
        return dict(zip(names, peak_memory.in_processes(iteration_growth, *columns), strict=True))
    clipped = makers.pop(clipping(own))
    return {name: peak_bytes(make, batches) for name, make in (makers | {own: clipped}).items()}


def peak_bytes(make, batches) -> int:
    """The most memory in use on a GPU while a new contender prepares itself and runs."""

    def run():
        contender = make()
        contender.prepare(batches[0][contender.memory_format])
        iterate(contender, batches, WARM_UP["cuda"])

    return harness.peak_bytes(run)


def iteration_growth(name, width, batch_size) -> int | None:
    """Bytes by which the most memory of this process grows in an iteration on a CPU, after a small one."""
    contender = makers_for(Start.random("cpu", width), harness.precisions_for("cpu"), RIVALS)[name]()
    small, batch = (make_batches(size, "cpu")[0][contender.memory_format] for size in (SMOKE_BATCH, batch_size))
    contender(small)
    return peak_memory.growth(lambda: contender(batch))


@functools.cache
def refusal(batch_size) -> str | None:
    """Return why the rival in a CUDA graph cannot run on the GPU, tried in another process; None if it can."""
    try:
        answer_of(_try, (batch_size,), SECONDS[PROBED])
    except ApartError as error:
        return str(error)
    return None


def _try(batch_size):
    batches = make_batches(batch_size, "cuda")
    rival = RIVALS[PROBED](Start.random("cuda"))
    rival.prepare(batches[0][rival.memory_format])
    iterate(rival, batches, 2)


def measure_apart(run, name, start, batch_size, exact, errors) -> tuple[Timing, Errors, int | None]:
    """Measure a rival in a process of its own; return its timing without clipping, errors and peak memory.

    Raises:
        ApartError: It cannot run, is not ready in time, or computes something else.
    """
    with run.watch:
        arguments = name, run.device, run.smoke, start.width, batch_size, len(exact)
        losses, rounds, peak = answer_of(_measure_alone, arguments, SECONDS[name])
    error = Errors.of(torch.tensor(losses, dtype=torch.float64), exact)
    reason = disagreement(error, precision_of(RIVALS[name], run.device), errors)
    if reason is not None:
        raise ApartError(reason)
    return Timing.of(rounds, f"{METHODS[run.device]}, in a process of its own"), error, peak


def _measure_alone(name, device, smoke, width, batch_size, checked):
    start, batches = Start.random(device, width), make_batches(batch_size, device)

    def make():
        return RIVALS[name](start)

    contender = make()
    contender.prepare(batches[0][contender.memory_format])
    losses = torch.stack(iterate(contender, batches, checked)).tolist()
    timings, _ = time_in_turns(Run(device, smoke=smoke), {name: contender}, batches)
    del contender
    return losses, timings[name].rounds, peak_bytes(make, batches) if device == "cuda" else None


class ApartError(Exception):
    """A missing answer from another process; the message says why."""


def answer_of(function: Callable, arguments: tuple, seconds: float) -> Any:
    """Call a function of this module in a new process and return its result.

    Raises:
        ApartError: It raised an error or took longer than `seconds`, or its process died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(function, arguments, sender))
    process.start()
    sender.close()
    answer = None
    try:
        error = f"not ready after {seconds} s"
        if receiver.poll(seconds):
            answer, error = receiver.recv()
            process.join(SECONDS_TO_END)
    except EOFError:
        error = "its process died"
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise ApartError(error)
    return answer


def _answer(function, arguments, sender):
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, harness.first_line(error)))


def measure_training(run, case) -> dict:
    """A training run of the paper's preset with its data, samples and checkpoints."""
    start, precision = Start.random(run.device, width_of(run)), precisions_for(run, case)[0]
    each = seconds_alone(Fast(start, precision, CYCLE), make_batches(case.batch_size, run.device), run.device)
    size = {"width": start.width, "batch_size": case.batch_size}
    config = TrainingConfig(**PRESETS["paper"] | size | {"precision": precision, "device": run.device})
    seconds = SMOKE_TRAINING_SECONDS if run.smoke else TRAINING_SECONDS
    with run.watch:
        trained = time_training(config, int(seconds / each))
    row = run.row(Label(fast(precision), WITH_DATA), trained.timing, **speed_of(trained.timing.median, case.batch_size))
    return {
        **size,
        "iterations": trained.iterations,
        "gpu_idle": rounded(trained.idle),
        "timings": [row],
        "left_out": {},
    }


def seconds_alone(contender, batches, device) -> float:
    """Return the approximate time of an iteration, measured over a second run."""
    count = max(CYCLE, WARM_UP[device])
    wait, run = torch.cuda.synchronize if device == "cuda" else (lambda: None), turn(contender, batches, count)
    for _ in range(2):
        wait()
        begin = time.perf_counter()
        run()
    wait()
    return (time.perf_counter() - begin) / count


def labels_for(run: Run, case: Case) -> list[Label]:
    """Of a case's timings."""
    own, *others = map(fast, precisions_for(run, case))
    if case.whole_run:
        return [Label(own, WITH_DATA)]
    rivals = rivals_for(run, case)
    without = [own, *others, *rivals, harness.again(own)]
    return [Label(name, WITHOUT_CLIPPING) for name in without] + [Label(name, WITH_CLIPPING) for name in (own, *rivals)]


def rows_of(records, part, device) -> dict[str, dict]:
    """Those of a part on batches of the default size, by contender; tgan_fast first."""
    usual = [record for record in records if record["batch_size"] == DEFAULT_BATCH[device]]
    return {row["contender"]: row for record in usual for row in record["timings"] if row["part"] == part}


def conclude(run: Run, records: list[dict]) -> dict:
    """What an iteration of training takes."""
    own = _first(rows_of(records, WITH_CLIPPING, run.device))
    return {} if own is None else {"seconds_an_iteration": own["seconds"]}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """What tgan_fast shall reach on batches of the default size."""
    without, clipped = (rows_of(records, part, device) for part in (WITHOUT_CLIPPING, WITH_CLIPPING))
    to_notebook = _value(clipped.get(NOTEBOOK), "ratio")
    if device == "cpu":
        return [Goal("times as fast as the notebook, clipping included", to_notebook, 2, at_most=False)]
    own, notebook = _first(without), without.get(NOTEBOOK)
    strong = min((without[name]["ratio"] for name in STRONG if name in without), default=None)
    peak = _value(own, "peak_bytes", 1e9)
    idle = next((record["gpu_idle"] for record in records if "gpu_idle" in record), None)
    return [
        Goal("ms an iteration without clipping", _value(own, "seconds", 1e-3), 3.0, at_most=True),
        Goal(
            f"minutes for {ITERATIONS:,} iterations with clipping", _value(_first(clipped), "minutes"), 5, at_most=True
        ),
        Goal("times as fast as the notebook with torch.linalg.svd", to_notebook, 30, at_most=False),
        Goal("times as fast as the notebook without clipping", _value(notebook, "ratio"), 10, at_most=False),
        Goal("times as fast as the best of tuned, in a CUDA graph and compiled", strong, 2, at_most=False),
        Goal("GB of memory", peak, 0.8, at_most=True),
        Goal(
            "of the notebook's memory",
            peak and _value(own, "peak_bytes", _value(notebook, "peak_bytes")),
            0.35,
            at_most=True,
        ),
        Goal("of a training run the GPU is idle", idle, 0.02, at_most=True),
    ]


def _first(rows):
    return next(iter(rows.values()), None)


def _value(row, key, unit=1):
    """None where it was not measured."""
    return None if row is None or None in (row[key], unit) else rounded(row[key] / unit)


def details(record: dict) -> Iterator[str]:
    """Clipping, memory, and what is to be said of a training run."""
    if "gpu_idle" in record:
        (row,) = record["timings"]
        yield (
            f"  {record['iterations']} iterations: {row['videos_per_second']:.0f} videos/s, {row['minutes']:.1f} "
            f"minutes for {ITERATIONS:,} iterations; GPU idle {100 * record['gpu_idle']:.1f} %"
        )
        return
    if record["svd_seconds"] is not None:
        yield f"  torch.linalg.svd clips all weights in {1e3 * record['svd_seconds']:.1f} ms"
    for row in record["timings"]:
        if row.get("peak_bytes") is not None:
            yield f"  {row['contender']} needs {row['peak_bytes'] / 1e9:.3f} GB"


SECTION = Section(
    name="step",
    title="a training iteration, without singular value clipping and with it in every fifth; error: of losses",
    cases=cases_for,
    measure=measure,
    details=details,
    conclude=conclude,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
