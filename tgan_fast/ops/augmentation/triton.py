"""Triton kernels of `augment_videos`.

Two passes: with the transform "color", `sum_kernel` reads every value once; `augment_kernel` reads and writes every
value once, and reads it a second time from the cache if the transform "color" has several channels to average.
Coefficients are computed in the kernels from each video's random numbers. Offsets of videos have 64 bits.
"""

import torch
import triton
import triton.language as tl

from tgan_fast.ops import augmentation

# Programs that sum one video, and values that each adds at a time.
_PARTS, _SUM_BLOCK = 32, 2048
# Pixels per program: 8 per thread.
_PIXELS = 1024
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _offset(number, count):
    """Return an integer from 0 to `count` - 1, given a number in [0, 1)."""
    return tl.minimum((number * count).to(tl.int32), count - 1)


@triton.jit
def _source(
    place, size, translation, center, reach, side, last,
    TRANSLATION: tl.constexpr, CUTOUT: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Return where the value at a place along an axis comes from, whether that is inside, and whether it is cut."""
    source = place
    if TRANSLATION:
        offset = _offset(translation, 2 * reach + 1) - reach
        source = place - offset if TRANSPOSED else place + offset
    is_cut = place < 0
    if CUTOUT:
        first = _offset(center, last + 1) - side // 2
        augmented = source if TRANSPOSED else place
        is_cut = (augmented >= first) & (augmented < first + side)
    return source, (source >= 0) & (source < size), is_cut


@triton.jit
def sum_kernel(
    videos, numbers, sums, pixels, height, width, reach_y, side_y, last_y, reach_x, side_x, last_x,
    CHANNELS: tl.constexpr, TRANSLATION: tl.constexpr, CUTOUT: tl.constexpr, TRANSPOSED: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write sums [N, PARTS] of each video's values; in the transposed pass, of those that are not moved out or cut.

    videos: [N, T, H, W, C], contiguous, with `pixels` = T·H·W.
    """
    clip, part = tl.program_id(0), tl.program_id(1)
    count = pixels * CHANNELS
    first = videos + clip.to(tl.int64) * count
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(part * BLOCK, count, PARTS * BLOCK):
        places = start + tl.arange(0, BLOCK)
        mask = places < count
        if TRANSPOSED and (TRANSLATION or CUTOUT):
            pixel = places // CHANNELS
            # The forward pass moved a value to this place.
            row = numbers + clip * 7
            _, in_y, cut_y = _source(
                pixel // width % height, height, tl.load(row + 3), tl.load(row + 5), reach_y, side_y, last_y,
                TRANSLATION, CUTOUT, False,
            )  # fmt: skip
            _, in_x, cut_x = _source(
                pixel % width, width, tl.load(row + 4), tl.load(row + 6), reach_x, side_x, last_x,
                TRANSLATION, CUTOUT, False,
            )  # fmt: skip
            mask = mask & in_y & in_x & ((cut_y & cut_x) == 0)
        total += tl.load(first + places, mask, other=0.0).to(tl.float32)
    tl.store(sums + clip * PARTS + part, tl.sum(total))


@triton.jit
def augment_kernel(
    videos, numbers, sums, augmented, pixels, height, width, reach_y, side_y, last_y, reach_x, side_x, last_x,
    CHANNELS: tl.constexpr, COLOR: tl.constexpr, TRANSLATION: tl.constexpr, CUTOUT: tl.constexpr,
    TRANSPOSED: tl.constexpr, SHIFTS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write BLOCK pixels of a video.

    videos, augmented: [N, T, H, W, C], contiguous, with `pixels` = T·H·W; sums [N, PARTS] from `sum_kernel`.
    """
    clip = tl.program_id(0)
    row = numbers + clip * 7
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < pixels
    y, in_y, cut_y = _source(
        place // width % height, height, tl.load(row + 3), tl.load(row + 5), reach_y, side_y, last_y,
        TRANSLATION, CUTOUT, TRANSPOSED,
    )  # fmt: skip
    x, in_x, cut_x = _source(
        place % width, width, tl.load(row + 4), tl.load(row + 6), reach_x, side_x, last_x,
        TRANSLATION, CUTOUT, TRANSPOSED,
    )  # fmt: skip
    kept = inside & in_y & in_x & ((cut_y & cut_x) == 0)
    source = (place // (height * width) * height + y) * width + x

    first = clip.to(tl.int64) * pixels * CHANNELS
    gain, from_gray, shift = 1.0, 0.0, 0.0
    if COLOR:
        saturation, contrast = 2 * tl.load(row + 1), tl.load(row + 2) + 0.5
        gain, from_gray = contrast * saturation, contrast * (1 - saturation)
        mean = tl.sum(tl.load(sums + clip * PARTS + tl.arange(0, PARTS))) / (pixels * CHANNELS)
        shift = (1 - contrast) * mean
        if SHIFTS:
            shift += tl.load(row) - 0.5
    gray = tl.zeros((BLOCK,), tl.float32)
    if COLOR:
        for channel in range(CHANNELS):
            gray += tl.load(videos + first + source * CHANNELS + channel, kept, other=0.0).to(tl.float32)
        gray = from_gray * (gray / CHANNELS) + shift
    for channel in range(CHANNELS):
        value = tl.load(videos + first + source * CHANNELS + channel, kept, other=0.0).to(tl.float32)
        value = gain * value + gray
        if not TRANSPOSED:
            # Color comes first in the forward pass, so what is moved in or cut has none.
            value = tl.where(kept, value, 0.0)
        tl.store(augmented + first + place * CHANNELS + channel, value.to(augmented.dtype.element_ty), inside)


# When Triton decorates a kernel, it decides whether its interpreter runs it on a CPU, which is slow and for tests.
INTERPRETED = not isinstance(augment_kernel, triton.JITFunction)


def why_not(videos: torch.Tensor) -> str | None:
    """Return why the kernels cannot take these videos, or None if they can."""
    if videos.dtype not in _DTYPES:
        return f"it takes float32, float16 and bfloat16, and the videos are {videos.dtype}"
    if not (videos.is_cuda or INTERPRETED):
        return f"it runs on a GPU, and the videos are on {videos.device}"
    return None


def augment(values: torch.Tensor, numbers: torch.Tensor, kind: "augmentation.Pass") -> torch.Tensor:
    """Augment values [N, T, H, W, C], as `augment_videos` does."""
    n, clip_frames, height, width, channels = values.shape
    pixels = clip_frames * height * width
    numbers, augmented = numbers.contiguous(), torch.empty_like(values)
    sums = numbers.new_empty(n, _PARTS)
    color, translation, cutout = (name in kind.transforms for name in augmentation.TRANSFORMS)
    sizes = [pixels, height, width]
    for size in (height, width):
        sizes += [
            augmentation.largest_translation(size),
            augmentation.side_of_cutout(size),
            augmentation.last_center_of_cutout(size),
        ]
    options = {
        "CHANNELS": channels, "TRANSLATION": translation, "CUTOUT": cutout, "TRANSPOSED": kind.transposed,
        "PARTS": _PARTS,
    }  # fmt: skip
    with torch.cuda.device_of(values):
        if color:
            sum_kernel[(n, _PARTS)](values, numbers, sums, *sizes, **options, BLOCK=_SUM_BLOCK)
        augment_kernel[(n, triton.cdiv(pixels, _PIXELS))](
            values, numbers, sums, augmented, *sizes, **options, COLOR=color, SHIFTS=kind.shifts, BLOCK=_PIXELS
        )
    return augmented
