"""Where the time of a training iteration goes: every part of it beside its floor.

    python -m benchmarks.breakdown --device cuda

A floor is what the part has to compute and to move (floors.py) at the rates of a large matrix product and of a large
copy, measured in the same run. The parts are timed by the profiler in five iterations, one of which clips, without a
CUDA graph (attribution.py), and the total in replays, so that total minus sum is what launches cost. A kernel that
belongs to no known part is listed under its own name.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import tyro

from benchmarks import floors, harness
from benchmarks.attribution import Attribution, Item, profiled
from benchmarks.bench_step import CYCLE, DEFAULT_BATCH, SMOKE_BATCH, SMOKE_WIDTH, WARM_UP, WIDTH, make_batches
from benchmarks.floors import Work
from benchmarks.harness import rounded
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.precision import Precision, PrecisionOption, compute_dtype, resolve_precision
from tgan_fast.training import TrainingStep

ROUNDS = {"cpu": 2, "cuda": 10}
GAPS = "launch gaps (total − sum)"


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


def total_seconds(step, batches, device) -> float:
    """Of an iteration, as in training."""
    for index in range(WARM_UP[device]):
        step(batches[index % CYCLE])
    uncaptured = {"step": "it replays its own"}
    return harness.measure({"step": step}, batches, device, ROUNDS[device], uncaptured=uncaptured)["step"].median


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


def print_table(rows, total) -> None:
    """All rows, and what is to be said of them."""
    print(f"\n{'':48}{'GFLOP':>9}{'done':>9}{'MB':>9}{'floor ms':>10}{'ms':>10}{'share':>8}{'gap ms':>10}")
    for row in rows:
        if not row.work and not row.seconds:
            continue
        gflop, mbytes = (sum(column) for column in zip(*row.work, strict=True)) if row.work else (0, 0)
        print(
            f"{row.name[:47]:48}{gflop / 1e9:9.2f}{row.flops_done / 1e9:9.2f}{mbytes / 1e6:9.2f}{1e3 * row.floor:10.4f}"
            f"{1e3 * row.seconds:10.4f}{100 * row.seconds / total:7.1f}%{1e3 * row.gap:10.4f}"
        )
    floor = sum(row.floor for row in rows)
    print(f"{'total':75}{1e3 * floor:10.4f}{1e3 * total:10.4f}{100:7.1f}%{1e3 * (total - floor):10.4f}")
    copies = sum(row.seconds for row in rows if row.name.endswith(floors.COPIES))
    print(f"copies and layout transposes, which should be next to nothing: {100 * copies / total:.2f} % of the total")
    unknown = [row for row in rows if not row.known]
    print(f"belongs to no known part: {100 * sum(row.seconds for row in unknown) / total:.2f} %, {len(unknown)} rows")
    print("largest gaps: " + "; ".join(f"{row.name}, {1e3 * row.gap:.3f} ms" for row in largest_gaps(rows)))


def measure(width, batch_size, precision, device) -> dict:
    """Ceilings, total and rows; the record that goes into the file of results, with the rows under `table`."""
    rates = harness.matrix_product_rate(device, precision), harness.copy_bandwidth(device)
    print(f"matrix product {rates[0] / 1e12:.2f} TFLOP/s, copy {rates[1] / 1e9:.0f} GB/s")
    batches = make_videos(batch_size, device)
    # First, since a profiler slows down what is launched after it.
    total = total_seconds(make_step(width, precision, device, "auto"), batches, device)
    items, flops = profile_cycle(make_step(width, precision, device, "off"), batches, device)
    itemsize = compute_dtype(precision, torch.float32).itemsize
    needed = floors.iteration(batch_size, itemsize, width)
    rows = rows_of(needed, items, flops, CYCLE, total, rates)
    if not items:
        print("the profiler has seen nothing on the device: only the total was measured")
    return {
        "batch_size": batch_size,
        "precision": precision,
        "matrix_flops_per_second": rounded(rates[0]),
        "copy_bytes_per_second": rounded(rates[1]),
        "floor_seconds": rounded(sum(row.floor for row in rows)),
        "seconds": rounded(total),
        "largest_gaps": [row.name for row in largest_gaps(rows)],
        "table": rows,
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


def main(
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int | None = None,
    precision: PrecisionOption = "auto",
    smoke: bool = False,
) -> None:
    """Print the table and write it to benchmarks/results.

    Args:
        device: where to run.
        batch_size: videos in a batch; 8 on a CPU and 32 on a GPU by default.
        precision: of convolutions and matrix products.
        smoke: only show that everything runs, with narrow networks, and write nothing.
    """
    batch_size = batch_size or (SMOKE_BATCH if smoke else DEFAULT_BATCH[device])
    resolved: Precision = resolve_precision(precision, torch.device(device))
    print(f"{harness.device_name(device)}, torch {torch.__version__}, batch {batch_size}, {resolved}")
    payload = measure(SMOKE_WIDTH if smoke else WIDTH, batch_size, resolved, device)
    print_table(payload["table"], payload["seconds"])
    if not smoke:
        payload["table"] = [_record(row) for row in payload["table"]]
        print(f"written to {harness.write_results('step breakdown', payload, device)}")


if __name__ == "__main__":
    tyro.cli(main)
