"""Where the time of a training iteration goes: every part of it beside its floor.

    python -m benchmarks.breakdown --device cuda

A floor is what the part has to compute and to move (floors.py) at the rates of a large matrix product and of a large
copy, measured in the same run. The parts are timed by the profiler in five iterations, one of which clips, without a
CUDA graph (attribution.py), and the total in replays, so that total minus sum is what launches cost. On a CPU what
observing the operators costs is part of them, so that the sum may exceed the total. A kernel that belongs to no known
part is listed under its own name.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from benchmarks import bench_step, floors, harness, suite
from benchmarks.attribution import mark, seconds_of, trace_of
from benchmarks.bench_step import CYCLE, Fast
from benchmarks.ceilings import Work
from benchmarks.contenders import Start
from benchmarks.results import rounded
from benchmarks.suite import Run, Section
from tgan_fast.precision import compute_dtype

OURS = "tgan_fast"
# On a CPU half of what is compared with others: the shares are nearly the same.
BATCH = {"cpu": 2, "cuda": 32}
ROUNDS = {"cpu": 2, "cuda": 10}
GAPS, REST = "launch gaps", "rest"
# Groups of layers, by the first word of their names; every other part is a group itself.
GROUPS = {"deconvolution": "deconvolutions", "Conv3d": "Conv3d, last convolution", "last": "Conv3d, last convolution"}


def measure(run: Run, case: str) -> dict:
    """Time an iteration as a whole and in parts."""
    batch_size, start = int(case.split()[1]), Start.random(run.device, bench_step.width_of(run))
    precision = harness.precisions_for(run.device)[0]
    batches = [batch[Fast.memory_format] for batch in bench_step.make_batches(batch_size, run.device)]
    needed = floors.iteration(batch_size, compute_dtype(precision, torch.float32).itemsize, start.width)
    # First, since a profiler slows down what is launched after it.
    step = Fast(start, precision, CYCLE).step
    for index in range(bench_step.WARM_UP[run.device]):
        step(batches[index % CYCLE])
    timings = run.measure({OURS: step}, batches, ROUNDS[run.device], uncaptured={OURS: "it replays its own"})
    seconds = profile_cycle(Fast(start, precision, CYCLE, cuda_graph="off").step, batches, run.device)
    parts = parts_of(needed, lambda work: run.ceilings.floor(work, precision), seconds, timings[OURS].median)
    gaps = sorted(parts, key=lambda part: part["floor_seconds"] - part["seconds"])
    floor = sum(part["floor_seconds"] for part in parts)
    whole = Work(*(sum(column) for column in zip(*(work for works in needed.values() for work in works), strict=True)))

    def more(name):
        # Each part needs its own floor: together they are more than that of all work at once.
        return {"floor_seconds": rounded(floor), "share_of_floor": rounded(floor / timings[name].median)}

    return {
        "batch_size": batch_size,
        "precision": precision,
        "timings": run.rows(timings, work=whole, precision=precision, more=more),
        "largest_gaps": [part["row"] for part in gaps[:3]],
        "parts": parts,
        "groups": groups_of(parts),
        "left_out": {},
    }


def profile_cycle(step, batches, device) -> dict[str, float]:
    """Return the seconds of each part in an iteration, a mean over all batches."""

    def run():
        for batch in batches:
            step(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    mark(step)
    if device == "cuda":
        run()  # Triton's kernels are compiled, and convolution algorithms chosen.
    return {name: seconds / len(batches) for name, seconds in seconds_of(trace_of(run, device), device).items()}


def parts_of(
    needed: Mapping[str, Sequence[Work]], floor: Callable[[Work], float], seconds: Mapping[str, float], total: float
) -> list[dict]:
    """Return all parts of an iteration: known ones in the order of `needed`, others, and what is left of the total.

    Args:
        needed: Operations of the known parts.
        floor: Function that returns the seconds that an operation takes at least.
        seconds: Seconds of all parts that were seen.
        total: Seconds of the iteration.
    """
    others = sorted(seconds.keys() - needed.keys(), key=lambda name: seconds[name], reverse=True)
    rows = [(name, seconds.get(name, 0.0)) for name in (*needed, *others)]
    return [
        {
            "row": name,
            "floor_seconds": rounded(sum(map(floor, needed.get(name, [])))),
            "seconds": rounded(taken),
            "known": name in needed or name == GAPS,
        }
        for name, taken in (*rows, (GAPS, total - sum(seconds.values())))
    ]


def groups_of(parts: Sequence[dict]) -> list[dict]:
    """Return the time and the floor of parts of the same kind together."""
    groups = defaultdict(lambda: [0.0, 0.0])
    for part in parts:
        name = part["row"].removesuffix(f", {floors.FORWARD}").removesuffix(f", {floors.BACKWARD}")
        sums = groups[GROUPS.get(name.split()[0], name) if part["known"] else REST]
        sums[0] += part["seconds"]
        sums[1] += part["floor_seconds"]
    return [
        {"group": name, "seconds": rounded(seconds), "floor_seconds": rounded(floor)}
        for name, (seconds, floor) in groups.items()
    ]


def details(record: dict) -> Iterator[str]:
    """Describe the parts."""
    parts, total = record["parts"], record["timings"][0]["seconds"]
    yield f"{'':48}{'floor ms':>10}{'ms':>10}{'share':>8}{'gap ms':>10}"
    for part in parts:
        seconds, floor = part["seconds"], part["floor_seconds"]
        yield (
            f"{part['row'][:47]:48}{1e3 * floor:10.4f}{1e3 * seconds:10.4f}{100 * seconds / total:7.1f}%"
            f"{1e3 * (seconds - floor):10.4f}"
        )
    copies = sum(part["seconds"] for part in parts if part["row"].endswith(floors.COPIES))
    yield f"copies and layout transposes, which should be next to nothing: {100 * copies / total:.2f} % of the total"
    unknown = sum(part["seconds"] for part in parts if not part["known"])
    yield f"belongs to no known part: {100 * unknown / total:.2f} %"
    yield f"largest gaps: {'; '.join(record['largest_gaps'])}"


SECTION = Section(
    name="breakdown",
    title="where the time of a training iteration goes; floor: of each part by itself",
    cases=lambda run: [f"batch {bench_step.SMOKE_BATCH if run.smoke else BATCH[run.device]}"],
    measure=measure,
    details=details,
)

if __name__ == "__main__":
    suite.main(SECTION)
