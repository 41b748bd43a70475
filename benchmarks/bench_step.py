"""A whole training iteration: TrainingStep against the notebook's, and against plain PyTorch tuned in every usual way.

    python -m benchmarks.bench_step --device cuda

All contenders (contenders.py) begin with the same weights, latents and videos, and first their losses must agree with
float64. Then they take turns. tgan_fast runs once without singular value clipping and once with it in every fifth
iteration, as in training; for the others the clipping with torch.linalg.svd is timed by itself, and a fifth of it
added. On a GPU follow the memory that each needs, larger batches, and a training run with its data. Results are written
after every part.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple
from unittest import mock

import torch
import tyro

from benchmarks import harness
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
from benchmarks.harness import Goal, rounded
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.precision import Precision
from tgan_fast.training import PRESETS, TrainingConfig, TrainingStep, train

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
# The headline is against the best of these.
STRONG = (TUNED, IN_GRAPH, COMPILED, COMPILED_QUICKLY)
# Tried in a process of its own before, for at most so many seconds: they may break what comes after, or never come to
# an end. What torch.compile tunes there is found in its cache here.
PROBED = {IN_GRAPH: 60, COMPILED: 150, COMPILED_QUICKLY: 90}
SECONDS_TO_END = 20

CYCLE = 5  # iterations, one of which clips
ITERATIONS = 81_000  # of a training run
DEFAULT_BATCH = {"cpu": 8, "cuda": 32}
LARGER_BATCHES = (64, 128, 256)
WIDTH = 1.0
SMOKE_WIDTH, SMOKE_BATCH = 1 / 16, 2
# Iterations of a turn: on a GPU so many that the host's head start at its beginning does not count.
TURN = {"cpu": CYCLE, "cuda": 4 * CYCLE}
ROUNDS = {"cpu": 2, "cuda": 6}
FEWEST_ROUNDS = 2
# tgan_fast's before it is timed, and before its memory is read: both of its CUDA graphs are recorded by then.
WARM_UP = {"cpu": 0, "cuda": 2 * CYCLE}

# Errors of losses that are always allowed, since two losses may happen to be nearly exact. Bfloat16 autocast is off by
# 5e-3 of them on a CPU, float32 by 2e-7.
ALWAYS_ALLOWED = {"fp32": 1e-3, "tf32": 5e-3, "bf16": 2e-2}
# Iterations compared with float64. RMSprop enlarges every rounding: of six, float32 itself is off by 1e-2 to 5e-2 on a
# CPU, bfloat16 autocast by 5e-2. A CUDA graph that does not train is off by more than what is allowed.
CHECKED = {"cpu": 1, "cuda": 8}
DRIFT_ALLOWED = 0.2

TRAINING_SECONDS = 20
# At the beginning of the training run, while graphs are recorded and memory is reserved.
UNCOUNTED_ITERATIONS = 200


class Fast:
    """TrainingStep, called as its rivals are."""

    memory_format = torch.channels_last_3d

    def __init__(self, start: Start, precision: Precision, clip_interval: int = 0):
        generator, discriminator = VideoGenerator(start.width), VideoDiscriminator(start.width)
        generator.load_state_dict(start.generator)
        discriminator.load_state_dict(start.discriminator)
        networks = generator.to(start.device), discriminator.to(start.device)
        self.precision = precision
        self.step = TrainingStep(*networks, clip_interval=clip_interval, seed=SEED, precision=precision)

    def prepare(self, real: torch.Tensor) -> None:
        """It prepares itself in its first iterations."""

    def __call__(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scalars = self.step(real)
        return scalars["loss_discriminator"], scalars["loss_generator"]


def fast(precision) -> str:
    """The name of tgan_fast in an arithmetic."""
    return f"tgan_fast {precision}"


def clipping(name) -> str:
    """The name under which tgan_fast is timed with singular value clipping."""
    return f"{name} clipping"


def rivals_for(device, compiled, batch_size) -> tuple[list[str], dict[str, str]]:
    """The rivals that can run, and why others cannot. On a CPU, where all is float32, those that differ there."""
    if device == "cpu":
        return [NOTEBOOK, UNWASTED, TUNED] + [COMPILED] * compiled, {}
    names, refusals = [NOTEBOOK, NOTEBOOK_FP32, UNWASTED, TUNED], {}
    for name in (IN_GRAPH, COMPILED, COMPILED_QUICKLY) if compiled else (IN_GRAPH,):
        if name == COMPILED_QUICKLY and COMPILED in names:
            continue
        reason = refusal_of(name, batch_size)
        if reason is None:
            names.append(name)
        else:
            refusals[name] = reason
    return names, refusals


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
    reals = [batches[index % CYCLE][contender.memory_format] for index in range(count)]
    return [torch.stack(contender(real)).double().cpu() for real in reals]


def exact_losses(start, batches, count) -> torch.Tensor:
    """Of the first iterations without clipping, in float64."""
    doubled = [{form: video.double() for form, video in batch.items()} for batch in batches[:count]]
    return torch.stack(iterate(Notebook(start, torch.float64), doubled, count))


class Errors(NamedTuple):
    """Of a contender's losses, in units of their size, against float64."""

    first: float  # of the first iteration
    drift: float  # of all that are compared


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
        errors[name] = Errors(relative_error(got[:1], exact[:1]), relative_error(got, exact[:count]))
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


