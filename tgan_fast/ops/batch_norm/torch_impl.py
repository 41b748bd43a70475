"""The PyTorch implementation of batch norm + activation, stage by stage, with the same functions as triton.py."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from tgan_fast.ops.batch_norm.activation import Activation


def statistics(x, groups):
    """Return mean and biased variance [groups, C] of x [N, C, *]; zeros if x is empty."""
    grouped = _split_groups(x, groups)
    if x.numel() == 0:
        zeros = grouped.new_zeros(groups, x.shape[1])
        return zeros, zeros
    var, mean = torch.var_mean(grouped, dim=(1, 3), correction=0)
    return mean, var


def normalize(x, mean, rstd, weight, bias, residual, activation):
    """Return y from x, mean and rstd = 1 / sqrt(var + eps), [groups, C] each."""
    _, v, _ = _affine(x, mean, rstd, weight, bias, residual)
    return _restore_layout(x, activate_(v, activation))


def gradient_sums(dy, x, mean, rstd, weight, bias, residual, activation, want_weight, want_bias):
    """Return sums of g and g·(x - mean) [groups, 2, C], dweight and dbias (None where not wanted), and g.

    g is the gradient of the residual, and None if there is none.
    """
    centered, v, _ = _affine(x, mean, rstd, weight, bias, residual)
    g = activation_backward(_split_groups(dy, len(mean)), v, activation)
    sums = torch.stack([g.sum((1, 3)), (g * centered).sum((1, 3))], 1)
    # rstd is infinite if eps = 0 and no process has values; for an empty x, 0 · rstd would then be NaN.
    weighted = sums[:, 1] * rstd if x.numel() else sums[:, 1]
    dweight = weighted.sum(0).to(weight.dtype) if want_weight else None
    dbias = sums[:, 0].sum(0).to(bias.dtype) if want_bias else None
    return sums, dweight, dbias, None if residual is None else _restore_layout(x, g)


def input_gradient(dy, x, mean, rstd, weight, bias, activation, sums, count):
    """Return dx; `sums` [groups, 2, C] are over `count` values per channel and group."""
    centered, v, scale = _affine(x, mean, rstd, weight, bias)
    g = activation_backward(_split_groups(dy, len(mean)), v, activation)
    mean_g, mean_gx = (sums / count).unbind(1)
    return _restore_layout(x, (g - _by_channel(mean_g) - centered * _by_channel(mean_gx * rstd**2)) * scale)


def _affine(x, mean, rstd, weight, bias, residual=None):
    """Return x - mean, v and scale, [groups, N / groups, C, pixels] or broadcastable to it."""
    centered = _split_groups(x, len(mean)) - _by_channel(mean)
    scale = _by_channel(rstd if weight is None else rstd * weight)
    v = centered * scale
    if bias is not None:
        v = v + bias[:, None]
    if residual is not None:
        v = v + _split_groups(residual, len(mean))
    return centered, v, scale


def _split_groups(x, groups):
    """Return x [N, C, *] as [groups, N / groups, C, pixels], in float32 at least."""
    shape = groups, x.shape[0] // groups, x.shape[1], math.prod(x.shape[2:])
    return x.to(torch.promote_types(x.dtype, torch.float32)).reshape(shape)


def _by_channel(vector):
    """Return a vector [groups, C] as [groups, 1, C, 1]."""
    return vector[:, None, :, None]


def _restore_layout(x, grouped):
    """Return `grouped` in the shape, dtype and memory format of x."""
    return torch.empty_like(x).copy_(grouped.reshape(x.shape))


def activate(v: torch.Tensor, name: str, negative_slope: float) -> torch.Tensor:
    """Return the activation of v; torch.jit.script can compile this."""
    if name == "relu6":
        return F.relu6(v)
    if name == "silu":
        return F.silu(v)
    if name == "gelu_tanh":
        return F.gelu(v, approximate="tanh")
    if name == "hardswish":
        return F.hardswish(v)
    return F.relu(v) if negative_slope == 0 else F.leaky_relu(v, negative_slope)


def activate_(v: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return the activation of v, computed in place where autograd can differentiate that."""
    name, negative_slope = activation
    # For a slope below zero, the in-place operation's backward would infer the input's sign from the output's.
    if name != "leaky_relu" or negative_slope < 0:
        return activate(v, name, negative_slope)
    if negative_slope == 0:
        return F.relu_(v)
    return v if negative_slope == 1 else F.leaky_relu_(v, negative_slope)


def activation_backward(dy: torch.Tensor, v: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return g, the gradient of v, in v's dtype."""
    name, negative_slope = activation
    dy = dy.to(v.dtype)
    if name != "leaky_relu":
        return _BACKWARD[name](dy, v)
    return dy if negative_slope == 1 else torch.ops.aten.leaky_relu_backward(dy, v, negative_slope, False)


_BACKWARD: dict[str, Callable[..., torch.Tensor]] = {
    "relu6": partial(torch.ops.aten.hardtanh_backward, min_val=0.0, max_val=6.0),
    "silu": torch.ops.aten.silu_backward,
    "gelu_tanh": partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "hardswish": torch.ops.aten.hardswish_backward,
}
