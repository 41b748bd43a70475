"""BatchNormAct* replaces nn.BatchNorm* and an activation."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

from tgan_fast.nn import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d

CLASSES = {
    "1d": (BatchNormAct1d, nn.BatchNorm1d, (6, 4, 5)),
    "1d-flat": (BatchNormAct1d, nn.BatchNorm1d, (6, 4)),
    "2d": (BatchNormAct2d, nn.BatchNorm2d, (6, 4, 3, 5)),
    "3d": (BatchNormAct3d, nn.BatchNorm3d, (6, 4, 2, 3, 5)),
}


@pytest.mark.parametrize(("fused", "baseline", "shape"), CLASSES.values(), ids=CLASSES)
def test_it_is_batch_norm_and_activation_over_several_steps(fused, baseline, shape, device):
    for momentum in (0.1, 0.7, None):
        left = fused(4, 0.2, momentum=momentum, eps=1e-3).to(device)
        right = nn.Sequential(baseline(4, momentum=momentum, eps=1e-3), nn.LeakyReLU(0.2)).to(device)
        for mode in (True, True, True, False):
            x = 3 * torch.randn(shape, device=device) + 1
            got, expected = left.train(mode)(x), right.train(mode)(x)
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        tolerance = 0 if device.type == "cpu" else 1e-6
        torch.testing.assert_close(left.state_dict(), right[0].state_dict(), rtol=tolerance, atol=tolerance)


def test_state_dicts_are_interchangeable():
    for fused, baseline, _ in CLASSES.values():
        fused(4).load_state_dict(baseline(4).state_dict())
        baseline(4).load_state_dict(fused(4).state_dict())


def test_without_running_statistics_it_uses_the_batch_in_evaluation_too():
    module = BatchNormAct1d(3, 0.2, track_running_stats=False)
    x = torch.randn(5, 3)
    assert torch.equal(module.train()(x), module.eval()(x))


def test_groups_update_the_running_statistics_once_each():
    together, apart = BatchNormAct2d(4), BatchNormAct2d(4)
    x = torch.randn(6, 4, 3, 3)
    got = together(x, groups=2)
    expected = torch.cat([apart(x[:3]), apart(x[3:])])
    # Kernels compute groups, and PyTorch's operations small batches, so that they differ by several roundings of 6e-8.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together.state_dict(), apart.state_dict(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_groups_and_momentum_go_together(momentum):
    together, apart = BatchNormAct2d(4, momentum=momentum), BatchNormAct2d(4, momentum=momentum)
    for _ in range(2):
        x = torch.randn(6, 4, 3, 3)
        together(x, groups=2)
        apart(x[:3])
        apart(x[3:])
    torch.testing.assert_close(together.state_dict(), apart.state_dict(), rtol=1e-6, atol=1e-6)


def test_statistics_that_are_not_tracked_any_more_stay_as_they_are():
    module, baseline = BatchNormAct1d(4, 1.0), nn.BatchNorm1d(4)
    for batch_norm in (module, baseline):
        batch_norm.track_running_stats = False
    x = torch.randn(6, 4) + 3
    torch.testing.assert_close(module(x), baseline(x))
    torch.testing.assert_close(module.state_dict(), baseline.state_dict(), rtol=0, atol=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNormAct2d(4)(torch.ones(2, 4))
    with pytest.raises(ValueError, match="more than one value per channel"):
        BatchNormAct1d(4)(torch.ones(1, 4))


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
def test_an_empty_batch_does_what_it_does_in_batch_norm(shape, device):
    for training, momentum in product((True, False), (0.1, None)):
        fused, baseline = BatchNormAct2d(4, 0.2, momentum=momentum), nn.BatchNorm2d(4, momentum=momentum)
        outcomes = []
        for module in (fused, baseline):
            module.to(device).train(training)
            x = torch.zeros(shape, device=device, requires_grad=True)
            y = module(x)
            y.sum().backward()
            outcomes.append([y, x.grad, module.weight.grad, module.bias.grad, *module.buffers()])
        for got, expected in zip(*outcomes, strict=True):
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype), (training, momentum)
            assert torch.equal(got, expected), (training, momentum)


@pytest.mark.parametrize("slope", [0, 0.2, 1.0])
def test_torch_jit_script_compiles_the_activation(slope):
    module = BatchNormAct2d(4, slope)
    scripted = torch.jit.script(copy.deepcopy(module))
    x = torch.randn(3, 4, 5, 5)
    for mode in (True, False):
        assert torch.equal(scripted.train(mode)(x), module.train(mode)(x))
    with pytest.raises(torch.jit.Error, match="groups must be 1"):
        scripted(x, groups=3)


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = BatchNormAct2d(3, 0.2)

    def forward(self, x):
        return self.norm(x, groups=2)


def test_torch_fx_keeps_the_groups():
    grouped = Grouped()
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(torch.fx.symbolic_trace(grouped)(x), grouped(x))
