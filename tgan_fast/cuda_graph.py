"""A function of static tensors as one CUDA graph: recorded once, then replayed without Python and without gaps."""

import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from tgan_fast.errors import InputError
from tgan_fast.nn import is_watched

CudaGraphMode = Literal["auto", "on", "off"]


class Replayed:
    """A function without arguments that runs as it is at first, and as the replay of a CUDA graph from then on.

    What the function reads and writes must stay where it is: it takes its inputs from tensors that the caller fills,
    and what it returns is overwritten by the next call. What it does on the host happens only in its first calls.

    Args:
        function: launches work on the current stream, and never waits for it.
        device: the GPU.
        warm_up: calls without a graph, in which kernels are compiled and convolution algorithms chosen.
        required: raise where the function cannot be recorded. Otherwise it goes on without a graph, after a warning.
        pool: of another `Replayed` that never runs at the same time, to share its memory.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        device: torch.device,
        *,
        warm_up: int = 3,
        required: bool = False,
        pool: "Replayed | None" = None,
    ):
        self._function, self._warm_up, self._required = function, warm_up, required
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle() if pool is None else pool._pool
        self._graph = self._result = None

    def __call__(self) -> Any:
        """Run it once; returns what the function returns.

        Raises:
            InputError: it cannot be recorded, and must.
        """
        with torch.cuda.device(self._stream.device):
            return self._run()

    def _run(self):
        if self._warm_up > 0:
            self._warm_up -= 1
            return self._on_side_stream()
        if self._graph is None:
            self._record()
        if self._graph is False:
            return self._on_side_stream()
        self._graph.replay()
        return self._result

    def _on_side_stream(self):
        # The default stream cannot be recorded, and what autograd remembers of a stream must not change later.
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            result = self._function()
        outer.wait_stream(self._stream)
        return result

    def _record(self):
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread's calls: others go on copying batches meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                self._result = self._function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            if self._required:
                raise InputError(f"the CUDA graph could not be recorded: {reason}") from error
            warnings.warn(f"going on without a CUDA graph, which could not be recorded: {reason}", stacklevel=3)
            self._graph = False
        else:
            self._graph = graph


def use_cuda_graph(
    mode: CudaGraphMode, device: torch.device, networks: Iterable[nn.Module] = (), *, backend: str | None = None
) -> bool:
    """Whether to record CUDA graphs: as `mode` says, and where it says `auto`, wherever that is possible.

    Args:
        device: where the work runs.
        networks: whose hooks would be called only while the graph is recorded.
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
    if device.type == "cuda":
        warnings.warn(f"going on without a CUDA graph: {reason}", stacklevel=3)
    return False


def _why_not(device, networks, backend):
    if device.type != "cuda":
        return f"it needs a GPU, and the networks are on the {device.type.upper()}"
    if backend not in (None, "nccl"):
        return f"the processes communicate through {backend}; only nccl can be recorded"
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        return "CUDA_LAUNCH_BLOCKING=1 makes every launch wait"
    if torch.is_anomaly_enabled():
        return "autograd's anomaly mode looks at every step of backward"
    watched = next((module for network in networks for module in network.modules() if is_watched(module)), None)
    return None if watched is None else f"{type(watched).__name__} has hooks, which a graph would not call"
