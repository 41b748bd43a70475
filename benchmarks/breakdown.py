"""Breakdown of the time of a training iteration by groups of operations, each beside its floor (floors.py).

    python -m benchmarks.breakdown --device cuda

The profiler's trace of five iterations without a CUDA graph, one of which clips, gives the time of each group: on a GPU
the kernels launched in its ranges, on a CPU its ranges and operators without those of other groups inside them. A
backward node belongs to the group of the forward operator with the same sequence number; copies within layers are a
group of their own. The total is that of graph replays, and total minus sum is the cost of launches.
"""

import functools
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import bench_step, floors, harness, suite
from benchmarks.bench_step import Fast
from benchmarks.contenders import CLIP_INTERVAL, Start
from benchmarks.floors import BATCH_NORM, CLIPPING, COPIES, DECONVOLUTIONS, OPTIMIZERS, OTHERS
from benchmarks.result_files import rounded
from benchmarks.suite import Run, Section
from tgan_fast.precision import compute_dtype
from tgan_fast.training import TrainingStep

OURS = "tgan_fast"
# On a CPU half of the batch of the other benchmarks suffices, since the shares are nearly the same.
BATCH = {"cpu": 2, "cuda": 32}
ROUNDS = {"cpu": 2, "cuda": 10}

_RANGE, _NODE = "part: ", "autograd::engine::evaluate_function: "
_HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
# Groups to which their copies belong.
_WHOLE = {BATCH_NORM, COPIES, OPTIMIZERS, CLIPPING}
_COPYING = re.compile("clone|copy_|constant_pad_nd|flip|im2col|col2im|index_select")
# Kernels by which libraries transpose layouts within a convolution.
_TRANSPOSES = re.compile(r"n[cdhw]+ton[cdhw]+|transpose_readwrite|tensorTransform", re.IGNORECASE)


def measure(run: Run, case: str) -> dict:
    """Time an iteration as a whole and in groups."""
    batch_size, start = int(case.split()[1]), Start.random(run.device, bench_step.width_of(run))
    precision = harness.precisions_for(run.device)[0]
    batches = [batch[Fast.memory_format] for batch in bench_step.make_batches(batch_size, run.device)]
    needed = floors.iteration(batch_size, compute_dtype(precision, torch.float32).itemsize, start.width)
    # This is timed first, since a profiler slows down later launches.
    step = Fast(start, precision, CLIP_INTERVAL).step
    for index in range(bench_step.CHECKED[run.device]):
        step(batches[index % CLIP_INTERVAL])
    timings = run.measure({OURS: step}, batches, ROUNDS[run.device], uncaptured={OURS: "it replays its own"})
    seconds = profile_cycle(Fast(start, precision, CLIP_INTERVAL, cuda_graph="off").step, batches, run.device)
    groups = [
        {
            "group": name,
            "seconds": rounded(seconds.get(name, 0.0)),
            "floor_seconds": rounded(sum(run.ceilings.floor(work, precision) for work in works)),
        }
        for name, works in needed.items()
    ]
    gaps = timings[OURS].median - sum(seconds.values())
    groups.append({"group": "launch gaps", "seconds": rounded(gaps), "floor_seconds": 0.0})
    floor = sum(group["floor_seconds"] for group in groups)

    def more(name):
        # The groups' floors add up to more than the floor of all work at once.
        return {"floor_seconds": rounded(floor), "share_of_floor": rounded(floor / timings[name].median)}

    rows = run.rows(timings, more=more)
    return {"batch_size": batch_size, "precision": precision, "timings": rows, "groups": groups, "left_out": {}}


def mark(step: TrainingStep) -> None:
    """Put a profiler range around each group of a step, permanently."""
    for network in (step._generator, step._discriminator):
        _mark(network, "zero_grad", OPTIMIZERS)
        _mark(network, "update", OPTIMIZERS)
        for name, module in network.computing.named_modules():
            group = floors.group_of(name, module)
            if group is not None:
                _mark(module, "forward", group)
    # The first deconvolution is not called as a module: it convolves the content latent once for all frames.
    _mark(step._generator.computing.model[0], "on_still_and_moving", DECONVOLUTIONS)
    _mark(step, "_constrain", CLIPPING)


def _mark(owner, method, group):
    function = getattr(owner, method)

    @functools.wraps(function)
    def in_range(*args, **kwargs):
        with record_function(_RANGE + group):
            return function(*args, **kwargs)

    setattr(owner, method, in_range)


def profile_cycle(step: TrainingStep, batches: Sequence[torch.Tensor], device: str) -> dict[str, float]:
    """Return the seconds of each group in an iteration, a mean over all batches."""

    def run():
        for batch in batches:
            step(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    mark(step)
    if device == "cuda":
        run()  # Triton's kernels are compiled, and convolution algorithms chosen.
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    return {name: seconds / len(batches) for name, seconds in seconds_by_group(events, device).items()}


def seconds_by_group(events: Iterable[dict], device: str) -> dict[str, float]:
    """Return the seconds of each group in a trace."""
    complete = [event for event in events if event.get("ph") == "X"]
    seconds, forward, launches = defaultdict(float), {}, {}
    running = defaultdict(list)  # by thread; each event lies inside the previous one
    nothing = {"name": "", "group": None}
    for event in sorted(complete, key=lambda event: (event["ts"], -event["dur"])):
        if event["cat"] not in _HOST:
            continue
        around, arguments = running[event["tid"]], event.get("args", {})
        while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"]:
            around.pop()
        parent = around[-1] if around else nothing
        number = arguments.get("Sequence number")
        event["group"] = group = _group_of(event["name"], parent, forward.get(number, OTHERS))
        around.append(event)
        if number is not None:
            # Several operators may have a sequence number; its backward node belongs to the last.
            forward[number] = group
        launches[arguments.get("correlation")] = group
        if device == "cpu":
            seconds[group] += event["dur"] / 1e6
            seconds[parent["group"]] -= event["dur"] / 1e6
    for kernel in complete:
        if kernel["cat"] in _DEVICE:
            group = launches.get(kernel.get("args", {}).get("correlation", ""), OTHERS)
            hidden = group != OTHERS and _TRANSPOSES.search(kernel["name"])
            seconds[COPIES if hidden else group] += kernel["dur"] / 1e6
    seconds.pop(None, None)
    return dict(seconds)


def _group_of(name, parent, forward):
    if name.startswith(_RANGE):
        return name.removeprefix(_RANGE)
    if name.startswith(_NODE):
        return forward
    copies = _COPYING.fullmatch(name.removeprefix("aten::")) and parent["name"] != "aten::_to_copy"
    return COPIES if copies and parent["group"] not in _WHOLE else parent["group"] or OTHERS


def details(record: dict) -> Iterator[str]:
    """Describe the groups."""
    yield f"{'':48}{'floor ms':>10}{'ms':>10}{'share':>8}"
    for group in record["groups"]:
        seconds, floor = 1e3 * group["seconds"], 1e3 * group["floor_seconds"]
        share = seconds / (10 * record["timings"][0]["seconds"])
        yield f"{group['group']:48}{floor:10.4f}{seconds:10.4f}{share:7.1f}%"


SECTION = Section(
    name="breakdown",
    title="where the time of a training iteration goes; floor: of each group by itself",
    cases=lambda run: [f"batch {bench_step.SMOKE_BATCH if run.smoke else BATCH[run.device]}"],
    measure=measure,
    details=details,
)

if __name__ == "__main__":
    suite.main(SECTION)
