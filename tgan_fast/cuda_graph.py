"""CUDA graphs: capture a function of static tensors once, then replay it without Python."""

import functools
import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tgan_fast.choices import CudaGraphMode
from tgan_fast.errors import InputError, first_line, is_out_of_memory
from tgan_fast.nn import is_watched

# Reason why a capture in this process could not be ended; PyTorch does not recover from that.
_failure: str | None = None


def capture(
    function: Callable[[], Any], stream: torch.cuda.Stream, pool: tuple[int, int] | None = None
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Capture the work that `function` launches as a CUDA graph.

    If a capture cannot be ended, PyTorch's allocator and random generator stay in capture mode. This process then
    captures no further graph, and `capture_failure` returns the reason.

    Args:
        function: Function that launches work on the current stream and never waits for it. It must have run on `stream`
            before, so that kernels are loaded.
        stream: Stream to capture on, not the default one. It is the current stream only while `function` runs.
        pool: Handle of memory shared with other graphs of this stream that never run at the same time, from
            `torch.cuda.graph_pool_handle()`.

    Returns:
        The graph, and the result of `function`, which every replay overwrites.

    Raises:
        RuntimeError: The graph could not be captured, or an earlier capture failed.
        Exception: `function` raised it.
    """
    global _failure
    if _failure is not None:
        raise RuntimeError(_refusal())
    graph, problem = torch.cuda.CUDAGraph(), None
    with torch.cuda.stream(torch.cuda.current_stream()), _no_garbage_collection():
        try:
            # Only calls of this thread are checked, because other threads copy batches meanwhile.
            with (
                _empty_graphs_allowed(),
                torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
            ):
                try:
                    result = function()
                except Exception as error:
                    problem = error
        except RuntimeError as error:
            # The error of `function` says more than the one at the end of the capture.
            problem = problem or error
            _failure = first_line(problem)
            warnings.warn(f"this process captures no more CUDA graphs, because one failed: {_failure}", stacklevel=2)
    if problem is None:
        return graph, result
    try:
        raise problem
    finally:
        del problem  # its traceback refers to this frame: a reference cycle


def capture_failure() -> str | None:
    """Return why this process can capture no more CUDA graphs, or None if it can."""
    return _failure


def _refusal():
    return f"PyTorch captures no more graphs in this process, because one failed: {_failure}"


def empty_cache() -> None:
    """Return the GPU's unused memory to the system; do nothing after a failed capture, when PyTorch cannot."""
    if _failure is None:
        torch.cuda.empty_cache()


@contextmanager
def _empty_graphs_allowed() -> Iterator[None]:
    """Suppress PyTorch's warning of an empty graph: some constraints change no weight, so nothing is launched."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        yield


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage before the block, not inside: destroying an older graph invalidates the one being captured."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Replayed:
    """Runner that captures a function as a CUDA graph after `warm_up` calls and then replays it.

    The function's tensors must stay in place: it reads inputs from tensors that the caller fills, and the next call
    overwrites its result. The function's host code runs only in the first calls.

    Args:
        device: GPU to run on.
        warm_up: Number of calls before the capture, in which kernels are compiled and convolution algorithms chosen.
        required: Whether to raise an error if the function cannot be captured, instead of continuing without a graph.
        shares: Another `Replayed` that never runs at the same time, to share its stream and memory.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        warm_up: int = 3,
        required: bool = False,
        shares: "Replayed | None" = None,
    ):
        self._warm_up, self._required = warm_up, required
        # Even within a pool, memory freed on one stream is not reused on another.
        self._stream = torch.cuda.Stream(device) if shares is None else shares._stream
        self._pool = torch.cuda.graph_pool_handle() if shares is None else shares._pool
        self._graph = self._result = None

    def __call__(self, function: Callable[[], Any]) -> Any:
        """Run `function` and return its result.

        The function is an argument and not an attribute, so that its owner can hold this object without a reference
        cycle: the graph is destroyed together with the owner.

        Args:
            function: Function that launches work on the current stream and never waits for it; always the same one.

        Raises:
            InputError: The function cannot be captured, and a graph is required.
        """
        with torch.cuda.device(self._stream.device):
            if self._warm_up > 0:
                self._warm_up -= 1
                return self._run_on_stream(function)
            if self._graph is None:
                self._capture(function)
            if self._graph is False:
                return self._run_on_stream(function)
            self._graph.replay()
            return self._result

    def _run_on_stream(self, function):
        # The default stream cannot be captured, and the stream that autograd remembers must not change later.
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            result = function()
        outer.wait_stream(self._stream)
        return result

    def _capture(self, function):
        try:
            self._graph, self._result = capture(function, self._stream, self._pool)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
            if self._required:
                raise InputError(f"the CUDA graph could not be captured: {reason}") from error
            # A failure that prevents further captures is reported where it happens.
            if capture_failure() is None:
                warnings.warn(f"continuing without a CUDA graph, which could not be captured: {reason}", stacklevel=3)
            self._graph = False


class GraphRunner:
    """Runner that captures each function as a CUDA graph; all graphs share a stream and memory.

    Args:
        device: GPU to run on.
        required: Whether to raise an error if a function cannot be captured.
    """

    def __init__(self, device: torch.device, *, required: bool = False):
        self._replayed = functools.partial(Replayed, device, required=required)
        self._graphs = {}

    def __call__(self, function: Callable[..., None], *arguments: Any, warm_up: int = 3) -> None:
        """Run a function, or replay its graph.

        Args:
            function: Function for `Replayed.__call__`, identified by its name.
            arguments: Arguments of the function, always the same.
            warm_up: Number of calls before the capture.
        """
        name = function.__name__
        if name not in self._graphs:
            self._graphs[name] = self._replayed(warm_up=warm_up, shares=next(iter(self._graphs.values()), None))
        self._graphs[name](functools.partial(function, *arguments))


def run_eagerly(function: Callable[..., None], *arguments: Any, warm_up: int = 0) -> None:
    """Run a function without a CUDA graph; arguments as for `GraphRunner.__call__`."""
    function(*arguments)


def use_cuda_graph(
    mode: CudaGraphMode, device: torch.device, networks: Iterable[nn.Module] = (), *, backend: str | None = None
) -> bool:
    """Return whether to capture CUDA graphs; `auto` captures them wherever that is possible.

    Args:
        mode: Setting of the user.
        device: Device that the work runs on.
        networks: Networks that the work calls. A graph would not call their hooks.
        backend: Backend of torch.distributed, if processes exchange gradients.

    Raises:
        InputError: The mode is `on` and graphs are not possible; the message says why.
    """
    if mode == "off":
        return False
    reason = _why_not(device, networks, backend)
    if reason is None:
        return True
    if mode == "on":
        raise InputError(f"a CUDA graph is not possible: {reason}")
    # A failure that prevents further captures is reported where it happens.
    if device.type == "cuda" and capture_failure() is None:
        warnings.warn(f"continuing without a CUDA graph: {reason}", stacklevel=3)
    return False


def _why_not(device, networks, backend):
    if device.type != "cuda":
        return f"it needs a GPU, but the networks are on the {device.type.upper()}"
    if capture_failure() is not None:
        return _refusal()
    if backend not in (None, "nccl"):
        return f"the processes communicate through {backend}; only nccl can be captured"
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        return "CUDA_LAUNCH_BLOCKING=1 makes every launch wait"
    if torch.is_anomaly_enabled():
        return "autograd's anomaly mode checks every step of backward"
    watched = next((module for network in networks for module in network.modules() if is_watched(module)), None)
    return None if watched is None else f"{type(watched).__name__} has hooks, which a graph would not call"
