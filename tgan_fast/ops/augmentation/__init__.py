"""Differentiable augmentation of videos: color, translation and cutout, the same for all frames of a video.

A GAN that sees augmented videos only, real and generated ones alike, overfits small data sets less. Gradients reach the
generator through the augmentation. With numbers u that are uniform in [0, 1), and in this order:

    color        brightness   x + (u - 1/2)
                 saturation   m + 2u·(x - m), where m is the mean of a pixel's channels
                 contrast     M + (u + 1/2)·(x - M), where M is the mean of the video
    translation  by up to an eighth of the frame along each axis; pixels from outside are 0
    cutout       a square with half the frame's side, at a random place that may reach over the border, becomes 0

This is linear in the video but for the brightness, so both passes do the same work: a sum over every video for its
mean, and a pass that reads and writes every value once. Nothing of the video is kept for the backward pass.

Source: Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training, arXiv:2006.10738, for images.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from tgan_fast.choices import Transform, TritonBackend
from tgan_fast.ops.arguments import check_tensor
from tgan_fast.ops.dispatch import choose

TRANSFORMS: tuple[Transform, ...] = ("color", "translation", "cutout")
# Random numbers for each video: brightness, saturation, contrast, rows and columns of the translation and the cutout.
RANDOM_NUMBERS = 7


def augment_videos(
    videos: torch.Tensor,
    numbers: torch.Tensor,
    transforms: Collection[Transform] = TRANSFORMS,
    *,
    backend: TritonBackend = "auto",
) -> torch.Tensor:
    """Return augmented videos, differentiable any number of times with respect to `videos`.

    Args:
        videos: Videos [N, C, T, H, W] in [-1, 1], floating point; fastest with channels last in memory.
        numbers: Random numbers uniform in [0, 1), float32 [N, 7] on the same device. All transforms read the same
            columns whichever are chosen.
        transforms: Names of the transforms, from "color", "translation" and "cutout".
        backend: Name of an implementation: "triton" (float32, float16 and bfloat16 on a GPU) or "torch"; "auto" picks
            the fastest that fits.

    Returns:
        Videos of the same shape and dtype, channels last in memory. They may lie outside [-1, 1]. Half precision is
        computed in float32.

    Raises:
        TypeError: `videos` is not a tensor.
        ValueError: A shape, a dtype, a device or the name of a transform or backend is wrong.
        BackendError: "triton" was requested and cannot run here, or cannot take these videos.
    """
    check_tensor("videos", videos)
    if videos.dim() != 5:
        raise ValueError(f"videos must have the shape [N, C, T, H, W], not {list(videos.shape)}")
    expected = (len(videos), RANDOM_NUMBERS)
    if numbers.shape != expected or numbers.dtype != torch.float32 or numbers.device != videos.device:
        raise ValueError(
            f"numbers must be float32 {list(expected)} on {videos.device}, not {numbers.dtype} {list(numbers.shape)} "
            f"on {numbers.device}"
        )
    for transform in transforms:
        if transform not in TRANSFORMS:
            raise ValueError(f"there is no transform {transform!r}: choose from {', '.join(TRANSFORMS)}")
    chosen = choose("augment_videos", backend, videos, {"triton": lambda: _why_not_triton(videos)})
    if not transforms or not videos.numel():
        return videos
    return _Augmentation.apply(videos, numbers, Pass(frozenset(transforms)), chosen)


@dataclass(frozen=True)
class Pass:
    """One pass over videos.

    Attributes:
        transforms: Names of the transforms.
        transposed: Whether the pass multiplies by the transpose of the linear map, as the backward pass does.
        shifts: Whether brightness is added, which only the first forward pass does.
    """

    transforms: frozenset[Transform]
    transposed: bool = False
    shifts: bool = True


class _Augmentation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, videos, numbers, kind, backend):
        ctx.save_for_backward(numbers)
        ctx.kind, ctx.backend = kind, backend
        # The kernels take values that are channels last in memory.
        values = videos.movedim(1, -1).contiguous()
        if backend == "triton":
            # Not at the top, because Triton need not be installed.
            from tgan_fast.ops.augmentation import triton as kernels

            return kernels.augment(values, numbers, kind).movedim(-1, 1)
        return _augment_torch(values, numbers, kind).movedim(-1, 1)

    @staticmethod
    def backward(ctx, gradient):
        (numbers,) = ctx.saved_tensors
        kind = Pass(ctx.kind.transforms, transposed=not ctx.kind.transposed, shifts=False)
        return _Augmentation.apply(gradient, numbers, kind, ctx.backend), None, None, None


def _augment_torch(values, numbers, kind):
    """Augment values [N, T, H, W, C] with PyTorch's own operations, none of which waits for a GPU."""
    x = values.to(torch.promote_types(values.dtype, torch.float32))
    steps = [_move, _color] if kind.transposed else [_color, _move]
    for step in steps:
        x = step(x, numbers, kind)
    return x.to(values.dtype)


