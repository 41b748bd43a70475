"""To which part of an iteration does a GPU's kernel, or an operator on a CPU, belong?

Every operator is labelled where PyTorch dispatches it. In the forward pass its row follows from the module that is
being called, in the backward pass from the module in which the autograd node was made, elsewhere from the file of the
function that is running. The labels are annotations in the profiler's trace. A kernel belongs to the innermost one
around its launch; a kernel that no operator launched to the module, autograd node or file around it; all others to rows
of their own names. Names of kernels are looked at for layout transposes alone, which libraries hide in convolutions.
Within a layer copies are apart from what computes, and the layer's own functions tell by their names which gradient
they compute.
"""

import functools
import json
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.floors import (
    BACKWARD,
    BATCH_NORM,
    CLIPPING,
    COMMUNICATION,
    COPIES,
    DISCRIMINATOR,
    ELEMENTWISE,
    FORWARD,
    GENERATOR,
    INPUT_GRADIENT,
    LAYOUT,
    OPTIMIZERS,
    VECTORS,
    WEIGHT_GRADIENT,
    group_of,
    row,
)
from tgan_fast.models import VideoDiscriminator, VideoGenerator

aten = torch.ops.aten

_NETWORKS = {VideoGenerator: GENERATOR, VideoDiscriminator: DISCRIMINATOR}
# What multiplies weights in a network itself, outside of its layers, belongs to this one.
_OWN_LAYER = {GENERATOR: "deconvolution 1", DISCRIMINATOR: None}
# Functions whose work, and that of all they call, is neither forward nor backward; the innermost one counts.
_FILES = {
    r"/torch/optim/|/tgan_fast/(training/(flat_parameters|optimizers|network)|ops/optimizer_\w+)\.py$": OPTIMIZERS,
    r"/tgan_fast/(models/constraint|ops/(constrain_layers|singular_value_clip\w*|clamp_\w+))\.py$": CLIPPING,
    r"/torch/distributed/|/tgan_fast/training/processes\.py$": COMMUNICATION,
}
_OPERATOR, _SCOPE, _NODE = "tgan_fast operator: ", "tgan_fast scope: ", "autograd::engine::evaluate_function: "
_COPIES = {
    *("copy_", "clone", "_to_copy", "_foreach_copy_", "flip", "constant_pad_nd", "index_select", "slice_backward"),
    *("select_backward", "im2col", "col2im", "pixel_shuffle", "pixel_unshuffle"),
}
# Besides views. They do nothing on the device.
_FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "lift_fresh", "_unsafe_view"),
}
_ELEMENTWISE = {
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "neg", "sum", "mean", "stack", "cat"),
    *("tanh", "tanh_", "tanh_backward", "leaky_relu", "leaky_relu_", "leaky_relu_backward", "relu", "relu_"),
    *("threshold_backward", "uniform_", "fill_", "zero_", "zeros", "zeros_like", "new_zeros", "ones_like"),
}
_TRANSPOSES = re.compile(r"n[cdhw]+ton[cdhw]+|transpose_readwrite|tensorTransform", re.IGNORECASE)
_MASK = 10  # the position of convolution_backward's output_mask
# Ends of the names of functions that compute a gradient, looked for among so many callers.
_GRADIENTS = {"input_gradient": INPUT_GRADIENT, "gradients": WEIGHT_GRADIENT}
_CALLERS = 12


class Place(NamedTuple):
    """Where an operator runs."""

    group: str | None
    within_layer: bool  # otherwise only what multiplies weights belongs to the group


NOWHERE = Place(None, False)


class Item(NamedTuple):
    """What ran on the device: a kernel, a copy, or on a CPU an operator."""

    row: str  # its own name where it belongs to none
    seconds: float


