"""Transposed 1D convolution with kernel 4, stride 2 and padding 1 of short sequences.

The library's own convolution converts its inputs to channels-first.

"image": the transposed 2D convolution of an image of one row, which keeps the channels last.

"product": the matrix product [N·L, C]·[C, 4·out] gives the contributions of each step to four steps of y; those of
neighboring steps overlap in two. The weight is the second matrix, without a copy, if it lies [C, 4, out] in memory.
"""

import torch
import torch.nn.functional as F

from tgan_fast.ops.convolution.algorithms import Algorithm, PerDirection, check_shapes, convolve, direct, library


def conv_transpose1d_doubling(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, algorithm: str | PerDirection = "auto"
) -> torch.Tensor:
    """Return `torch.nn.functional.conv_transpose1d` with stride 2 and padding 1.

    Args:
        x: Input [N, C, L] in any floating-point dtype, which all tensors share; fastest if channels-last.
        weight: Kernel [C, out, 4]; fastest if it lies [C, 4, out] in memory.
        bias: Vector [out], or None for no bias.
        algorithm: Name of an algorithm, "direct", "image" or "product", or one for each direction; "auto" chooses by
            device.

    Returns:
        A tensor [N, out, 2·L], differentiable once.

    Raises:
        ValueError: The shapes do not fit, or the algorithm does not exist.
    """
    check_shapes("conv_transpose1d_doubling", x, weight, [4], transposed=True)
    return convolve("conv_transpose1d_doubling", ALGORITHMS, algorithm, x, weight, bias)


def _image_forward(x, weight, bias):
    return _OF_IMAGE.forward(x.unsqueeze(2), weight.unsqueeze(2), bias).squeeze(2)


def _image_input_gradient(dy, x, weight):
    return _OF_IMAGE.input_gradient(dy.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(2)).squeeze(2)


def _image_gradients(dy, x, weight, wanted):
    images = (tensor.unsqueeze(2) for tensor in (dy, x, weight))
    dweight, dbias = _OF_IMAGE.parameter_gradients(*images, wanted)
    return dweight.squeeze(2) if wanted[0] else None, dbias


def _product_forward(x, weight, bias):
    n, _, length = x.shape
    out = weight.shape[1]
    added = (_rows(x) @ _matrix(weight)).view(n, length, 2, 2 * out)
    # y as pairs of steps that begin one step early; the padding cuts off the first and the last step.
    pairs = F.pad(added[:, :, 0], (0, 0, 0, 1)) + F.pad(added[:, :, 1], (0, 0, 1, 0))
    y = pairs.view(n, 2 * length + 2, out)[:, 1:-1]
    return (y.contiguous() if bias is None else y + bias).transpose(1, 2)


def _product_input_gradient(dy, x, weight):
    return (_windows(dy) @ _matrix(weight).t()).view(x.shape[0], x.shape[2], -1).transpose(1, 2)


def _product_gradients(dy, x, weight, wanted):
    dweight = (_rows(x).t() @ _windows(dy)).view(weight.shape[0], 4, -1).transpose(1, 2) if wanted[0] else None
    return dweight, dy.sum((0, 2)) if wanted[1] else None


def _rows(x):
    """Return x as [N·L, C]; a view if the channels are last in memory."""
    return x.transpose(1, 2).reshape(-1, x.shape[1])


def _matrix(weight):
    """Return the weight as [C, 4·out]; a view if it lies so in memory."""
    return weight.transpose(1, 2).flatten(1)


def _windows(dy):
    """Return [N·L, 4·out]: the steps of dy to which each step of x contributes."""
    padded = F.pad(dy.transpose(1, 2), (0, 0, 1, 1))
    return padded.unfold(1, 4, 2).movedim(-1, 2).reshape(-1, 4 * dy.shape[1])


_OF_IMAGE = library([1, 2], [0, 1], [1, 1], True, [0, 0], 1)
ALGORITHMS = {
    "direct": direct(1, stride=2, padding=1, transposed=True),
    "image": Algorithm(_image_forward, _image_input_gradient, _image_gradients),
    "product": Algorithm(_product_forward, _product_input_gradient, _product_gradients),
}
