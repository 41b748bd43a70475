"""Class labels as inputs of networks: one-hot vectors, and one-hot maps as additional channels of a video."""

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
    """Return labels int64 [N] as one-hot vectors [N, classes]; unlike PyTorch's own, does not wait for a GPU."""
    return (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).to(dtype)


def convolved_labels(labels: torch.Tensor, weight: torch.Tensor, size: torch.Size, stride: int) -> torch.Tensor:
    """Return the convolution, with padding 1, of one-hot maps as channels of a video.

    A map is constant, so its convolution is the kernel's sum everywhere but at the padding. Each dimension has three
    different values: at both ends, and a middle one that is repeated.

    Args:
        labels: Class labels, int64 [N].
        weight: Kernel [out, classes, k, …], with k = 4 for stride 2 and k = 3 for stride 1.
        size: Size of the video in the kernel's dimensions; the result has two places or more in each.
        stride: Stride in every dimension, 1 or 2.

    Returns:
        A contiguous tensor [N, out, …].
    """
    sums, places = weight, []
    for dim, length in enumerate(size, 2):
        taps = weight.shape[dim]
        places.append((length + 2 - taps) // stride + 1)
        # With stride 2 and an odd length, the last place does not reach the padding.
        at_end = min(taps, length + 1 - stride * (places[-1] - 1))
        inside = sums.narrow(dim, 1, taps - 1), sums, sums.narrow(dim, 0, at_end)
        sums = torch.cat([kernel.sum(dim, keepdim=True) for kernel in inside], dim)
    maps = one_hot(labels, weight.shape[1], weight.dtype) @ sums.movedim(1, 0).flatten(1)
    maps = maps.unflatten(1, (weight.shape[0], *sums.shape[2:]))
    for dim, length in enumerate(places, 2):
        maps = _repeat_middle(maps, dim, length)
    return maps


def _repeat_middle(maps, dim, length):
    """Return three places along a dimension expanded to `length` places, by repeating the middle one."""
    first, middle, last = maps.split(1, dim)
    sizes = list(middle.shape)
    sizes[dim] = length - 2
    return torch.cat([first, middle.expand(sizes), last], dim)
