"""CUDA graphs of functions, for tests."""

from collections.abc import Callable
from typing import Any

import torch

from tgan_fast.cuda_graph import capture


def captured(function: Callable[[], Any], warm_up: int = 1) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Return a graph of `function`, which runs `warm_up` times before, and what it returned while it was captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    return capture(function, stream)
