"""Both parts of the constraint in one call, and the clamp of batch-norm scales alone."""

import pytest
import torch
from support.spectra import gaussian

from tgan_fast.ops import clamp_batch_norm_scale_, constrain_layers_, singular_value_clip_


def layers(device):
    weights = [gaussian(20, 50, top=3).to(device), gaussian(6, 6, top=0.5).to(device), torch.randn(7, device=device)]
    return weights, [torch.randn(9, device=device) * 2], [torch.rand(9, device=device)]


def test_it_does_what_the_two_operations_do(device):
    weights, scales, running_vars = layers(device)
    clipped, clamped = [weight.clone() for weight in weights], [scale.clone() for scale in scales]
    copies = [torch.empty_like(weight, dtype=torch.bfloat16) for weight in weights]
    singular_value_clip_(clipped, 0.7)
    clamp_batch_norm_scale_(clamped, running_vars, lowest=0.1, eps=1e-5)
    constrain_layers_(weights, scales, running_vars, 0.7, lowest=0.1, eps=1e-5, copies=copies)
    assert all(torch.equal(a, b) for a, b in zip(weights, clipped, strict=True))
    torch.testing.assert_close(scales, clamped, rtol=3e-7, atol=0)
    assert all(torch.equal(copy, weight.bfloat16()) for copy, weight in zip(copies, weights, strict=True))


def test_either_half_may_be_empty(device):
    weights, scales, running_vars = layers(device)
    constrain_layers_(weights, [], [])
    assert max(torch.linalg.matrix_norm(weight, ord=2) for weight in weights[:2]) <= 1 + 1e-6
    constrain_layers_([], scales, running_vars)
    assert (scales[0] <= running_vars[0].sqrt() * (1 + 1e-6)).all()
    constrain_layers_([], [], [])


def test_scales_of_another_dtype_are_clamped_too(device):
    weights, scales, running_vars = layers(device)
    doubles, variances = [scales[0].double()], [running_vars[0].double()]
    constrain_layers_(weights, doubles, variances)
    assert (doubles[0] <= variances[0].sqrt()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": []}, "0 scales, but 1 running variances"),
        ({"scales": [torch.ones(8)]}, "a scale of \\[8\\] needs a running variance of the same shape, not \\[9\\]"),
        ({"copies": [None]}, "3 weights, but 1 copies"),
        ({"copies": [None, None, torch.ones(8)]}, "a copy of \\[8\\] on cpu does not fit the weight of \\[7\\] on cpu"),
        ({"non_finite": torch.zeros(())}, "non_finite must be one int32, and is \\[\\] of torch.float32"),
        ({"non_finite": torch.zeros(2, dtype=torch.int32)}, "non_finite must be one int32"),
        ({"non_finite": torch.zeros((), dtype=torch.int32, device="meta")}, "non_finite is on meta, but a weight is"),
        ({"max_singular_value": 0}, "max_singular_value must be a number from"),
        ({"lowest": 2}, "lowest must be a number from 0 to 1, not 2"),
        ({"eps": -1e-5}, "eps must be a number from 0 to"),
        (
            {"running_vars": [torch.ones(9, device="meta")]},
            "a scale on cpu needs a running variance on the same device, not on meta",
        ),
        ({"backend": "magma"}, "choose auto, svd, eigh, gemm, cuda, cuda-float64"),
    ],
)
def test_nothing_changes_where_an_argument_does_not_fit(options, message):
    weights, scales, running_vars = layers("cpu")
    before = [tensor.clone() for tensor in (*weights, *scales)]
    arguments = {"scales": scales, "running_vars": running_vars} | options
    with pytest.raises(ValueError, match=message):
        constrain_layers_(weights, **arguments)
    assert all(torch.equal(a, b) for a, b in zip((*weights, *scales), before, strict=True))


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
    with pytest.raises(ValueError, match="a scale of \\[3\\] needs a running variance of the same shape, not \\[2\\]"):
        clamp_batch_norm_scale_([torch.ones(3)], [torch.ones(2)])