class Attribution(TorchDispatchMode):
    """While it is entered, every operator is annotated with its row, and convolution gradients run one by one.

    Attributes:
        operators: what ran, with the host's time.
        flops: operations done, by row.
    """

    def __enter__(self):
        self.operators, self.flops = [], defaultdict(int)
        self._places, self._open, self._nodes = {}, [], {}
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        self._files = _FileScopes()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._files.close()
        for handle in self._handles:
            handle.remove()

    def row_of_node(self, number: int) -> str | None:
        """Where kernels belong that an autograd node launches by itself."""
        place = self._nodes.get(number, NOWHERE)
        return row(place.group, BACKWARD) if place.within_layer else None

    def _enter_module(self, module, _):
        network = _NETWORKS.get(type(module))
        if network is not None:
            groups = ((child, group_of(network, name, child)) for name, child in module.named_modules())
            self._places = {child: Place(group, True) for child, group in groups if group is not None}
            self._places[module] = Place(_OWN_LAYER[network], False)
        place = self._places.get(module) or self._here()
        scope = record_function(_SCOPE + row(place.group, FORWARD)) if place.within_layer else nullcontext()
        scope.__enter__()
        self._open.append((place, scope))

    def _leave_module(self, *_):
        self._open.pop()[1].__exit__(None, None, None)

    def _here(self):
        return self._open[-1][0] if self._open else NOWHERE

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        place, direction = self._place()
        if function is aten.convolution_backward.default and not kwargs and len(args) == _MASK + 1:
            return self._convolution_gradients(function, args, place)
        name = self._files.row or _row_of(function, args, kwargs, place, direction)
        return self._run(name, function, args, kwargs)

    def _run(self, name, function, args, kwargs):
        if name is None:
            return function(*args, **kwargs)
        with record_function(_OPERATOR + name):
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self.operators.append(Item(name, time.perf_counter() - begin))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.flops[name] += count(*args, **kwargs, out_val=result)
        return result

    def _place(self):
        """Where the operator belongs, and whether it is part of forward or of backward."""
        node = torch._C._current_autograd_node()
        if node is not None:
            return self._nodes.get(node._sequence_nr(), NOWHERE), BACKWARD
        # An operator's node is made before the operator runs, so that the first one seen with a number has made it.
        self._nodes.setdefault(torch._C._autograd._get_sequence_nr() - 1, self._here())
        return self._here(), FORWARD

    def _convolution_gradients(self, function, args, place):
        """The gradient of the input by itself, and then the other two."""
        *rest, (of_input, of_weight, of_bias) = args
        results = [None, None, None]
        parts = {INPUT_GRADIENT: [of_input, False, False], WEIGHT_GRADIENT: [False, of_weight, of_bias]}
        for part, mask in parts.items():
            if any(mask):
                name = str(function) if place.group is None else _part_of_layer(place.group, part)
                gradients = self._run(name, function, (*rest, mask), {})
                results = [old if new is None else new for old, new in zip(results, gradients, strict=True)]
        return tuple(results)


def _row_of(function, args, kwargs, place, direction):
    """None for what does nothing on the device."""
    name = function._opname
    if function.is_view or name in _FREE or function.namespace == "profiler":
        return None
    if function.namespace in ("c10d", "_c10d_functional"):
        return COMMUNICATION
    if place.group == BATCH_NORM:
        return row(BATCH_NORM, direction)
    copies = name in _COPIES and not _converts(args, kwargs)
    if place.within_layer or (place.group is not None and function._overloadpacket in flop_registry):
        if copies:
            return row(place.group, COPIES)
        return _part_of_layer(place.group, FORWARD if direction == FORWARD else _gradient_by_callers())
    if copies:
        return LAYOUT
    return ELEMENTWISE if name in _ELEMENTWISE or name in _COPIES else str(function)


def _part_of_layer(group, part):
    return row(group, BACKWARD if group == VECTORS and part != FORWARD else part)


