"""Fixtures that the tests of several networks share."""

import copy

import pytest
import torch
from torch import nn

from tgan_fast.ops.convolution.algorithms import TABLE

_BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


@pytest.fixture(params=["cpu", "cuda"], ids=["algorithms-of-cpu", "algorithms-of-cuda"])
def every_table(request, monkeypatch):
    """Run convolutions on a CPU with its algorithms, and then with those of a GPU."""
    for devices in TABLE.values():
        monkeypatch.setitem(devices, "cpu", devices[request.param])


@pytest.fixture
def assert_same_module():
    """Check that two float64 modules with the same state dict have the same output and gradients at x."""

    def check(fast, baseline, x):
        fast.load_state_dict(baseline.state_dict())
        x.requires_grad_()
        got, expected = fast(x), baseline(x)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        upstream = torch.randn_like(expected)
        for a, b in zip(
            torch.autograd.grad(got, [x, *fast.parameters()], upstream),
            torch.autograd.grad(expected, [x, *baseline.parameters()], upstream),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)

    return check


@pytest.fixture
def assert_bf16_copy_is_as_accurate():
    """Check that a bfloat16 copy of `fast` is as accurate at x as one of `baseline`, a module with the same state."""

    def check(fast, baseline, x):
        fast.load_state_dict(baseline.state_dict())
        exact = copy.deepcopy(baseline).double()
        truth = exact(x)
        upstream = torch.randn_like(truth)
        truth = [truth, *torch.autograd.grad(truth, list(exact.parameters()), upstream)]
        errors = []
        for network in (fast, baseline):
            compute_copy = _bf16_copy(network)
            y = compute_copy(x.bfloat16())
            assert torch.isfinite(y).all()
            results = [y, *torch.autograd.grad(y, list(compute_copy.parameters()), upstream.to(y.dtype))]
            errors.append([(a.double() - b).norm().item() for a, b in zip(results, truth, strict=True)])
        # The true gradient of a bias before a batch norm is zero, so the scale is that of all gradients.
        floor = 1e-4 * max(gradient.norm().item() for gradient in truth[1:])
        assert errors[0][0] <= 2 * errors[1][0]
        for (name, _), got, own in zip(fast.named_parameters(), errors[0][1:], errors[1][1:], strict=True):
            assert got <= 2 * own + floor, name

    return check


def _bf16_copy(network):
    """Return a copy that computes as training in bfloat16 does: only the batch norms stay in float32."""
    compute_copy = copy.deepcopy(network)
    for module in compute_copy.modules():
        if not list(module.children()) and not isinstance(module, _BATCH_NORMS):
            module.to(torch.bfloat16)
    return compute_copy
