"""Class labels as networks see them: one-hot vectors, and one-hot maps as further channels of a video."""

import torch

# By (kernel, stride), of padding 1: which taps lie within the video at its beginning, inside and at its end.
_TAPS = {
    (4, 2): [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]],
    (3, 1): [[0, 1, 1], [1, 1, 1], [1, 1, 0]],
}


def check_labels(labels: torch.Tensor | None, count: int, classes: int, network: str) -> None:
    """Raise a ValueError unless labels are int64 [count] where there are classes, and None where there are not."""
    if labels is None:
        if classes:
            raise ValueError(f"the {network} takes a label of {classes} classes with every video, and got none")
        return
    if not classes:
        raise ValueError(f"the {network} has no classes, and got labels")
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(f"labels are int64 [{count}], not {labels.dtype} {list(labels.shape)}")


def one_hot(labels: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """[N, classes] of labels int64 [N]; on a GPU, unlike PyTorch's own, without waiting for it."""
    return (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).to(dtype)


def convolved_labels(labels: torch.Tensor, weight: torch.Tensor, size: torch.Size, stride: int) -> torch.Tensor:
    """What one-hot maps as channels of a video add to its convolution with padding 1.

    A map is the same everywhere, and so is its convolution, the kernel's sum, but where that meets the padding. In each
    dimension there are three different places, of which the middle one is repeated.

    Args:
        labels: int64 [N].
        weight: [out, classes, k, …], of 4 taps and stride 2 or 3 taps and stride 1 in each dimension.
        size: of the result [N, out, …], 2 or more in each dimension.
        stride: 1 or 2.

    Returns:
        [N, out, …], contiguous.
    """
    taps = weight.new_tensor(_TAPS[weight.shape[-1], stride])
    sums = weight
    for dim in range(2, weight.dim()):
        sums = (sums.movedim(dim, -1) @ taps.t()).movedim(-1, dim)
    maps = one_hot(labels, weight.shape[1], weight.dtype) @ sums.movedim(1, 0).flatten(1)
    maps = maps.unflatten(1, (weight.shape[0], *[3] * (weight.dim() - 2)))
    for dim, length in enumerate(size[2:], 2):
        maps = _stretched(maps, dim, length)
    return maps


def _stretched(maps, dim, length):
    """Of the three places along a dimension, the middle one repeated."""
    first, middle, last = maps.split(1, dim)
    sizes = list(middle.shape)
    sizes[dim] = length - 2
    return torch.cat([first, middle.expand(sizes), last], dim)
