"""Where the time of a training iteration goes: every part of it beside its floor.

    python -m benchmarks.breakdown --device cuda

A floor is what the part has to compute and to move (floors.py) at the rates of a large matrix product and of a large
copy, measured in the same run. The parts are timed by the profiler in five iterations, one of which clips, without a
CUDA graph (attribution.py), and the total in replays, so that total minus sum is what launches cost. On a CPU what
observing the operators costs is part of them, so that the sum may exceed the total. A kernel that belongs to no known
part is listed under its own name.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from benchmarks import bench_step, floors, harness, suite
from benchmarks.attribution import Attribution, Item, profiled
from benchmarks.bench_step import CYCLE, WARM_UP, make_batches
from benchmarks.ceilings import Work
from benchmarks.harness import Timing
from benchmarks.results import rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.precision import compute_dtype, resolve_precision
from tgan_fast.training import TrainingStep

OURS = "tgan_fast"
# On a CPU half of what is compared with others: the shares are nearly the same.
BATCH = {"cpu": 2, "cuda": 32}
ROUNDS = {"cpu": 2, "cuda": 10}
GAPS = "launch gaps (total − sum)"
CONVOLUTIONS, REST = "Conv3d, last convolution", "rest"
# Where known rows that begin like that are in a picture, unless they are copies.
GROUPS = {
    "deconvolution": "deconvolutions",
    "Conv3d": CONVOLUTIONS,
    "last convolution": CONVOLUTIONS,
    floors.BATCH_NORM: floors.BATCH_NORM,
    floors.VECTORS: floors.VECTORS,
    floors.ELEMENTWISE: floors.ELEMENTWISE,
    floors.OPTIMIZERS: floors.OPTIMIZERS,
    floors.CLIPPING: floors.CLIPPING,
    GAPS: "launch gaps",
}


class Case(NamedTuple):
    """What is measured."""

    batch_size: int

    def __str__(self):
        return f"batch {self.batch_size}"


class Row(NamedTuple):
    """A part of an iteration."""

    name: str
    work: list[Work]
    floor: float  # seconds
    seconds: float
    flops_done: float
    known: bool  # otherwise it is a kernel or operator that belongs to no part

    @property
    def gap(self) -> float:
        """What there is to gain."""
        return self.seconds - self.floor


def make_step(width, precision, device, cuda_graph) -> TrainingStep:
    """A new step."""
    torch.manual_seed(0)
    networks = VideoGenerator(width).to(device), VideoDiscriminator(width).to(device)
    return TrainingStep(*networks, clip_interval=CYCLE, precision=precision, cuda_graph=cuda_graph)


def make_videos(batch_size, device) -> list[torch.Tensor]:
    """A cycle of random videos, channels last."""
    return [batch[torch.channels_last_3d] for batch in make_batches(batch_size, device)]


def time_step(run, step, batches) -> dict[str, Timing]:
    """Of an iteration, as in training."""
    for index in range(WARM_UP[run.device]):
        step(batches[index % CYCLE])
    return run.measure({OURS: step}, batches, ROUNDS[run.device], uncaptured={OURS: "it replays its own"})


def profile_cycle(step, batches, device) -> tuple[list[Item], dict[str, int]]:
    """As `profiled`, of one iteration on every batch."""

    def run():
        for batch in batches:
            step(batch)

    if device == "cuda":
        # Triton's kernels are compiled, and convolution algorithms chosen for each gradient by itself.
        with Attribution():
            run()
    return profiled(run, device)


def rows_of(
    needed: dict[str, list[Work]],
    items: Sequence[Item],
    flops: dict[str, float],
    iterations: int,
    total: float,
    rates: tuple[float, float],
) -> list[Row]:
    """The table: known parts in the order of `needed`, then the rest, then the gaps.

    Args:
        needed: the operations of one iteration, by row.
        items, flops: what was done in all profiled iterations.
        iterations: how many these are.
        total: seconds of an iteration.
        rates: operations and bytes per second, the ceilings.
    """
    seconds, done = defaultdict(float), defaultdict(float)
    for item in items:
        seconds[item.row] += item.seconds / iterations
    for name, count in flops.items():
        done[name] += count / iterations
    needed = _with_joint_gradients(needed, seconds, done)
    rows = []
    unknown = (seconds.keys() | done.keys()) - needed.keys()
    for name in [*needed, *sorted(unknown, key=lambda name: seconds[name], reverse=True)]:
        work = needed.get(name, [])
        floor = sum(operation.seconds(*rates) for operation in work)
        rows.append(Row(name, work, floor, seconds[name], done[name], name in needed))
    return [*rows, Row(GAPS, [], 0.0, total - sum(row.seconds for row in rows), 0.0, True)]


def _with_joint_gradients(needed, seconds, done):
    """One row for both gradients of a layer wherever they cannot be told apart; changes all three."""
    joint = defaultdict(list)
    for name, work in needed.items():
        group, _, part = name.rpartition(", ")
        backward = floors.row(group, floors.BACKWARD)
        if part in (floors.INPUT_GRADIENT, floors.WEIGHT_GRADIENT) and backward in seconds:
            for column in (seconds, done):
                column[backward] += column.pop(name, 0.0)
            name = backward
        joint[name].extend(work)
    return dict(joint)


def largest_gaps(rows) -> list[Row]:
    """The three rows where most is to gain."""
    return sorted(rows, key=lambda row: row.gap, reverse=True)[:3]


def groups_of(rows) -> list[dict]:
    """What rows of the same kind take together, without kinds that take and need nothing."""
    seconds, floor = defaultdict(float), defaultdict(float)
    for row in rows:
        name = group_of(row)
        seconds[name] += row.seconds
        floor[name] += row.floor
    return [
        {"group": name, "seconds": rounded(seconds[name]), "floor_seconds": rounded(floor[name])}
        for name in seconds
        if seconds[name] or floor[name]
    ]


def group_of(row) -> str:
    """The rest is what belongs to no known part, and what happens on several GPUs only."""
    if not row.known:
        return REST
    if row.name.endswith(floors.COPIES):
        return floors.COPIES
    return next((group for begin, group in GROUPS.items() if row.name.startswith(begin)), REST)


def cases_for(run: Run) -> list[Case]:
    """One batch."""
    return [Case(bench_step.SMOKE_BATCH if run.smoke else BATCH[run.device])]


def measure(run: Run, case: Case) -> dict:
    """Total and parts."""
    device, width = run.device, bench_step.width_of(run)
    precision = resolve_precision("auto", torch.device(device))
    rates = run.ceilings.flops_per_second(precision), run.ceilings.bytes_per_second
    batches = make_videos(case.batch_size, device)
    # First, since a profiler slows down what is launched after it.
    timings = time_step(run, make_step(width, precision, device, "auto"), batches)
    items, flops = profile_cycle(make_step(width, precision, device, "off"), batches, device)
    needed = floors.iteration(case.batch_size, compute_dtype(precision, torch.float32).itemsize, width)
    rows = rows_of(needed, items, flops, CYCLE, timings[OURS].median, rates)
    return {
        "batch_size": case.batch_size,
        "precision": precision,
        "timings": run.rows(timings, more=lambda name: _whole(rows, timings[name].median)),
        "largest_gaps": [row.name for row in largest_gaps(rows)],
        "parts": [_record(row) for row in rows],
        "groups": groups_of(rows),
        "left_out": {},
    }


def _whole(rows, seconds):
    """Of an iteration; each part needs its own floor, so that theirs is more than that of all work together."""
    flops, nbytes = (sum(column) for column in zip(*(work for row in rows for work in row.work), strict=True))
    floor = sum(row.floor for row in rows)
    return {
        "flops": rounded(flops),
        "bytes": rounded(nbytes),
        "floor_seconds": rounded(floor),
        "share_of_floor": rounded(floor / seconds),
    }


def _record(row):
    return {
        "row": row.name,
        "flops": rounded(sum(work.flops for work in row.work)),
        "flops_done": rounded(row.flops_done),
        "bytes": rounded(sum(work.nbytes for work in row.work)),
        "floor_seconds": rounded(row.floor),
        "seconds": rounded(row.seconds),
        "known": row.known,
    }


def details(record: dict) -> Iterator[str]:
    """The table of the parts, and what is to be said of them."""
    parts, total = record["parts"], record["timings"][0]["seconds"]
    yield f"{'':48}{'GFLOP':>9}{'done':>9}{'MB':>9}{'floor ms':>10}{'ms':>10}{'share':>8}{'gap ms':>10}"
    for part in parts:
        if part["flops"] or part["bytes"] or part["seconds"]:
            yield _line(part, total)
    floor = sum(part["floor_seconds"] for part in parts)
    yield f"{'total':75}{1e3 * floor:10.4f}{1e3 * total:10.4f}{100:7.1f}%{1e3 * (total - floor):10.4f}"
    if not any(part["seconds"] for part in parts if part["row"] != GAPS):
        yield "the profiler has seen nothing on the device: only the total was measured"
    copies = sum(part["seconds"] for part in parts if part["row"].endswith(floors.COPIES))
    yield f"copies and layout transposes, which should be next to nothing: {100 * copies / total:.2f} % of the total"
    unknown = [part["seconds"] for part in parts if not part["known"]]
    yield f"belongs to no known part: {100 * sum(unknown) / total:.2f} %, {len(unknown)} rows"
    gaps = {part["row"]: part["seconds"] - part["floor_seconds"] for part in parts}
    yield "largest gaps: " + "; ".join(f"{name}, {1e3 * gaps[name]:.3f} ms" for name in record["largest_gaps"])


def _line(part, total):
    seconds, floor = part["seconds"], part["floor_seconds"]
    return (
        f"{part['row'][:47]:48}{part['flops'] / 1e9:9.2f}{part['flops_done'] / 1e9:9.2f}{part['bytes'] / 1e6:9.2f}"
        f"{1e3 * floor:10.4f}{1e3 * seconds:10.4f}{100 * seconds / total:7.1f}%{1e3 * (seconds - floor):10.4f}"
    )


def labels_for(run: Run, case: Case) -> list[Label]:
    """Of a case's timings."""
    return [Label(OURS), Label(harness.again(OURS))]


SECTION = Section(
    name="breakdown",
    title="where the time of a training iteration goes; floor: of each part by itself",
    cases=cases_for,
    measure=measure,
    details=details,
)

if __name__ == "__main__":
    suite.main(SECTION)
