"""CUDA graphs: when they are used, that they compute the same, and what happens where they cannot be captured."""

import gc
import subprocess
import sys
import warnings
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from tgan_fast import cuda_graph
from tgan_fast.cuda_graph import GraphRunner, Replayed, capture, use_cuda_graph
from tgan_fast.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return nn.Sequential(nn.ReLU(), layer)


def test_a_cpu_has_none_and_says_so_only_when_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not use_cuda_graph("auto", CPU)
        assert not use_cuda_graph("off", CPU)
    with pytest.raises(
        InputError, match=r"^a CUDA graph is not possible: it needs a GPU, but the networks are on the CPU"
    ):
        use_cuda_graph("on", CPU)


def test_a_gpu_uses_them_if_nothing_stands_in_the_way():
    """Decide without a GPU, which is only named."""
    assert use_cuda_graph("auto", GPU, [nn.Linear(2, 2)])
    assert use_cuda_graph("on", GPU, [nn.Linear(2, 2)], backend="nccl")
    assert not use_cuda_graph("off", GPU)


def obstacles():
    yield "hooks", {"networks": [nn.Linear(2, 2), hooked()]}, "Linear has hooks, which a graph would not call"
    yield "gloo", {"backend": "gloo"}, "the processes communicate through gloo; only nccl can be captured"


@pytest.mark.parametrize(("options", "reason"), [pytest.param(*case, id=name) for name, *case in obstacles()])
def test_what_stands_in_the_way_is_named(options, reason):
    with pytest.warns(UserWarning, match=f"^continuing without a CUDA graph: {reason}$"):
        assert not use_cuda_graph("auto", GPU, **options)
    with pytest.raises(InputError, match=reason):
        use_cuda_graph("on", GPU, **options)


def test_settings_for_debugging_stand_in_the_way(monkeypatch):
    with torch.autograd.set_detect_anomaly(True), pytest.warns(UserWarning, match="anomaly mode"):
        assert not use_cuda_graph("auto", GPU)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    with pytest.warns(UserWarning, match="CUDA_LAUNCH_BLOCKING=1 makes every launch wait"):
        assert not use_cuda_graph("auto", GPU)


class WaitsAtFirst:
    """Function that returns 3, but waits in its first call, which a graph cannot hold."""

    def __init__(self, graphs):
        self.graphs, self.calls = graphs, 0

    def __call__(self):
        self.calls += 1
        return self.graphs.wait() if self.calls == 1 else 3


def test_after_a_capture_that_could_not_be_ended_none_is_begun_and_the_reason_is_said_once(stand_in_graphs):
    outer, waits = stand_in_graphs.current, WaitsAtFirst(stand_in_graphs)
    with pytest.warns(
        UserWarning,
        match="no more CUDA graphs, because one failed: operation not permitted when stream is capturing$",
    ):
        assert Replayed(CPU, warm_up=0)(waits) == 3
    assert waits.calls == 2
    assert stand_in_graphs.current is outer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Replayed(CPU, warm_up=0)(lambda: 5) == 5
        assert not use_cuda_graph("auto", GPU)
    with pytest.raises(InputError, match="no more graphs in this process, because one failed: operation not permitted"):
        use_cuda_graph("on", GPU)
    with pytest.raises(InputError, match="could not be captured: PyTorch captures no more graphs in this process"):
        Replayed(CPU, warm_up=0, required=True)(lambda: 5)
    assert len(stand_in_graphs.captures) == 1
    # PyTorch's allocator would assert.
    cuda_graph.empty_cache()
    assert stand_in_graphs.cache_is_emptied == 0


def test_an_error_of_pytorch_that_does_not_spoil_the_capture_is_reported_and_others_are_captured(stand_in_graphs):
    calls = []

    def fails_at_first():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("not here")
        return 3

    with pytest.warns(UserWarning, match="continuing without a CUDA graph, which could not be captured: not here$"):
        assert Replayed(CPU, warm_up=0)(fails_at_first) == 3
    assert use_cuda_graph("auto", GPU)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), TypeError("a mistake")])
def test_an_error_that_does_not_spoil_the_capture_is_raised_and_others_are_captured(error, stand_in_graphs):
    def fails():
        raise error

    with pytest.raises(type(error), match=str(error)):
        Replayed(CPU, warm_up=0)(fails)
    _, result = capture(lambda: 5, torch.cuda.Stream())
    assert result == 5
    cuda_graph.empty_cache()
    assert stand_in_graphs.cache_is_emptied == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_a_graph_is_captured(enabled, stand_in_graphs):
    class Garbage:
        def __del__(self):
            stand_in_graphs.collections.append("collected")

    garbage = Garbage()
    garbage.itself = garbage
    del garbage
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.warns(UserWarning, match="captures no more CUDA graphs"):
            Replayed(CPU, warm_up=0)(WaitsAtFirst(stand_in_graphs))
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert stand_in_graphs.collections == ["collected", False]


