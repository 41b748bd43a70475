"""fuse_batch_norm on well-known networks: what is fused, and that outputs, gradients and statistics stay the same."""

import copy
import io
from functools import partial

import pytest
import torch
from support import networks
from support.two_processes import outcomes_of_two
from torch import nn

import tgan_fast.nn.batch_norm_act
from tgan_fast.nn import fuse_batch_norm

ADDED_TO_ANOTHER = "the addition is fused with"
NOTHING_FOLLOWS = "forward returns its output"
# Network, shape of a sample, what is fused how often, and why how many batch norms are not: nothing is left to fuse.
NETWORKS = {
    "resnet18": (
        partial(networks.resnet18, 8), (3, 64, 64), {"ReLU": 9, "residual + ReLU": 8}, {ADDED_TO_ANOTHER: 3},
    ),
    "resnet50": (
        partial(networks.resnet50, 4), (3, 64, 64), {"ReLU": 33, "residual + ReLU": 16}, {ADDED_TO_ANOTHER: 4},
    ),
    "mobilenet-v3": (
        partial(networks.MobileNetV3, 2), (3, 64, 64), {"ReLU": 11, "Hardswish": 20, "residual": 10},
        {NOTHING_FOLLOWS: 5},
    ),
    "densenet121": (partial(networks.DenseNet, 4), (3, 64, 64), {"ReLU": 120, "relu": 1}, {}),
    "densenet121-dropout": (partial(networks.DenseNet, 4, 0.1), (3, 64, 64), {"ReLU": 120, "relu": 1}, {}),
    "u-net": (partial(networks.UNet, 4), (3, 48, 32), {"relu": 18}, {}),
    "dcgan-generator": (partial(networks.dcgan_generator, 8), (100, 1, 1), {"ReLU": 4}, {}),
    "dcgan-discriminator": (partial(networks.dcgan_discriminator, 8), (3, 64, 64), {"LeakyReLU": 3}, {}),
}  # fmt: skip
EACH = pytest.mark.parametrize(("make", "shape", "fused", "left"), NETWORKS.values(), ids=NETWORKS)


def count(values):
    return {value: values.count(value) for value in values}


def pair_of(make, dtype=torch.float64, **options):
    """Return a network in channels-last memory format, its fused copy, and the report."""
    torch.manual_seed(0)
    baseline = make().to(dtype, memory_format=torch.channels_last)
    network = copy.deepcopy(baseline)
    return baseline, network, fuse_batch_norm(network, **options)


def images(shape, dtype=torch.float64, count=3):
    return torch.randn(count, *shape, dtype=dtype).to(memory_format=torch.channels_last)


def outcome(network, x):
    """Return the output, the gradients and the running statistics of a step with dropout from a fixed seed."""
    torch.manual_seed(1)
    y = network(x)
    grads = torch.autograd.grad(y.square().mean(), list(network.parameters()))
    return [y.detach(), *grads], [buffer.detach().clone() for buffer in network.buffers()]


def differences(got, expected):
    """Return the relative difference of the outputs, and the largest one of the gradients, relative to the largest."""
    largest = max(gradient.norm() for gradient in expected[1:])
    gradients = max((mine - truth).norm() / largest for mine, truth in zip(got[1:], expected[1:], strict=True))
    return ((got[0] - expected[0]).norm() / expected[0].norm()).item(), gradients.item()


@EACH
def test_it_fuses_everything_that_can_be_fused(make, shape, fused, left):
    _, network, report = pair_of(make)
    assert count(list(report.fused.values())) == fused
    reasons = [next((reason for reason in left if reason in text), text) for text in report.left.values()]
    assert count(reasons) == left
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sorted([*report.fused, *report.left]) == sorted(norms)
    assert str(report).startswith(f"{len(report.fused)} of {len(norms)} batch norms are fused")


@EACH
def test_it_computes_what_the_report_says(make, shape, fused, left, monkeypatch):
    _, network, report = pair_of(make)
    calls = []
    operation = tgan_fast.nn.batch_norm_act.batch_norm_act

    def recording(*args, **kwargs):
        calls.append(
            (kwargs["residual"] is not None, (kwargs["activation"], kwargs["negative_slope"]) != ("leaky_relu", 1))
        )
        return operation(*args, **kwargs)

    monkeypatch.setattr(tgan_fast.nn.batch_norm_act, "batch_norm_act", recording)
    expected = [("residual" in what, what != "residual") for what in report.fused.values()]
    expected += [(False, False)] * len(report.left)
    for training in (True, False):
        calls.clear()
        network.train(training)(images(shape))
        assert sorted(calls) == sorted(expected)


