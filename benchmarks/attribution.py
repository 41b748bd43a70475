"""Attribute a training iteration's kernels on a GPU, or its operators on a CPU, to parts, by the profiler's trace.

`mark` puts ranges around the layers, the optimizers and the constraint of a step. A backward node belongs to the part
in which its forward operator ran: both have the same sequence number. Copies within layers are a part of their own, and
what runs outside of all ranges is known by the operator's name. On a CPU a part takes the time of its ranges and
operators, without that of other parts inside them; on a GPU the time of the kernels that are launched there.
"""

import functools
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import floors
from benchmarks.floors import BACKWARD, BATCH_NORM, CLIPPING, COPIES, ELEMENTWISE, FORWARD, OPTIMIZERS
from tgan_fast.training import TrainingStep

_RANGE, _NODE = "part: ", "autograd::engine::evaluate_function: "
_HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
# Parts to which their copies belong.
_WHOLE = (BATCH_NORM, COPIES, ELEMENTWISE, OPTIMIZERS, CLIPPING)
_COPYING = re.compile("clone|copy_|constant_pad_nd|flip|im2col|col2im|index_select")
_ELEMENTWISE = re.compile(
    r"(add|sub|mul|div)_?|neg|sum|mean|stack|cat|tanh\w*|leaky_relu\w*|uniform_|zero_|fill_|ones_like|_to_copy|_foreach_\w+"
)
# Kernels by which libraries transpose layouts within a convolution.
_TRANSPOSES = re.compile(r"n[cdhw]+ton[cdhw]+|transpose_readwrite|tensorTransform", re.IGNORECASE)


def mark(step: TrainingStep) -> None:
    """Put a range around each part of a step, for good."""
    for name, network in ((floors.GENERATOR, step._generator), (floors.DISCRIMINATOR, step._discriminator)):
        _mark(network, "zero_grad", OPTIMIZERS)
        _mark(network, "update", OPTIMIZERS)
        for path, module in network.computing.named_modules():
            group = floors.group_of(name, path, module)
            if group is not None:
                _mark(module, "forward", floors.row(group, FORWARD))
    # The first deconvolution is not called as a module: it convolves the content latent once for all frames.
    _mark(step._generator.computing.model[0], "on_still_and_moving", floors.row("deconvolution 1", FORWARD))
    _mark(step, "_constrain", CLIPPING)


def _mark(owner, method, part):
    function = getattr(owner, method)

    @functools.wraps(function)
    def in_range(*args, **kwargs):
        with record_function(_RANGE + part):
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
    """Return the seconds of each part in a trace; what belongs to no part is listed under its own name."""
    complete = [event for event in events if event.get("ph") == "X"]
    kernels = [event for event in complete if event["cat"] in _DEVICE]
    seconds, forward, launches = defaultdict(float), {}, {}
    running = defaultdict(list)  # by thread, each event inside the one before it
    for event in sorted(complete, key=lambda event: (event["ts"], -event["dur"])):
        if event["cat"] not in _HOST:
            continue
        around, arguments = running[event["tid"]], event.get("args", {})
        while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"]:
            around.pop()
        parent = around[-1] if around else {"name": "", "part": None}
        number = arguments.get("Sequence number")
        event["part"] = part = _part_of(event["name"], parent, forward.get(number))
        around.append(event)
        if number is not None:
            # The last operator with a number is the one whose node gets it.
            forward[number] = part
        launches[arguments.get("correlation")] = part
        if device == "cpu":
            seconds[part] += event["dur"] / 1e6
            seconds[parent["part"]] -= event["dur"] / 1e6
    for kernel in kernels:
        part = launches.get(kernel.get("args", {}).get("correlation", ""))
        hidden = part is not None and _TRANSPOSES.search(kernel["name"])
        seconds[COPIES if hidden else part or kernel["name"]] += kernel["dur"] / 1e6
    seconds.pop(None, None)
    return dict(seconds)


def _part_of(name, parent, forward):
    if name.startswith(_RANGE):
        return name.removeprefix(_RANGE)
    if name.startswith(_NODE):
        return forward and forward.replace(FORWARD, BACKWARD)
    part, operator = parent["part"], name.removeprefix("aten::")
    converts = parent["name"] == "aten::_to_copy"
    if _COPYING.fullmatch(operator) and not converts and (part is None or not part.startswith(_WHOLE)):
        return COPIES
    if part is not None or not name.startswith("aten::") or _moves_nothing(name):
        return part
    return ELEMENTWISE if _ELEMENTWISE.fullmatch(operator) else name


@functools.cache
def _moves_nothing(name):
    """Tell whether an operator's result is memory without content, or its input seen in another way."""
    results = [result for schema in torch._C._jit_get_schemas_for_operator(name) for result in schema.returns]
    views = any(result.alias_info is not None and not result.alias_info.is_write for result in results)
    return views or name.startswith(("aten::empty", "aten::new_empty", "aten::_unsafe_view"))
