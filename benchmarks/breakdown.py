"""Where the time of a training iteration goes: groups of its operations, each beside its floor (floors.py).

    python -m benchmarks.breakdown --device cuda

The profiler's trace of five iterations without a CUDA graph, one of which clips, says what each group takes: on a GPU
the kernels that are launched in its ranges, on a CPU its ranges and operators without those of other groups inside
them, and what observing them costs. A backward node belongs to the group in which its forward operator ran: both have
the same sequence number. Copies within layers are a group of their own, and what is in no known group is the rest. The
total is that of replays, so that total minus sum is what launches cost.
"""

import functools
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import bench_step, floors, harness, suite
from benchmarks.bench_step import CYCLE, Fast
from benchmarks.contenders import Start
from benchmarks.floors import BATCH_NORM, CLIPPING, COPIES, DECONVOLUTIONS, ELEMENTWISE, OPTIMIZERS
from benchmarks.results import rounded
from benchmarks.suite import Run, Section
from tgan_fast.precision import compute_dtype
from tgan_fast.training import TrainingStep

OURS = "tgan_fast"
# On a CPU half of what is compared with others: the shares are nearly the same.
BATCH = {"cpu": 2, "cuda": 32}
ROUNDS = {"cpu": 2, "cuda": 10}
GAPS, REST = "launch gaps", "rest"
MOST_NAMES = 10  # of operators or kernels in the rest

_RANGE, _NODE = "part: ", "autograd::engine::evaluate_function: "
_HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
# Groups to which their copies belong.
_WHOLE = {BATCH_NORM, COPIES, ELEMENTWISE, OPTIMIZERS, CLIPPING}
_COPYING = re.compile("clone|copy_|constant_pad_nd|flip|im2col|col2im|index_select")
_ELEMENTWISE = re.compile(
    r"(add|sub|mul|div)_?|neg|sum|mean|stack|cat|tanh\w*|leaky_relu\w*|uniform_|zero_|fill_|ones_like|_to_copy|_foreach_\w+"
)
# Kernels by which libraries transpose layouts within a convolution.
_TRANSPOSES = re.compile(r"n[cdhw]+ton[cdhw]+|transpose_readwrite|tensorTransform", re.IGNORECASE)


def measure(run: Run, case: str) -> dict:
    """Time an iteration as a whole and in groups."""
    batch_size, start = int(case.split()[1]), Start.random(run.device, bench_step.width_of(run))
    precision = harness.precisions_for(run.device)[0]
    batches = [batch[Fast.memory_format] for batch in bench_step.make_batches(batch_size, run.device)]
    needed = floors.iteration(batch_size, compute_dtype(precision, torch.float32).itemsize, start.width)
    # First, since a profiler slows down what is launched after it.
    step = Fast(start, precision, CYCLE).step
    for index in range(bench_step.CHECKED[run.device]):
        step(batches[index % CYCLE])
    timings = run.measure({OURS: step}, batches, ROUNDS[run.device], uncaptured={OURS: "it replays its own"})
    seconds = profile_cycle(Fast(start, precision, CYCLE, cuda_graph="off").step, batches, run.device)
    taken = {name: seconds.get(name, 0.0) for name in needed}
    taken[REST] = sum(seconds.values()) - sum(taken.values())
    taken[GAPS] = timings[OURS].median - sum(taken.values())
    least = {name: sum(run.ceilings.floor(work, precision) for work in works) for name, works in needed.items()}
    groups = [
        {"group": name, "seconds": rounded(taken[name]), "floor_seconds": rounded(least.get(name, 0.0))}
        for name in taken
    ]
    others = sorted(seconds.keys() - needed.keys(), key=seconds.get, reverse=True)

    def more(name):
        # Each group needs its own floor: together they are more than that of all work at once.
        floor = sum(least.values())
        return {"floor_seconds": rounded(floor), "share_of_floor": rounded(floor / timings[name].median)}

    return {
        "batch_size": batch_size,
        "precision": precision,
        "timings": run.rows(timings, more=more),
        "groups": groups,
        "rest": {name: rounded(seconds[name]) for name in others[:MOST_NAMES]},
        "left_out": {},
    }


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
    return {name: seconds / len(batches) for name, seconds in seconds_of(trace_of(run, device), device).items()}


def mark(step: TrainingStep) -> None:
    """Put a range around each group of a step, for good."""
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


def trace_of(run: Callable[[], None], device: str) -> list[dict]:
    """Run something on a device; return the events of its Chrome trace."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def seconds_of(events: Iterable[dict], device: str) -> dict[str, float]:
    """Return the seconds of each group in a trace; what belongs to none is listed under its own name."""
    complete = [event for event in events if event.get("ph") == "X"]
    seconds, forward, launches = defaultdict(float), {}, {}
    running = defaultdict(list)  # by thread, each event inside the one before it
    for event in sorted(complete, key=lambda event: (event["ts"], -event["dur"])):
        if event["cat"] not in _HOST:
            continue
        around, arguments = running[event["tid"]], event.get("args", {})
        while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"]:
            around.pop()
        parent = around[-1] if around else {"name": "", "group": None}
        number = arguments.get("Sequence number")
        event["group"] = group = _group_of(event["name"], parent, forward.get(number))
        around.append(event)
        if number is not None:
            # The last operator with a number is the one whose node gets it.
            forward[number] = group
        launches[arguments.get("correlation")] = group
        if device == "cpu":
            seconds[group] += event["dur"] / 1e6
            seconds[parent["group"]] -= event["dur"] / 1e6
    for kernel in complete:
        if kernel["cat"] in _DEVICE:
            group = launches.get(kernel.get("args", {}).get("correlation", ""))
            hidden = group is not None and _TRANSPOSES.search(kernel["name"])
            seconds[COPIES if hidden else group or kernel["name"]] += kernel["dur"] / 1e6
    seconds.pop(None, None)
    return dict(seconds)


def _group_of(name, parent, forward):
    if name.startswith(_RANGE):
        return name.removeprefix(_RANGE)
    if name.startswith(_NODE):
        return forward
    group, operator = parent["group"], name.removeprefix("aten::")
    if _COPYING.fullmatch(operator) and parent["name"] != "aten::_to_copy" and group not in _WHOLE:
        return COPIES
    if group is not None or not name.startswith("aten::"):
        return group
    return ELEMENTWISE if _ELEMENTWISE.fullmatch(operator) else name


def details(record: dict) -> Iterator[str]:
    """Describe the groups."""
    yield f"{'':48}{'floor ms':>10}{'ms':>10}{'share':>8}"
    for group in record["groups"]:
        seconds, floor = 1e3 * group["seconds"], 1e3 * group["floor_seconds"]
        share = seconds / (10 * record["timings"][0]["seconds"])
        yield f"{group['group']:48}{floor:10.4f}{seconds:10.4f}{share:7.1f}%"
    for name, seconds in record.get("rest", {}).items():
        yield f"  rest: {name[:40]:40}{1e3 * seconds:20.4f}"


SECTION = Section(
    name="breakdown",
    title="where the time of a training iteration goes; floor: of each group by itself",
    cases=lambda run: [f"batch {bench_step.SMOKE_BATCH if run.smoke else BATCH[run.device]}"],
    measure=measure,
    details=details,
)

if __name__ == "__main__":
    suite.main(SECTION)
