"""CUDA graphs: when they are used, that they compute the same, and what happens where they cannot be recorded."""

import warnings

import pytest
import torch
from torch import nn

from tgan_fast.cuda_graph import Replayed, use_cuda_graph
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
        InputError, match=r"^a CUDA graph is not possible: it needs a GPU, and the networks are on the CPU"
    ):
        use_cuda_graph("on", CPU)


def test_a_gpu_uses_them_if_nothing_stands_in_the_way():
    """Decided without a GPU: what is asked for is only named."""
    assert use_cuda_graph("auto", GPU, [nn.Linear(2, 2)])
    assert use_cuda_graph("on", GPU, [nn.Linear(2, 2)], backend="nccl")
    assert not use_cuda_graph("off", GPU)


def obstacles():
    yield "hooks", {"networks": [nn.Linear(2, 2), hooked()]}, "Linear has hooks, which a graph would not call"
    yield "gloo", {"backend": "gloo"}, "the processes communicate through gloo; only nccl can be recorded"


@pytest.mark.parametrize(("options", "reason"), [pytest.param(*case, id=name) for name, *case in obstacles()])
def test_what_stands_in_the_way_is_named(options, reason):
    with pytest.warns(UserWarning, match=f"^going on without a CUDA graph: {reason}$"):
        assert not use_cuda_graph("auto", GPU, **options)
    with pytest.raises(InputError, match=reason):
        use_cuda_graph("on", GPU, **options)


def test_settings_for_debugging_stand_in_the_way(monkeypatch):
    with torch.autograd.set_detect_anomaly(True), pytest.warns(UserWarning, match="anomaly mode"):
        assert not use_cuda_graph("auto", GPU)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    with pytest.warns(UserWarning, match="CUDA_LAUNCH_BLOCKING=1 makes every launch wait"):
        assert not use_cuda_graph("auto", GPU)


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
    replayed = Replayed(recorded, GPU, warm_up=2, required=True)
    for seed in range(6):
        torch.manual_seed(seed)
        x = torch.randn(4, 8, device="cuda")
        plain.x.copy_(x)
        recorded.x.copy_(x)
        assert torch.equal(replayed(), plain())
    assert recorded.calls == 3
    for one, other in zip(recorded.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_two_graphs_share_a_pool():
    x = torch.ones(1000, device="cuda")
    first = Replayed(lambda: x.mul_(2).clone(), GPU, warm_up=1, required=True)
    second = Replayed(lambda: (x + 1).add(1).sum(), GPU, warm_up=1, required=True, pool=first)
    for turn in range(4):
        doubled = first()
        assert second().item() == 1000 * (2 ** (turn + 1) + 2)
        assert (doubled == 2 ** (turn + 1)).all()


@pytest.mark.gpu
def test_what_cannot_be_recorded_goes_on_without_or_raises():
    x = torch.ones(3, device="cuda")

    def waits():
        return x.sum().item()

    optional = Replayed(waits, GPU, warm_up=1)
    assert optional() == 3
    with pytest.warns(UserWarning, match="going on without a CUDA graph, which could not be recorded"):
        assert optional() == 3
    assert optional() == 3
    strict = Replayed(waits, GPU, warm_up=1, required=True)
    strict()
    with pytest.raises(InputError, match="could not be recorded"):
        strict()