def compare(start, precisions, rivals, batch_size, checked, smoke) -> dict:
    """Check and time contenders on batches of one size; the record that goes into the file of results."""
    device, own = start.device, fast(precisions[0])
    batches = make_batches(batch_size, device)
    exact = exact_losses(start, batches, checked)
    contenders, errors, left_out = set_up(makers_for(start, precisions, rivals), batches, exact, device)
    for name in (own, clipping(own)):
        iterate(contenders[name], batches, WARM_UP[device])
    timings = time_in_turns(contenders, batches, device, smoke)
    svd = time_clipping(contenders, device)
    with_clipping = {own: timings.pop(clipping(own)).median}
    if svd is not None:
        with_clipping |= {name: timings[name].median + svd / CYCLE for name in contenders if name in RIVALS}
    return {
        "batch_size": batch_size,
        "checked_iterations": checked,
        "svd_seconds": svd and rounded(svd),
        "contenders": [
            _row(name, timing, with_clipping.get(name), batch_size, timings[own].median, with_clipping[own])
            | {"error": errors[name].first if name in errors else None}
            for name, timing in timings.items()
        ],
        "left_out": left_out,
    }


def time_in_turns(contenders, batches, device, smoke) -> dict[str, harness.Timing]:
    """Seconds an iteration."""

    def run(contender):
        return lambda batch: contender(batch[contender.memory_format])

    def wait(_):
        # So that nobody gets a head start while the GPU works for the one before.
        if device == "cuda":
            torch.cuda.synchronize()

    return harness.measure(
        {name: run(contender) for name, contender in contenders.items()},
        batches * (1 if smoke else TURN[device] // CYCLE),
        device,
        FEWEST_ROUNDS if smoke else ROUNDS[device],
        prepare=wait,
        uncaptured=dict.fromkeys(contenders, "each as its users run it"),
    )


def time_clipping(contenders, device) -> float | None:
    """Seconds of torch.linalg.svd for all weights; None where no rival is left."""
    rival = next((contender for name, contender in contenders.items() if name in RIVALS), None)
    if rival is None:
        return None
    uncaptured = {"svd": "it waits for the GPU"}
    calls = {"svd": lambda _: rival.constrain()}
    return harness.measure(calls, [None], device, FEWEST_ROUNDS, uncaptured=uncaptured)["svd"].median


def _row(name, timing, with_clipping, batch_size, own, own_with_clipping):
    """`ratio` is how many times as long as tgan_fast it takes."""
    return {
        "contender": name,
        **timing.record(),
        "ratio": rounded(timing.median / own),
        "with_clipping": with_clipping and rounded(with_clipping),
        "ratio_with_clipping": with_clipping and rounded(with_clipping / own_with_clipping),
        "videos_per_second": with_clipping and rounded(batch_size / with_clipping),
        "minutes": with_clipping and rounded(ITERATIONS * with_clipping / 60),
        "peak_bytes": None,
    }


def peak_bytes(make, batches) -> int:
    """The most memory in use while a new contender prepares itself and runs, but for the batches."""

    def run():
        contender = make()
        contender.prepare(batches[0][contender.memory_format])
        iterate(contender, batches, WARM_UP["cuda"])

    return harness.peak_bytes(run)


def add_memory(record, start, precisions) -> None:
    """After the timing: choosing algorithms takes memory, once."""
    batches = make_batches(record["batch_size"], start.device)
    for row in record["contenders"]:
        name = row["contender"]
        if name.endswith(harness.again("")):
            continue
        makers = makers_for(start, precisions, RIVALS)
        row["peak_bytes"] = peak_bytes(makers.get(clipping(name), makers[name]), batches)


def refusal_of(name, batch_size) -> str | None:
    """Why a rival cannot run on the GPU, tried in a process of its own; None if it can."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(name, batch_size, sender))
    process.start()
    sender.close()
    try:
        reason = receiver.recv() if receiver.poll(PROBED[name]) else f"not ready after {PROBED[name]} s"
    except EOFError:
        reason = "its process died"
    if reason is None:
        process.join(SECONDS_TO_END)
    process.kill()
    process.join()
    return reason


def _try(name, batch_size, sender):
    try:
        start = Start.random("cuda")
        batches = make_batches(batch_size, "cuda")
        rival = RIVALS[name](start)
        rival.prepare(batches[0][rival.memory_format])
        iterate(rival, batches, 2)
    except Exception as error:
        sender.send(harness.first_line(error))
    else:
        sender.send(None)


def time_training(seconds_an_iteration) -> dict:
    """A training run of the paper's preset with its data, samples and checkpoints; how long the GPU does not train."""
    steps = UNCOUNTED_ITERATIONS + int(TRAINING_SECONDS / seconds_an_iteration)
    config = TrainingConfig(**PRESETS["paper"] | {"steps": steps, "device": "cuda"})
    with tempfile.TemporaryDirectory() as folder, _events_of_steps() as events:
        train(config, Path(folder) / "run")
        torch.cuda.synchronize()
    counted = events[UNCOUNTED_ITERATIONS:]
    wall = counted[0][0].elapsed_time(counted[-1][1]) / 1e3
    busy = busy_seconds([begin.elapsed_time(end) / 1e3 for begin, end in counted], config.clip_interval)
    each = wall / len(counted)
    return {
        "iterations": len(counted),
        "seconds_an_iteration": rounded(each),
        "videos_per_second": rounded(config.batch_size / each),
        "minutes": rounded(ITERATIONS * each / 60),
        "gpu_idle": rounded(1 - busy / wall),
    }


@contextmanager
def _events_of_steps() -> Iterator[list[tuple[torch.cuda.Event, torch.cuda.Event]]]:
    """Collects events before and after every step that is called within."""
    events, call = [], TrainingStep.__call__

    def timed(step, batch):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        scalars = call(step, batch)
        end.record()
        events.append((begin, end))
        return scalars

    with mock.patch.object(TrainingStep, "__call__", timed):
        yield events


def busy_seconds(steps: Sequence[float], clip_interval: int) -> float:
    """What all steps would take if none of them waited for the host: each as long as the fastest quarter of its kind.

    Args:
        steps: seconds, of consecutive iterations from a multiple of `clip_interval` on.
    """
    kinds = [steps[first::clip_interval] for first in range(clip_interval)]
    clipped, others = kinds[0], [seconds for kind in kinds[1:] for seconds in kind]
    return sum(len(kind) * statistics.quantiles(kind, n=4)[0] for kind in (clipped, others))


def goals_for(payload, device) -> list[Goal]:
    """What tgan_fast shall reach."""
    rows = {row["contender"]: row for row in payload["cases"][0]["contenders"]}
    own, notebook = next(iter(rows.values())), rows.get(NOTEBOOK)
    clipped = notebook and notebook["ratio_with_clipping"]
    if device == "cpu":
        return [Goal("times as fast as the notebook, clipping included", clipped, 2, at_most=False)]
    strong = min((rows[name]["ratio"] for name in STRONG if name in rows), default=None)
    peaks = [row and row["peak_bytes"] for row in (own, notebook)]
    idle = payload.get("training", {}).get("gpu_idle")
    return [
        Goal("ms an iteration without clipping", rounded(1e3 * own["seconds"]), 3.0, at_most=True),
        Goal(f"minutes for {ITERATIONS:,} iterations with clipping", own["minutes"], 5, at_most=True),
        Goal("times as fast as the notebook with torch.linalg.svd", clipped, 30, at_most=False),
        Goal("times as fast as the notebook without clipping", notebook and notebook["ratio"], 10, at_most=False),
        Goal("times as fast as the best of tuned, in a CUDA graph and compiled", strong, 2, at_most=False),
        Goal("GB of memory", peaks[0] and rounded(peaks[0] / 1e9), 0.8, at_most=True),
        Goal("of the notebook's memory", rounded(peaks[0] / peaks[1]) if all(peaks) else None, 0.35, at_most=True),
        Goal("of a training run the GPU is idle", idle, 0.02, at_most=True),
    ]


def print_case(record) -> None:
    """Its lines of the table."""
    svd = record["svd_seconds"]
    print(f"\nbatch {record['batch_size']}" + (f"; torch.linalg.svd clips in {1e3 * svd:.1f} ms" if svd else ""))
    columns = ("ms", 9, "p10", 9, "p90", 9, "ratio", 8, "clipping", 10, "ratio", 8, "videos/s", 10, "minutes", 9)
    print(" " * 27 + "".join(f"{name:>{width}}" for name, width in zip(columns[::2], columns[1::2], strict=True)))
    for row in record["contenders"]:
        times = "".join(f"{1e3 * row[key]:9.3f}" for key in ("seconds", "p10", "p90")) + f"{row['ratio']:8.2f}"
        clipped = ""
        if row["with_clipping"] is not None:
            clipped = f"{1e3 * row['with_clipping']:10.3f}{row['ratio_with_clipping']:8.2f}"
            clipped += f"{row['videos_per_second']:10.0f}{row['minutes']:9.1f}"
        error = "" if row["error"] is None else f"   losses off by {row['error']:.0e}"
        print(f"  {row['contender']:25}{times}{clipped:37}{error}")
    for name, reason in record["left_out"].items():
        print(f"  {name:25}left out: {reason}")


def print_end(payload, goals) -> None:
    """Memory, the training run, goals and the headline."""
    rows = payload["cases"][0]["contenders"]
    for row in rows:
        if row["peak_bytes"] is not None:
            print(f"  {row['contender']:25}{row['peak_bytes'] / 1e9:9.3f} GB")
    if "training" in payload:
        run = payload["training"]
        print(
            f"training with its data: {1e3 * run['seconds_an_iteration']:.3f} ms an iteration, "
            f"{run['videos_per_second']:.0f} videos/s, {run['minutes']:.1f} minutes for {ITERATIONS:,} iterations; "
            f"GPU idle {100 * run['gpu_idle']:.1f} %"
        )
    for goal in goals:
        print(goal)
    strong = [row for row in rows if row["contender"] in STRONG]
    if strong:
        best = min(strong, key=lambda row: row["seconds"])
        print(f"without clipping: {best['contender']} / {rows[0]['contender']} = {best['ratio']:.2f}")
    notebook = next((row for row in rows if row["contender"] == NOTEBOOK), None)
    if notebook is not None:
        slow, own = notebook["with_clipping"], rows[0]["with_clipping"]
        print(f"reference {slow:.4f} s / fast {own:.4f} s = {slow / own:.2f} (clipping in every fifth iteration)")


def parts_of(device, compiled, smoke) -> Iterator[tuple[str, dict]]:
    """Measures part after part; yields the name of each and all that has been measured by then."""
    start = Start.random(device, SMOKE_WIDTH if smoke else WIDTH)
    batch_size = SMOKE_BATCH if smoke else DEFAULT_BATCH[device]
    precisions = harness.precisions_for(device)
    rivals, refusals = rivals_for(device, compiled, batch_size)
    case = compare(start, precisions, rivals, batch_size, CHECKED[device], smoke)
    case["left_out"] |= refusals
    own = case["contenders"][0]
    payload = {"width": start.width, "batch_size": batch_size, "seconds_an_iteration": own["with_clipping"]}
    payload["cases"] = [case]
    yield f"batch {batch_size}", payload
    if device == "cpu":
        return
    add_memory(case, start, precisions)
    yield "memory", payload
    if smoke:
        return
    payload["training"] = time_training(own["with_clipping"])
    yield "training", payload
    seconds = {row["contender"]: row["seconds"] for row in case["contenders"]}
    # Another batch size would compile for minutes again.
    best = min((name for name in (TUNED, IN_GRAPH) if name in seconds), key=seconds.get, default=None)
    for larger in LARGER_BATCHES:
        try:
            payload["cases"].append(compare(start, precisions[:1], [best] if best else [], larger, 1, smoke))
        except torch.OutOfMemoryError:
            yield f"batch {larger} does not fit", payload
            return
        yield f"batch {larger}", payload


def main(
    device: Literal["cpu", "cuda"] = "cpu", compiled: Literal["auto", "on", "off"] = "auto", smoke: bool = False
) -> None:
    """Print tables and write them to benchmarks/results.

    Takes about three minutes on a CPU, and six on a GPU: at most three and a half until torch.compile is ready (five if
    it is not and is tried again without tuning), half a minute for the turns, one for memory, half for training, half
    for larger batches.

    Args:
        device: where to run.
        compiled: torch.compile takes part; auto: on a GPU only, since on a CPU it takes minutes to be ready.
        smoke: only show that everything runs, with narrow networks, and write nothing.
    """
    takes_part = device == "cuda" and not smoke if compiled == "auto" else compiled == "on"
    print(f"{harness.device_name(device)}, torch {torch.__version__}; ratio: how many times as long as tgan_fast")
    begin, printed, path = time.perf_counter(), 0, None
    for part, payload in parts_of(device, takes_part, smoke):
        goals = goals_for(payload, device)
        payload["goals"] = [goal.record() for goal in goals]
        for case in payload["cases"][printed:]:
            print_case(case)
        printed = len(payload["cases"])
        print(f"({part}: {time.perf_counter() - begin:.0f} s)", flush=True)
        path = None if smoke else harness.write_results("step", payload, device)
    print_end(payload, goals)
    if path is not None:
        print(f"written to {path}")


if __name__ == "__main__":
    tyro.cli(main)
