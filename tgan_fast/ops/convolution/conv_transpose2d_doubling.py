"""Transposed 2D convolution with kernel 4, stride 2 and padding 1.

"phases": even and odd rows are two convolutions with stride 1, and two neighbors in a row become the channels of one
pixel. They are computed as one convolution with four times the channels and a 2×3 kernel, a third of it zeros; then the
rows are interleaved, which costs one more pass over y. This is only for few channels, with which the library's
transposed convolution with stride 2 is slow. The gradients are ordinary convolutions in any case.
"""

import torch

from tgan_fast.ops.convolution.algorithms import Algorithm, PerDirection, check_shapes, convolve, direct

_MANY = 16  # number of output channels at which the library becomes as fast as "phases" on a CPU


def conv_transpose2d_doubling(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, algorithm: str | PerDirection = "auto"
) -> torch.Tensor:
    """Return `torch.nn.functional.conv_transpose2d` with stride 2 and padding 1.

    Args:
        x: Input [N, C, H, W] in any floating-point dtype, which all tensors share; fastest if channels-last.
        weight: Kernel [C, out, 4, 4]; fastest if channels-last.
        bias: Vector [out], or None for no bias.
        algorithm: Name of an algorithm, "direct" or "phases", or one for each direction; "auto" chooses by device.

    Returns:
        A tensor [N, out, 2·H, 2·W], differentiable once.

    Raises:
        ValueError: The shapes do not fit, or the algorithm does not exist or cannot compute these tensors.
    """
    check_shapes("conv_transpose2d_doubling", x, weight, [4, 4], transposed=True)
    return convolve("conv_transpose2d_doubling", ALGORITHMS, algorithm, x, weight, bias)


def _phases_forward(x, weight, bias):
    n, _, h, w = x.shape
    channels, out = weight.shape[:2]
    # y[2p] = x[p - 1]·w[3] + x[p]·w[1] and y[2p - 1] = x[p - 1]·w[2] + x[p]·w[0]. This holds for rows and for columns.
    taps = weight.flip(2, 3).reshape(channels, out, 2, 2, 2, 2)
    kernel = weight.new_zeros(2, 2, out, 2, 3, channels)
    for column in range(2):
        kernel[:, column, :, :, column : column + 2] = taps[..., column].permute(3, 1, 2, 4, 0)
    kernel = kernel.flatten(0, 2).movedim(-1, 1)
    phases = torch.nn.functional.conv2d(x, kernel, None if bias is None else bias.repeat(4), padding=1)
    phases = phases.movedim(1, -1).contiguous()
    sample, row, pair, _ = phases.stride()
    y = phases.as_strided((n, h, 2, w, 2 * out), (sample, row, row + 2 * out, pair, 1))
    return y.contiguous().view(n, 2 * h, 2 * w, out).movedim(-1, 1)


def _not_phases(x, weight):
    out = weight.shape[1]
    if x.is_cpu and out >= _MANY:
        return f"on a CPU it is for fewer than {_MANY} output channels, and y has {out}"
    return None


ALGORITHMS = {
    "direct": direct(2, stride=2, padding=1, transposed=True),
    "phases": Algorithm(forward=_phases_forward, why_not=_not_phases),
}