@EACH
def test_outputs_gradients_and_statistics_stay_the_same(make, shape, fused, left):
    baseline, network, _ = pair_of(make)
    for training in (True, True, False):
        x = images(shape)
        (expected, statistics), (got, own_statistics) = (
            outcome(module.train(training), x) for module in (baseline, network)
        )
        assert max(differences(got, expected)) < 1e-10
        torch.testing.assert_close(own_statistics, statistics, rtol=1e-10, atol=1e-12)
    assert list(network.state_dict()) == list(baseline.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet-v3", "u-net"])
def test_float32_is_as_accurate_as_eager(name):
    make, shape, *_ = NETWORKS[name]
    exact, _, _ = pair_of(make)
    baseline, network, _ = pair_of(make, torch.float32)
    x = images(shape)
    expected, _ = outcome(exact, x)
    (eager, _), (got, _) = (outcome(module, x.float()) for module in (baseline, network))
    for error, of_eager in zip(differences(got, expected), differences(eager, expected), strict=True):
        assert error <= 2 * of_eager + 1e-6


def test_state_dicts_fit_both_ways():
    baseline, network, _ = pair_of(networks.resnet18)
    network.load_state_dict(baseline.state_dict())
    other, _, _ = pair_of(networks.resnet18)
    other.load_state_dict(network.state_dict())
    assert network.state_dict()._metadata == baseline.state_dict()._metadata


def assert_same_outcome(network, baseline, x):
    (expected, statistics), (got, own_statistics) = (outcome(module, x) for module in (baseline, network))
    assert max(differences(got, expected)) < 1e-10
    torch.testing.assert_close(own_statistics, statistics, rtol=1e-10, atol=1e-12)


def copied(network):
    return copy.deepcopy(network)


def pickled(network):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make_other", [copied, pickled])
def test_copies_compute_the_same_and_are_fused(make_other, monkeypatch):
    baseline, network, _ = pair_of(NETWORKS["densenet121-dropout"][0])
    other = make_other(network)
    x = images((3, 64, 64))
    for training in (True, False):
        assert_same_outcome(other.train(training), baseline.train(training), x)
    assert isinstance(other, networks.DenseNet)
    monkeypatch.delattr(nn.ReLU, "forward")
    monkeypatch.setattr(nn.functional, "relu", None)
    other(x)


def make_blocks():
    """Return a network with a block of each kind."""
    downsample = nn.Sequential(networks.conv1(3, 4, 2), nn.BatchNorm2d(4))
    return nn.Sequential(
        networks.BasicBlock(3, 4, 2, downsample),
        networks.InvertedResidual(4, 3, 8, 4, False, nn.Hardswish, 1),
        networks.DenseLayer(4, 2, 0.5),
    )


@pytest.mark.parametrize("dynamic", [None, True])
def test_torch_compile_takes_a_fused_network_as_one_graph(dynamic):
    baseline, network, report = pair_of(make_blocks)
    assert len(report.fused) == 7
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for training in (True, False):
        baseline.train(training)
        compiled.train(training)
        assert_same_outcome(compiled, baseline, images((3, 8, 8)))


def test_autocast_keeps_its_dtypes(device):
    """In mixed precision a convolution's output is bfloat16, and the network's input, added to it, float32."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

        def forward(self, x):
            out = self.norm(self.conv(x))
            out += x
            return self.relu(out), self.relu(self.norm(self.conv(x)) + x)

    baseline, network, report = pair_of(lambda: Block().to(device), torch.float32)
    assert report.left == {}
    x = torch.randn(2, 4, 8, 8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        for got, expected in zip(network(x), baseline(x), strict=True):
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def frozen(network):
    """Let batch norms use their running statistics in training, as detectors do."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)


def without_statistics(network):
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            parent, _, own = name.rpartition(".")
            options = {"affine": False, "track_running_stats": False}
            setattr(network.get_submodule(parent), own, nn.BatchNorm2d(module.num_features, **options).double())


def with_a_mean_of_all_batches(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None


@pytest.mark.parametrize("change", [frozen, without_statistics, with_a_mean_of_all_batches])
def test_options_of_batch_norm(change):
    torch.manual_seed(0)
    baseline = networks.MobileNetV3(2).double()
    change(baseline)
    network = copy.deepcopy(baseline)
    fuse_batch_norm(network)
    for _ in range(2):
        x = images((3, 64, 64))
        states = []
        for module in (network, baseline):
            torch.manual_seed(1)
            y = module(x)
            wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
            states.append([y, *torch.autograd.grad(y.square().mean(), wanted), *module.buffers()])
        torch.testing.assert_close(*states, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_moves_nothing(training):
    baseline, network, _ = pair_of(partial(networks.DoubleConv, 3, 4))
    x = torch.zeros(0, 3, 8, 8, dtype=torch.float64)
    for module in (network, baseline):
        module.train(training)
        y = module(x)
        assert y.shape == (0, 4, 8, 8)
        y.sum().backward()
    torch.testing.assert_close(network.state_dict(), baseline.state_dict(), rtol=0, atol=0)
    grads = ([parameter.grad for parameter in module.parameters()] for module in (network, baseline))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def step_of_both_halves(rank):
    """Return the results of a step with the statistics of all processes; rank None is one process with all data."""
    torch.manual_seed(0)
    network = networks.BasicBlock(4, 4).double()
    x = torch.randn(6, 4, 8, 8, dtype=torch.float64)
    if rank is None:
        fuse_batch_norm(network)
    else:
        fuse_batch_norm(network, process_group=torch.distributed.group.WORLD)
        network = nn.parallel.DistributedDataParallel(network)
        x = x[3 * rank : 3 * rank + 3]
    y = network(x)
    y.square().mean().backward()
    return {name.removeprefix("module."): parameter.grad for name, parameter in network.named_parameters()}, [
        buffer.clone() for buffer in network.buffers()
    ]


def test_distributed_data_parallel_with_statistics_of_all_processes(tmp_path):
    expected = step_of_both_halves(None)
    for got in outcomes_of_two(step_of_both_halves, tmp_path):
        torch.testing.assert_close(list(got), list(expected), rtol=1e-10, atol=1e-12)
