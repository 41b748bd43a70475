"""Transposed 2D convolution with kernel 4, stride 2 and padding 1.

"phases": the pixels in even and odd rows and columns are four 2×2 convolutions with stride 1. They are computed as one
with four times the channels, then interleaved, which costs one more pass over y. This helps where the library is slow
at a transposed convolution with stride 2. The gradients are ordinary convolutions in any case.
"""

import torch

from tgan_fast.ops.convolution.algorithms import Algorithm, PerDirection, check_shapes, convolve, direct


def conv_transpose2d_doubling(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, algorithm: str | PerDirection = "auto"
) -> torch.Tensor:
    """Return `torch.nn.functional.conv_transpose2d` with stride 2 and padding 1.

    Args:
        x: Input [N, C, H, W], all of one floating-point dtype; fastest with the channels last in memory.
        weight: Kernel [C, out, 4, 4], likewise.
        bias: Vector [out], or None for none.
        algorithm: Name, "direct" or "phases", or one name for each direction; "auto" chooses by device.

    Returns:
        [N, out, 2·H, 2·W], differentiable once.

    Raises:
        ValueError: The shapes do not fit; there is no such algorithm.
    """
    check_shapes("conv_transpose2d_doubling", x, weight, [4, 4], transposed=True)
    return convolve("conv_transpose2d_doubling", ALGORITHMS, algorithm, x, weight, bias)


def _phases_forward(x, weight, bias):
    n, _, h, w = x.shape
    channels, out = weight.shape[:2]
    # y[2p] = x[p - 1]·w[3] + x[p]·w[1] and y[2p - 1] = x[p - 1]·w[2] + x[p]·w[0], in rows as in columns.
    kernel = weight.flip(2, 3).reshape(channels, out, 2, 2, 2, 2).permute(3, 5, 1, 2, 4, 0)
    kernel = kernel.reshape(4 * out, 2, 2, channels).movedim(-1, 1)
    phases = torch.nn.functional.conv2d(x, kernel, None if bias is None else bias.repeat(4), padding=1)
    phases = phases.movedim(1, -1).unflatten(-1, (2, 2, out))
    y = x.new_empty(n, h, 2, w, 2, out)
    for i in range(2):
        for j in range(2):
            y[:, :, i, :, j] = phases[:, i : i + h, j : j + w, i, j]
    return y.view(n, 2 * h, 2 * w, out).movedim(-1, 1)


ALGORITHMS = {
    "direct": direct(2, stride=2, padding=1, transposed=True),
    "phases": Algorithm(forward=_phases_forward),
}