def test_what_shares_memory_shares_the_stream_it_belongs_to(stand_in_graphs):
    first = Replayed(CPU, warm_up=0)
    for replayed in (first, Replayed(CPU, warm_up=0, shares=first), Replayed(CPU, warm_up=0)):
        replayed._capture(lambda: None)
    one, shared, other = stand_in_graphs.captures
    assert shared == one
    assert not set(other) & set(one)


def test_a_runner_captures_each_function_once_with_its_arguments_in_shared_memory(stand_in_graphs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Mock)
    runner, calls = GraphRunner(CPU), []

    def first(argument):
        calls.append(argument)

    def second():
        calls.append("second")

    for _ in range(3):
        runner(first, "first", warm_up=1)
        runner(second, warm_up=0)
    # One warm-up and one capture of the first function, one capture of the second; replays run no Python.
    assert calls == ["first", "second", "first"]
    one, other = stand_in_graphs.captures
    assert one == other


class Descent:
    """Gradient descent on a small network; everything it touches stays in place."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).cuda()
        self.x = torch.zeros(4, 8, device="cuda")
        self.calls = 0

    def __call__(self):
        self.calls += 1
        loss = self.network(self.x).square().mean()
        gradients = torch.autograd.grad(loss, list(self.network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)
        return loss.detach()


@pytest.mark.gpu
def test_replays_compute_what_calls_compute():
    plain, recorded = Descent(), Descent()
    replayed = Replayed(GPU, warm_up=2, required=True)
    for seed in range(6):
        torch.manual_seed(seed)
        x = torch.randn(4, 8, device="cuda")
        plain.x.copy_(x)
        recorded.x.copy_(x)
        assert torch.equal(replayed(recorded), plain())
    assert recorded.calls == 3
    for one, other in zip(recorded.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_two_graphs_share_a_pool():
    x = torch.ones(1000, device="cuda")
    first = Replayed(GPU, warm_up=1, required=True)
    second = Replayed(GPU, warm_up=1, required=True, shares=first)
    for turn in range(4):
        doubled = first(lambda: x.mul_(2).clone())
        assert second(lambda: (x + 1).add(1).sum()).item() == 1000 * (2 ** (turn + 1) + 2)
        assert (doubled == 2 ** (turn + 1)).all()


@pytest.mark.gpu
def test_a_graph_may_be_empty():
    replayed = Replayed(GPU, warm_up=1, required=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            replayed(lambda: None)


FAILS_ON_PURPOSE = """
import warnings
from unittest.mock import Mock
import torch
from tgan_fast import cuda_graph
from tgan_fast.cuda_graph import Replayed

device = torch.device("cuda")
x = torch.ones(3, device=device)
kept = Replayed(device, warm_up=1, required=True)
for _ in range(3):
    kept(lambda: x + 1)
waits, outer = Replayed(device, warm_up=1), torch.cuda.current_stream()
for _ in range(3):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert waits(lambda: x.sum().item()) == 3
    print(*(warning.message for warning in caught))
assert torch.cuda.current_stream() == outer
cuda_graph.empty_cache()
# What comes later works: other graphs are not captured, earlier ones are replayed, memory is taken and given back.
later = Replayed(device, warm_up=0)
assert all(later(lambda: x.mul(2).sum()).item() == 6 for _ in range(3))
x.fill_(5)
assert kept(lambda: x + 1).sum().item() == 18
assert torch.randn(1 << 20, device=device, generator=torch.Generator(device).manual_seed(0)).std().item() > 0.9
try:
    Replayed(device, warm_up=0, required=True)(lambda: x + 1)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.gpu
@pytest.mark.alone
def test_a_process_in_which_a_capture_failed_continues_without_graphs():
    """A separate process runs this, since PyTorch captures nothing reliably afterwards."""
    result = subprocess.run([sys.executable, "-c", FAILS_ON_PURPOSE], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second, third, error = result.stdout.splitlines()
    assert (first, third) == ("", "")
    assert second.startswith("this process captures no more CUDA graphs, because one failed: ")
    assert error.startswith(
        "InputError the CUDA graph could not be captured: PyTorch captures no more graphs in this process"
    )
