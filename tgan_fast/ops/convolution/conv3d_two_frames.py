"""3D convolution with kernel 4, stride 2 and padding 1 of two frames.

The output is one frame. The outer two of the kernel's four time slices only meet the padding, so the inner two suffice,
with half of the operations.

"inner": the convolution with the inner slices.

"product": one matrix product of all patches [N·H/2·W/2, 2·4·4·C] and the inner slices, which a channels-last weight and
its gradient hold as one matrix [out, 2·4·4·C]. With few pixels and many channels, most time goes to the weight: it is
read and written once, and a GPU can divide the long sums among many multiprocessors.
"""

import torch

from tgan_fast.ops.convolution.algorithms import Algorithm, PerDirection, check_shapes, convolve, direct, library


def conv3d_two_frames(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, algorithm: str | PerDirection = "auto"
) -> torch.Tensor:
    """Return `torch.nn.functional.conv3d` with stride 2 and padding 1 for two frames.

    Args:
        x: Input [N, C, 2, H, W] in any floating-point dtype, which all tensors share; fastest if channels-last.
        weight: Kernel [out, C, 4, 4, 4]; fastest if channels-last.
        bias: Vector [out], or None for no bias.
        algorithm: Name of an algorithm, "direct", "inner" or "product", or one for each direction; "auto" chooses by
            device.

    Returns:
        A tensor [N, out, 1, H/2, W/2], differentiable once.

    Raises:
        ValueError: The shapes do not fit, or the algorithm does not exist.
    """
    check_shapes("conv3d_two_frames", x, weight, [4, 4, 4])
    if x.shape[2] != 2:
        raise ValueError(f"conv3d_two_frames takes [N, C, 2, H, W] and got {list(x.shape)}")
    return convolve("conv3d_two_frames", ALGORITHMS, algorithm, x, weight, bias)


def _inner_weight(weight):
    return weight[:, :, 1:3].contiguous(memory_format=torch.channels_last_3d)


def _inner_forward(x, weight, bias):
    return _INNER.forward(x, _inner_weight(weight), bias)


def _inner_input_gradient(dy, x, weight):
    return _INNER.input_gradient(dy, x, _inner_weight(weight))


def _inner_gradients(dy, x, weight, wanted):
    inner, dbias = _INNER.parameter_gradients(dy, x, _inner_weight(weight), wanted)
    if not wanted[0]:
        return None, dbias
    dweight = torch.zeros_like(weight)
    dweight[:, :, 1:3] = inner
    return dweight, dbias


def _patches(x):
    """Return the patches [N, H/2, W/2, 2·4·4·C], frames first."""
    n, channels, frames, h, w = x.shape
    padded = x.new_zeros(n, frames, h + 2, w + 2, channels)
    padded[:, :, 1:-1, 1:-1] = x.movedim(1, -1)
    sample, frame, row, pixel, channel = padded.stride()
    shape = n, h // 2, w // 2, frames, 4, 4, channels
    return padded.as_strided(shape, (sample, 2 * row, 2 * pixel, frame, row, pixel, channel)).flatten(3)


def _matrix(weight):
    """Return the inner slices as [out, 2·4·4·C]; a view if the channels are last in memory."""
    return weight.movedim(1, -1)[:, 1:3].flatten(1)


def _product_forward(patches, weight, bias):
    y = torch.nn.functional.linear(patches, _matrix(weight), bias)
    return y.movedim(-1, 1).unsqueeze(2)


def _product_input_gradient(dy, x, weight):
    n, channels, frames, h, w = x.shape
    patches = (_rows(dy) @ _matrix(weight)).view(n, h // 2, w // 2, frames, 4, 4, channels)
    # In float32 at least, because up to four patches are added in a pixel.
    dx = patches.new_zeros(n, frames, h + 2, w + 2, channels, dtype=torch.promote_types(x.dtype, torch.float32))
    for i in range(4):
        for j in range(4):
            dx[:, :, i : i + h // 2 * 2 : 2, j : j + w // 2 * 2 : 2] += patches[..., i, j, :].movedim(3, 1)
    return dx[:, :, 1:-1, 1:-1].to(x.dtype).contiguous().movedim(-1, 1)


def _product_gradients(dy, patches, weight, wanted):
    rows = _rows(dy)
    dbias = rows.sum(0) if wanted[1] else None
    if not wanted[0]:
        return None, dbias
    dweight = torch.empty_like(weight, memory_format=torch.channels_last_3d)
    dweight[:, :, ::3] = 0
    # The product is written directly into dweight.
    torch.mm(rows.t(), patches.flatten(0, 2), out=_matrix(dweight))
    return dweight, dbias


def _rows(dy):
    """Return dy as [N·H/2·W/2, out]; a view if the channels are last in memory."""
    return dy.movedim(1, -1).reshape(-1, dy.shape[1])


_INNER = library([1, 2, 2], [0, 1, 1], [1, 1, 1], False, [0, 0, 0], 1)
ALGORITHMS = {
    "direct": direct(3, stride=2, padding=1),
    "inner": Algorithm(_inner_forward, _inner_input_gradient, _inner_gradients),
    "product": Algorithm(_product_forward, _product_input_gradient, _product_gradients, prepare=_patches),
}
