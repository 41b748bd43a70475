"""The clamp of batch-norm scales."""

import pytest
import torch

from tgan_fast.ops import clamp_batch_norm_scale_


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_scales_end_between_a_hundredth_of_the_deviation_and_the_deviation(eps, device):
    running_var = torch.tensor([4.0, 4.0, 4.0, 4.0, 0.0, 1e-12], device=device)
    weight = torch.tensor([3.0, 1.0, 0.001, -5.0, 2.0, 2.0], device=device)
    s = (running_var + eps).sqrt()
    expected = torch.stack([s[0], weight[1], 0.01 * s[2], 0.01 * s[3], s[4], s[5]])
    address = weight.data_ptr()
    clamp_batch_norm_scale_([weight], [running_var], eps=eps)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0)
    assert weight.data_ptr() == address


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 scales, but 0"):
        clamp_batch_norm_scale_([torch.ones(3)], [])
    with pytest.raises(ValueError, match="\\[3\\], but running variance of \\[2\\]"):
        clamp_batch_norm_scale_([torch.ones(3)], [torch.ones(2)])
