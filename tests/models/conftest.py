"""What the tests of several networks share."""

import pytest
import torch


@pytest.fixture
def assert_same_module():
    """Check that two float64 modules with the same state dict have the same output and gradients at x."""

    def check(fast, plain, x):
        fast.load_state_dict(plain.state_dict())
        x.requires_grad_()
        got, expected = fast(x), plain(x)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        upstream = torch.randn_like(expected)
        for a, b in zip(
            torch.autograd.grad(got, [x, *fast.parameters()], upstream),
            torch.autograd.grad(expected, [x, *plain.parameters()], upstream),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)

    return check
