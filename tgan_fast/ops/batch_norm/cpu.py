"""Training-mode batch norm + activation on a CPU for tensors with their channels last in memory.

PyTorch's own kernel for this layout adds up a channel in float32, one value after another: with millions of
values a channel, half of the digits are lost, in the statistics and again in the gradients. It is also slow for few
channels. Here the tensor is walked through in chunks that stay in the cache, each summed by `torch.sum` (which adds
pairwise) and the chunks' sums in float64. The activation's mask is recomputed from x, so only x is kept for backward.

    y = act(v),  v = (x - mean)·scale + bias,  scale = weight·rstd,  rstd = 1 / sqrt(var + eps)
    dx = scale·(g - mean(g) - (x - mean)·mean(g·(x - mean))·rstd²),  g = act'(v)·dy
    dweight = sum(g·(x - mean))·rstd,  dbias = sum(g)
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_CHUNK = 1 << 18  # elements
# Rows of fewer elements than this would not fill the vector loops, so several are laid side by side.
_ROW = 256


def fits(x: torch.Tensor) -> bool:
    """Return whether x [N, C, *] is a dense channels-last tensor on the CPU, and not contiguous as well."""
    return x.device.type == "cpu" and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def batch_norm_act_cpu(x, weight, bias, running_mean, running_var, momentum, eps, negative_slope):
    """Return `batch_norm_act` in training, for an x that `fits`; differentiable once."""
    y, mean, var = _BatchNormAct.apply(x, weight, bias, eps, negative_slope)
    if running_mean is not None:
        count = x.numel() // x.shape[1]
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return y


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, negative_slope):
        mean, var = _statistics(x)
        affine = _Affine(x, mean, var, weight, bias, eps)
        y = torch.empty_like(x)
        for chunk, out in zip(_chunks(x), _chunks(y), strict=True):
            out.copy_(activate_(affine.of(affine.centered(chunk)), negative_slope))
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.eps, ctx.negative_slope = eps, negative_slope
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):
        x, weight, bias, mean, var = ctx.saved_tensors
        affine = _Affine(x, mean, var, weight, bias, ctx.eps)
        dy = dy.movedim(1, -1).contiguous().movedim(-1, 1)

        def gradients():
            """Yield x - mean and the gradient behind the activation, chunk by chunk."""
            for chunk, upstream in zip(_chunks(x), _chunks(dy), strict=True):
                centered = affine.centered(chunk)
                yield centered, activation_backward(upstream, affine.of(centered), ctx.negative_slope)

        sum_g, sum_gx = _sums(((g, g * centered) for centered, g in gradients()), x)
        # `centered` is x less the mean rounded to x's dtype.
        sum_gx = sum_gx - affine.rounding * sum_g
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            factor, offset = affine.input_gradient(sum_g, sum_gx)
            for (centered, g), out in zip(gradients(), _chunks(dx), strict=True):
                out.copy_(torch.addcmul(g, centered, factor).add_(offset).mul_(affine.scale))
        dweight = (sum_gx * affine.rstd).to(weight.dtype) if ctx.needs_input_grad[1] else None
        dbias = sum_g.to(bias.dtype) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None, None


class _Affine:
    """The map from x to v by channel, its vectors repeated to the length of a chunk's rows."""

    def __init__(self, x, mean, var, weight, bias, eps):
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.fold, self.count = _fold(x), x.numel() // x.shape[1]
        rounded = mean.to(self.dtype)
        self.rounding = mean - rounded.double()
        self.rstd = (var + eps).rsqrt()
        scale = self.rstd if weight is None else self.rstd * weight.double()
        shift = -self.rounding * scale if bias is None else bias.double() - self.rounding * scale
        self.mean, self.scale, self.shift = (self._row(vector) for vector in (rounded, scale, shift))

    def centered(self, chunk):
        return chunk.to(self.dtype) - self.mean

    def of(self, centered):
        return torch.addcmul(self.shift, centered, self.scale)

    def input_gradient(self, sum_g, sum_gx):
        """dx = scale·(g + centered·factor + offset)"""
        factor = -sum_gx * self.rstd**2 / self.count
        return self._row(factor), self._row(-sum_g / self.count - self.rounding * factor)

    def _row(self, vector):
        return vector.to(self.dtype).repeat(self.fold)


def _statistics(x):
    """Return mean and biased variance of every channel, in float64, computed in two passes."""
    dtype, count = torch.promote_types(x.dtype, torch.float32), x.numel() // x.shape[1]
    mean = _sums(((chunk.to(dtype),) for chunk in _chunks(x)), x)[0] / count
    rounded = mean.to(dtype)
    row = rounded.repeat(_fold(x))
    squares = _sums((((chunk.to(dtype) - row).square_(),) for chunk in _chunks(x)), x)[0] / count
    return mean, squares - (mean - rounded.double()) ** 2


def _sums(terms, x):
    """Return sums by channel in float64; `terms` yields the tensors to sum, a tuple for each chunk of x."""
    totals = [sum(columns) for columns in zip(*([t.sum(0).double() for t in chunk] for chunk in terms), strict=True)]
    return [total.view(_fold(x), x.shape[1]).sum(0) for total in totals]


def _chunks(x):
    """Split x into chunks of rows, views of `_fold(x)` pixels each."""
    width = _fold(x) * x.shape[1]
    return x.movedim(1, -1).view(-1, width).split(max(1, _CHUNK // width))


def _fold(x):
    """Return the number of pixels in a row: a power of two that divides the number of pixels."""
    largest = max(1, _ROW // x.shape[1])
    return math.gcd(x.numel() // x.shape[1], 1 << largest.bit_length() - 1)


def activate_(v: torch.Tensor, negative_slope: float) -> torch.Tensor:
    """Return the leaky ReLU of v, computed in place where autograd can differentiate it so."""
    if negative_slope < 0:
        # The in-place operation's backward infers the input's sign from the output's.
        return F.leaky_relu(v, negative_slope)
    if negative_slope == 0:
        return F.relu_(v)
    return v if negative_slope == 1 else F.leaky_relu_(v, negative_slope)


def activation_backward(dy: torch.Tensor, v: torch.Tensor, negative_slope: float) -> torch.Tensor:
    """Return g from dy, in v's dtype."""
    dy = dy.to(v.dtype)
    return dy if negative_slope == 1 else torch.ops.aten.leaky_relu_backward(dy, v, negative_slope, False)