def _gradient_by_callers():
    """Which gradient is being computed, by the name of the function that does so; otherwise just backward."""
    frame = sys._getframe(1)
    for _ in range(_CALLERS):
        if frame is None:
            break
        for end, part in _GRADIENTS.items():
            if frame.f_code.co_name.endswith(end):
                return part
        frame = frame.f_back
    return BACKWARD


def _converts(args, kwargs):
    """Whether a copy changes the type of the numbers."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    return len({tensor.dtype for tensor in tensors} | {kwargs.get("dtype") or tensors[0].dtype}) > 1


class _FileScopes:
    """Annotates calls of functions in `_FILES`, on this thread. `row` is that of the innermost one, or None."""

    def __init__(self):
        self._open = []
        sys.setprofile(self._note)

    def close(self):
        sys.setprofile(None)

    @property
    def row(self):
        # Autograd runs nothing of this while backward goes on, on whatever thread.
        return self._open[-1][1] if self._open else None

    def _note(self, frame, event, _):
        if event == "call":
            name = _row_of_file(frame.f_code.co_filename)
            if name is not None and name != self.row:
                scope = record_function(_SCOPE + name)
                scope.__enter__()
                self._open.append((frame, name, scope))
        elif event == "return" and self._open and self._open[-1][0] is frame:
            self._open.pop()[2].__exit__(None, None, None)


@functools.cache
def _row_of_file(path):
    return next((name for pattern, name in _FILES.items() if re.search(pattern, path)), None)


def profiled(run: Callable[[], None], device: str) -> tuple[list[Item], dict[str, int]]:
    """Run something; what ran on the device, and the operations done, by row."""
    if device == "cpu":
        with Attribution() as attribution:
            run()
        return attribution.operators, dict(attribution.flops)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler, Attribution() as attribution:
        run()
        torch.cuda.synchronize()
    return items_of(trace_of(profiler), attribution.row_of_node), dict(attribution.flops)


def trace_of(profiler: profile) -> list[dict]:
    """The events of a profiler's Chrome trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def items_of(events: Iterable[dict], row_of_node: Callable[[int], str | None]) -> list[Item]:
    """The kernels and copies of a Chrome trace.

    Args:
        row_of_node: the row of an autograd node, by its sequence number.
    """
    events = [event for event in events if event.get("ph") == "X"]
    launches = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    scopes = [(event, name) for event in events if (name := _row_of_scope(event, row_of_node)) is not None]
    rows = _rows_of_launches(launches, scopes)
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    return [_item(event, rows.get(event.get("args", {}).get("correlation"))) for event in kernels]


def _item(event, name):
    if name is not None and _TRANSPOSES.search(event["name"]):
        name = LAYOUT
    return Item(event["name"] if name is None else name, event["dur"] / 1e6)


def _row_of_scope(event, row_of_node):
    """The row that an annotation or an autograd node stands for, if it does."""
    name = event["name"]
    for prefix in (_OPERATOR, _SCOPE):
        if name.startswith(prefix):
            return name.removeprefix(prefix) if event.get("cat") == "user_annotation" else None
    return row_of_node(event.get("args", {}).get("Sequence number")) if name.startswith(_NODE) else None


def _rows_of_launches(launches, scopes):
    """The row of each launch's innermost scope, by the launch's correlation number."""
    threads = defaultdict(list)
    for event, name in scopes:
        threads[event["tid"]].append((event["ts"], 0, event["ts"] + event["dur"], name))
    for event in launches:
        number = event.get("args", {}).get("correlation")
        if number is not None:
            threads[event["tid"]].append((event["ts"], 1, number, None))
    rows = {}
    for timeline in threads.values():
        inside = []  # end and row of the scopes that are open, nested as calls are
        for begin, is_launch, value, name in sorted(timeline, key=lambda entry: entry[:2]):
            while inside and inside[-1][0] < begin:
                inside.pop()
            if not is_launch:
                inside.append((value, name))
            elif inside:
                rows[value] = inside[-1][1]
    return rows
