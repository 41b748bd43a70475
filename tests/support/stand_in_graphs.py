"""Streams and CUDA graphs that do nothing, for tests without a GPU.

A capture that fails behaves as in PyTorch 2.11: it raises while its stream is still the current one.
"""

import gc
from contextlib import contextmanager, nullcontext

import pytest
import torch


class StandInGraphs:
    """A stand-in for torch.cuda that records how it is used.

    Attributes:
        current: Current stream.
        captures: Stream and pool of every capture that was begun.
        collections: Whether the garbage collector was enabled in each of them.
        cache_is_emptied: Number of times the cache was emptied.
        invalid: Whether something ran that a graph cannot hold.
    """

    def __init__(self):
        self.current = Stream()
        self.captures, self.collections = [], []
        self.cache_is_emptied = 0
        self.invalid = False

    def wait(self):
        """Do what a graph cannot hold."""
        self.invalid = True
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        before, self.current = self.current, stream
        self.captures.append((stream, pool))
        self.collections.append(gc.isenabled())
        yield
        if self.invalid:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.current = before

    def empty_cache(self):
        self.cache_is_emptied += 1


class Stream:
    def __init__(self, device="cpu"):
        self.device = device

    def wait_stream(self, other):
        pass


@pytest.fixture
def stand_in_graphs(monkeypatch):
    graphs = StandInGraphs()
    for name in ("stream", "graph", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, getattr(graphs, name))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: graphs.current)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr("tgan_fast.cuda_graph._failure", None)
    return graphs
