"""3D convolution with kernel 4, stride 2 and padding 1, mainly for videos with few channels.

"pairs": two neighbors in a row, of four values each, become the channels of one pixel: kernel 4×4×2, stride 2×2×1.
The first values are the up to three channels and the last is always 1, which adds the bias in the same product.

"blocks": 2×2×2 neighbors become the channels of one pixel: kernel 2, stride 1. It is only for the gradient of x, where
the library would write three channels in strides.

"images": each of the kernel's four time slices is a 2D convolution with every second frame. It is only for the gradient
of the weight: on a CPU the library has a faster algorithm in 2D, and no slice is multiplied by the padding.
"""

import torch

from tgan_fast.ops.convolution.algorithms import (
    Algorithm,
    PerDirection,
    check_shapes,
    convolve,
    direct,
    library,
    sum_of_channels,
)

_VALUES = 4  # of a pixel in "pairs"


def conv3d_halving(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, algorithm: str | PerDirection = "auto"
) -> torch.Tensor:
    """Return `torch.nn.functional.conv3d` with stride 2 and padding 1.

    Args:
        x: Input [N, C, T, H, W] in any floating-point dtype, which all tensors share; fastest if channels-last.
        weight: Kernel [out, C, 4, 4, 4].
        bias: Vector [out], or None for no bias.
        algorithm: Name of an algorithm, "direct", "pairs", "blocks" or "images", or one for each direction; "auto"
            chooses by device.

    Returns:
        A tensor [N, out, T/2, H/2, W/2], differentiable once.

    Raises:
        ValueError: The shapes do not fit, or the algorithm does not exist or cannot compute these tensors.
    """
    check_shapes("conv3d_halving", x, weight, [4, 4, 4])
    return convolve("conv3d_halving", ALGORITHMS, algorithm, x, weight, bias)


def _pairs(x):
    n, channels, t, h, w = x.shape
    pixel = x.new_zeros(_VALUES)
    # Not `pixel[-1] = 1`, which copies the number from the host: a GPU waits for it, and a CUDA graph cannot hold it.
    pixel[-1:].fill_(1)
    pixels = pixel.expand(n, t + 2, h + 2, w + 2, _VALUES).contiguous()
    pixels[:, 1:-1, 1:-1, 1:-1, :channels] = x.movedim(1, -1)
    return pixels.view(n, t + 2, h + 2, w // 2 + 1, 2 * _VALUES).movedim(-1, 1)


def _pairs_forward(pairs, weight, bias):
    kernel = weight.new_zeros(weight.shape[0], 4, 4, 4, _VALUES)
    kernel[..., : weight.shape[1]] = weight.movedim(1, -1)
    if bias is not None:
        kernel[:, 0, 0, 0, -1] = bias
    return _OF_PAIRS.forward(pairs, _kernel_of_pairs(kernel), None)


def _pairs_gradients(dy, pairs, weight, wanted):
    kernel = _kernel_of_pairs(weight.new_empty(weight.shape[0], 4, 4, 4, _VALUES))
    gradient, _ = _OF_PAIRS.parameter_gradients(dy, pairs, kernel, (True, False))
    gradient = gradient.movedim(1, -1).reshape(-1, 4, 4, 4, _VALUES)
    dweight = torch.empty_like(weight).copy_(gradient[..., : weight.shape[1]].movedim(-1, 1)) if wanted[0] else None
    return dweight, gradient[:, 0, 0, 0, -1].clone() if wanted[1] else None


def _kernel_of_pairs(kernel):
    """Return [out, 4, 4, 4, values] as [out, 2·values, 4, 4, 2]."""
    return kernel.view(-1, 4, 4, 2, 2 * _VALUES).movedim(-1, 1)


def _blocks_input_gradient(dy, x, weight):
    out, channels = weight.shape[:2]
    kernel = weight.movedim(1, -1).reshape(out, 2, 2, 2, 2, 2, 2, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
    kernel = kernel.reshape(out, 2, 2, 2, 8 * channels).movedim(-1, 1)
    blocks = torch.nn.functional.conv_transpose3d(dy, kernel).movedim(1, -1)
    blocks = blocks.unflatten(-1, (2, 2, 2, channels)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    n, _, *size = x.shape
    padded = blocks.reshape(n, *(extent + 2 for extent in size), channels)
    return padded[:, 1:-1, 1:-1, 1:-1].contiguous().movedim(-1, 1)


def _images_gradients(dy, x, weight, wanted):
    dbias = sum_of_channels(dy) if wanted[1] else None
    if not wanted[0]:
        return None, dbias
    count = dy.shape[2]
    # Time comes first, so that the frames for one slice are one batch of images.
    halves = x.unflatten(2, (count, 2)).permute(3, 2, 0, 4, 5, 1).contiguous()
    upstream = dy.permute(2, 0, 3, 4, 1).contiguous()
    dweight = torch.empty_like(weight)
    for tap in range(4):
        # This tap multiplies frame 2·t + tap - 1 of x for frame t of y.
        shift, half = divmod(tap - 1, 2)
        first, end = max(0, -shift), count - max(0, shift)
        frames = halves[half, first + shift : end + shift], upstream[first:end]
        images, of_y = (each.flatten(0, 1).movedim(-1, 1) for each in frames)
        dweight[:, :, tap], _ = _OF_IMAGES.parameter_gradients(of_y, images, weight[:, :, tap], (True, False))
    return dweight, dbias


def _not_pairs(x, weight):
    if x.shape[1] >= _VALUES:
        return f"it has room for {_VALUES - 1} channels, and x has {x.shape[1]}"
    return f"it needs rows of even length, and x has {x.shape[4]}" if x.shape[4] % 2 else None


def _not_blocks(x, weight):
    if x.shape[1] >= _VALUES:
        return f"it is for fewer than {_VALUES} channels, and x has {x.shape[1]}"
    return f"it needs even sizes, and x has {list(x.shape[2:])}" if any(extent % 2 for extent in x.shape[2:]) else None


def _not_images(x, weight):
    if x.shape[2] % 2:
        return f"it needs an even number of frames, and x has {x.shape[2]}"
    channels, out = x.shape[1], weight.shape[0]
    # The library's 2D algorithm is slower than the 3D one there.
    return f"it is slow with {channels} channels and {out} output channels" if channels < 8 and out >= 32 else None


_OF_IMAGES = library([2, 2], [1, 1], [1, 1], False, [0, 0], 1)
_OF_PAIRS = library([2, 2, 1], [0, 0, 0], [1, 1, 1], False, [0, 0, 0], 1)
ALGORITHMS = {
    "direct": direct(3, stride=2, padding=1),
    "pairs": Algorithm(
        forward=_pairs_forward, parameter_gradients=_pairs_gradients, prepare=_pairs, why_not=_not_pairs
    ),
    "blocks": Algorithm(input_gradient=_blocks_input_gradient, why_not=_not_blocks),
    "images": Algorithm(parameter_gradients=_images_gradients, why_not=_not_images),
}