def _color(x, numbers, kind):
    if "color" not in kind.transforms:
        return x
    brightness, saturation, contrast = numbers[:, :3].to(x.dtype)[..., None, None, None, None].unbind(1)
    brightness, saturation, contrast = brightness - 0.5, 2 * saturation, contrast + 0.5
    gray, mean = x.mean(4, keepdim=True), x.mean((1, 2, 3, 4), keepdim=True)
    shift = (1 - contrast) * mean + (brightness if kind.shifts else 0)
    return contrast * saturation * x + (contrast * (1 - saturation) * gray + shift)


def _move(x, numbers, kind):
    if not {"translation", "cutout"} & kind.transforms:
        return x
    (rows, in_rows, cut_rows), (columns, in_columns, cut_columns) = (
        _line(size, *numbers[:, 3 + axis :: 2].unbind(1), kind) for axis, size in enumerate(x.shape[2:4])
    )
    clips, frames = torch.arange(len(x), device=x.device), torch.arange(x.shape[1], device=x.device)
    moved = x[clips[:, None, None, None], frames[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
    kept = in_rows[:, :, None] & in_columns[:, None, :] & ~(cut_rows[:, :, None] & cut_columns[:, None, :])
    return moved * kept[:, None, :, :, None]


def _line(size, translation, center, kind):
    """Return where the values along one axis come from, whether that is inside the frame, and whether they are cut.

    Args:
        size: Number of rows or columns.
        translation, center: Random numbers [N].
        kind: Kind of the pass.

    Returns:
        Indices int64 and two masks, [N, size] each.
    """
    places = torch.arange(size, device=center.device).expand(len(center), -1)
    sources = places
    if "translation" in kind.transforms:
        reach = largest_translation(size)
        offset = (translation * (2 * reach + 1)).long().clamp(max=2 * reach)[:, None] - reach
        sources = places - offset if kind.transposed else places + offset
    cut = torch.zeros_like(places, dtype=torch.bool)
    if "cutout" in kind.transforms:
        side, last = side_of_cutout(size), last_center_of_cutout(size)
        first = (center * (last + 1)).long().clamp(max=last)[:, None] - side // 2
        augmented = sources if kind.transposed else places
        cut = (augmented >= first) & (augmented < first + side)
    return sources.clamp(0, size - 1), (sources >= 0) & (sources < size), cut


def largest_translation(size: int) -> int:
    """Return the largest translation along an axis of `size` pixels."""
    return (size + 4) // 8


def side_of_cutout(size: int) -> int:
    """Return the side of the cutout along an axis of `size` pixels."""
    return (size + 1) // 2


def last_center_of_cutout(size: int) -> int:
    """Return the largest place of the cutout's center along an axis of `size` pixels; the smallest is 0."""
    return size - side_of_cutout(size) % 2


def _why_not_triton(videos):
    from tgan_fast.ops.augmentation.triton import why_not

    return why_not(videos)
