"""Class labels as networks see them: one-hot vectors, and one-hot maps as further channels of a video."""

import torch


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
        size: of the video in these dimensions, each of two places or more in the result.
        stride: 1 or 2.

    Returns:
        [N, out, …], contiguous.
    """
    sums, places = weight, []
    for dim, length in enumerate(size, 2):
        taps = weight.shape[dim]
        places.append((length + 2 - taps) // stride + 1)
        # Of a video of odd length, the last place of stride 2 does not reach the padding.
        at_end = min(taps, length + 1 - stride * (places[-1] - 1))
        inside = sums.narrow(dim, 1, taps - 1), sums, sums.narrow(dim, 0, at_end)
        sums = torch.cat([kernel.sum(dim, keepdim=True) for kernel in inside], dim)
    maps = one_hot(labels, weight.shape[1], weight.dtype) @ sums.movedim(1, 0).flatten(1)
    maps = maps.unflatten(1, (weight.shape[0], *sums.shape[2:]))
    for dim, length in enumerate(places, 2):
        maps = _stretched(maps, dim, length)
    return maps


def _stretched(maps, dim, length):
    """Of the three places along a dimension, the middle one repeated."""
    first, middle, last = maps.split(1, dim)
    sizes = list(middle.shape)
    sizes[dim] = length - 2
    return torch.cat([first, middle.expand(sizes), last], dim)
