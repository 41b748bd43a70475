"""Transposed 2D convolution with stride 1 and few output channels that keeps the size.

"four pixels", "eight pixels": an ordinary convolution with the kernel turned by 180°. Four or eight neighbors in a row
become the channels of one pixel of y, which needs no copy if y is channels-last. Kernel and stride grow accordingly.
The additional products with zero cost less than the units that so few channels would leave idle. The gradient of x is
an ordinary convolution of dy, with pixels grouped on both sides.

"four gray pixels": "four pixels" if y has one channel, where the gradient of x is faster on a CPU too.
"""

from functools import partial

import torch
import torch.nn.functional as F

from tgan_fast.ops.convolution.algorithms import (
    Algorithm,
    PerDirection,
    check_shapes,
    convolve,
    direct,
    library,
    sum_of_channels,
)


def conv_transpose2d_same(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, algorithm: str | PerDirection = "auto"
) -> torch.Tensor:
    """Return `torch.nn.functional.conv_transpose2d` with stride 1 and the padding that keeps the size.

    Args:
        x: Input [N, C, H, W] in any floating-point dtype, which all tensors share; fastest if channels-last.
        weight: Kernel [C, out, k, k], k odd; fastest if channels-last.
        bias: Vector [out], or None for no bias.
        algorithm: Name of an algorithm, "direct", "four pixels", "eight pixels" or "four gray pixels", or one for each
            direction; "auto" chooses by device.

    Returns:
        A tensor [N, out, H, W], differentiable once.

    Raises:
        ValueError: The shapes do not fit, or the algorithm does not exist or cannot compute these tensors.
    """
    k = weight.shape[-1]
    check_shapes("conv_transpose2d_same", x, weight, [k, k], transposed=True)
    if k % 2 == 0:
        raise ValueError(f"conv_transpose2d_same takes weights [C, out, k, k] of odd k and got {list(weight.shape)}")
    return convolve("conv_transpose2d_same", ALGORITHMS, algorithm, x, weight, bias)


def _direct(weight):
    return direct(2, stride=1, padding=weight.shape[2] // 2, transposed=True)


def _direct_forward(x, weight, bias):
    return _direct(weight).forward(x, weight, bias)


def _direct_input_gradient(dy, x, weight):
    return _direct(weight).input_gradient(dy, x, weight)


def _direct_gradients(dy, x, weight, wanted):
    return _direct(weight).parameter_gradients(dy, x, weight, wanted)


def _grouped_forward(pixels, x, weight, bias):
    channels, out, k, _ = weight.shape
    # Each pixel has the turned kernel at its own place in a kernel that is wider by the number of pixels minus 1.
    kernel = weight.new_zeros(pixels, out, k, k + pixels - 1, channels)
    _shifted_view(kernel, k).copy_(weight.flip(2, 3).movedim(0, -1))
    kernel = kernel.flatten(0, 1).movedim(-1, 1)
    y = _grouped_library(pixels, k).forward(x, kernel, None if bias is None else bias.repeat(pixels))
    return _regrouped(y, out)


def _grouped_input_gradient(pixels, dy, x, weight):
    channels, out, k, _ = weight.shape
    # Every pixel is computed from its own group and the groups on both sides.
    kernel = weight.new_zeros(pixels, channels, k, 3 * pixels, out)
    _shifted_view(kernel[..., pixels - k // 2 :, :], k).copy_(weight.movedim(1, -1))
    kernel = kernel.view(pixels * channels, k, 3, pixels * out).movedim(-1, 1)
    return _regrouped(F.conv2d(_regrouped(dy, pixels * out), kernel, padding=(k // 2, 1)), channels)


def _grouped_gradients(pixels, dy, x, weight, wanted):
    dbias = sum_of_channels(dy) if wanted[1] else None
    if not wanted[0]:
        return None, dbias
    channels, out, k, _ = weight.shape
    kernel = weight.new_empty(pixels * out, k, k + pixels - 1, channels).movedim(-1, 1)
    groups = _regrouped(dy, pixels * out)
    dkernel, _ = _grouped_library(pixels, k).parameter_gradients(groups, x, kernel, (True, False))
    dkernel = _shifted_view(dkernel.movedim(1, -1).unflatten(0, (pixels, out)), k).sum(0)
    return torch.empty_like(weight).copy_(dkernel.movedim(-1, 0).flip(2, 3)), dbias


def _grouped_library(pixels, k):
    return library([1, pixels], [k // 2, k // 2], [1, 1], False, [0, 0], 1)


def _shifted_view(kernel, k):
    """View [pixels, out, rows, columns, C] as [pixels, out, rows, k, C]: k columns per pixel, shifted by one each."""
    strides = list(kernel.stride())
    strides[0] += strides[3]
    return kernel.as_strided((*kernel.shape[:3], k, kernel.shape[4]), strides)


def _regrouped(y, channels):
    """Return y [N, ·, H, ·] regrouped to `channels` channels; a view if the channels are last in memory."""
    n, _, h, _ = y.shape
    return y.movedim(1, -1).reshape(n, h, -1, channels).movedim(-1, 1)


def _not_grouped(pixels, x, weight):
    if x.shape[3] % pixels:
        return f"it needs rows of a multiple of {pixels} pixels, and x has {x.shape[3]}"
    return f"a kernel of {weight.shape[2]} reaches beyond the next group" if weight.shape[2] // 2 > pixels else None


def _not_gray(x, weight):
    out = weight.shape[1]
    return _not_grouped(4, x, weight) if out == 1 else f"it is for one output channel, and y has {out}"


def _grouped(pixels):
    functions = _grouped_forward, _grouped_input_gradient, _grouped_gradients
    forward, input_gradient, gradients = (partial(function, pixels) for function in functions)
    return Algorithm(forward, input_gradient, gradients, why_not=partial(_not_grouped, pixels))


ALGORITHMS = {
    "direct": Algorithm(_direct_forward, _direct_input_gradient, _direct_gradients),
    "four pixels": _grouped(4),
    "eight pixels": _grouped(8),
    "four gray pixels": _grouped(4)._replace(why_not=_not_gray),
}
