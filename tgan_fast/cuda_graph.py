"""A function of static tensors as one CUDA graph: captured once, then replayed without Python and without gaps."""

import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from tgan_fast.errors import InputError, is_out_of_memory
from tgan_fast.nn import is_watched

CudaGraphMode = Literal["auto", "on", "off"]

# Why a capture in this process could not be ended, which PyTorch does not recover from; None while all is well.
_failure: str | None = None


def capture(
    function: Callable[[], Any], stream: torch.cuda.Stream, pool: tuple[int, int] | None = None
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Capture what `function` launches as a CUDA graph.

    PyTorch's allocator and random generator stay in capture mode after a capture that could not be ended, so this
    process captures nothing more from then on; `capture_failure` returns the reason.

    Args:
        function: launches work on the current stream, and never waits for it. It must have run on `stream` before, so
            that kernels are loaded.
        stream: where to capture; not the default stream. It is the current stream only while `function` runs.
        pool: memory shared with other graphs of this stream that never run at the same time, from
            `torch.cuda.graph_pool_handle()`.

    Returns:
        The graph, and what `function` returned, which every replay overwrites.

    Raises:
        RuntimeError: the graph could not be captured, now or in an earlier call.
        Exception: `function` raised it.
    """
    global _failure
    if _failure is not None:
        raise RuntimeError(f"PyTorch captures none in this process after one that failed: {_failure}")
    graph, problem = torch.cuda.CUDAGraph(), None
    with torch.cuda.stream(torch.cuda.current_stream()), _no_garbage_collection():
        try:
            # Only this thread's calls are checked: others go on copying batches meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                try:
                    result = function()
                except Exception as error:
                    problem = error
        except RuntimeError as error:
            # What `function` met first says more than that the capture could not be ended.
            problem = problem or error
            _failure = _first_line(problem)
    if problem is None:
        return graph, result
    try:
        raise problem
    finally:
        del problem  # its traceback refers to this frame


def capture_failure() -> str | None:
    """Why this process captures no CUDA graphs any more; None while it does."""
    return _failure


def empty_cache() -> None:
    """Return the GPU's unused memory to the system, where PyTorch can: it cannot after a failed capture."""
    if _failure is None:
        torch.cuda.empty_cache()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage before, and none inside: an older graph that is destroyed would invalidate the new one."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Replayed:
    """Calls one function as it is at first, and as the replay of a CUDA graph from then on.

    What the function reads and writes must stay where it is: it takes its inputs from tensors that the caller fills,
    and what it returns is overwritten by the next call. What it does on the host happens only in its first calls.

    Args:
        device: the GPU.
        warm_up: calls without a graph, in which kernels are compiled and convolution algorithms chosen.
        required: raise where the function cannot be captured. Otherwise it goes on without a graph, after a warning.
        shares: another `Replayed` that never runs at the same time, whose stream and memory are used too.
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
        # Memory that was freed on one stream is not reused on another, even within one pool.
        self._stream = torch.cuda.Stream(device) if shares is None else shares._stream
        self._pool = torch.cuda.graph_pool_handle() if shares is None else shares._pool
        self._graph = self._result = None

    def __call__(self, function: Callable[[], Any]) -> Any:
        """Run `function` once, the same one in every call; return what it returns.

        It is not kept, so that its owner can own this too without a reference cycle, and the graph is destroyed with
        the owner.

        Args:
            function: launches work on the current stream, and never waits for it.

        Raises:
            InputError: it cannot be captured, and must.
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
        # The default stream cannot be captured, and what autograd remembers of a stream must not change later.
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            result = function()
        outer.wait_stream(self._stream)
        return result

    def _capture(self, function):
        told = capture_failure() is not None
        try:
            self._graph, self._result = capture(function, self._stream, self._pool)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = _first_line(error)
            if self._required:
                raise InputError(f"the CUDA graph could not be captured: {reason}") from error
            if not told:
                warnings.warn(f"going on without a CUDA graph, which could not be captured: {reason}", stacklevel=3)
            self._graph = False


def use_cuda_graph(
    mode: CudaGraphMode, device: torch.device, networks: Iterable[nn.Module] = (), *, backend: str | None = None
) -> bool:
    """Whether to capture CUDA graphs: as `mode` says, and where it says `auto`, wherever that is possible.

    Args:
        device: where the work runs.
        networks: whose hooks would be called only while the graph is captured.
        backend: of torch.distributed, where processes exchange gradients.

    Raises:
        InputError: `on`, and it is not possible; the message says why.
    """
    if mode == "off":
        return False
    reason = _why_not(device, networks, backend)
    if reason is None:
        return True
    if mode == "on":
        raise InputError(f"a CUDA graph is not possible: {reason}")
    # Of a capture that failed the user was told when it did.
    if device.type == "cuda" and capture_failure() is None:
        warnings.warn(f"going on without a CUDA graph: {reason}", stacklevel=3)
    return False


def _why_not(device, networks, backend):
    if device.type != "cuda":
        return f"it needs a GPU, and the networks are on the {device.type.upper()}"
    if capture_failure() is not None:
        return f"PyTorch captures none in this process after one that failed: {capture_failure()}"
    if backend not in (None, "nccl"):
        return f"the processes communicate through {backend}; only nccl can be captured"
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        return "CUDA_LAUNCH_BLOCKING=1 makes every launch wait"
    if torch.is_anomaly_enabled():
        return "autograd's anomaly mode looks at every step of backward"
    watched = next((module for network in networks for module in network.modules() if is_watched(module)), None)
    return None if watched is None else f"{type(watched).__name__} has hooks, which a graph would not call"


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
