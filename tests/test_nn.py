"""BatchNormAct* as drop-ins for nn.BatchNorm* and an activation."""

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


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize(("fused", "plain", "shape"), CLASSES.values(), ids=CLASSES)
def test_it_is_batch_norm_and_activation_over_several_steps(fused, plain, shape, momentum, device):
    left = fused(4, 0.2, momentum=momentum, eps=1e-3).to(device)
    right = nn.Sequential(plain(4, momentum=momentum, eps=1e-3), nn.LeakyReLU(0.2)).to(device)
    for mode in (True, True, True, False):
        x = 3 * torch.randn(shape, device=device) + 1
        got, expected = left.train(mode)(x), right.train(mode)(x)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(left.state_dict(), right[0].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("fused", "plain", "shape"), CLASSES.values(), ids=CLASSES)
def test_state_dicts_are_interchangeable(fused, plain, shape):
    fused(4).load_state_dict(plain(4).state_dict())
    plain(4).load_state_dict(fused(4).state_dict())


def test_without_running_statistics_it_uses_the_batch_in_evaluation_too():
    module = BatchNormAct1d(3, 0.2, track_running_stats=False)
    x = torch.randn(5, 3)
    assert torch.equal(module.train()(x), module.eval()(x))


def test_groups_update_the_running_statistics_once_a_part():
    together, apart = BatchNormAct2d(4), BatchNormAct2d(4)
    x = torch.randn(6, 4, 3, 3)
    got = together(x, groups=2)
    expected = torch.cat([apart(x[:3]), apart(x[3:])])
    assert torch.equal(got, expected)
    torch.testing.assert_close(together.state_dict(), apart.state_dict(), rtol=0, atol=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNormAct2d(4)(torch.ones(2, 4))
    with pytest.raises(ValueError, match="cumulative statistics"):
        BatchNormAct1d(4, momentum=None)(torch.randn(4, 4), groups=2)
    with pytest.raises(ValueError, match="more than one value a channel"):
        BatchNormAct1d(4)(torch.ones(1, 4))
