"""Real clips to compare generated ones with: which ones, in which order, and what identifies them."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from tgan_fast.data import ClipDataset, MovingDigits, VideoFrames

_AT_ONCE = 1 << 26


def draw_clips(
    dataset: ClipDataset | VideoFrames, count: int, *, seed: int, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield clips and their labels, a function of the data set, `count`, `seed` and `batch_size` alone.

    They come in a random order, every one once before any comes again; of `VideoFrames` each time with another start.

    Args:
        dataset: see there.
        count: how many in all.
        seed: of the order, and of windows, crops and flips.
        batch_size: of what is yielded at once, but for the rest at the end.

    Yields:
        Clips uint8 [n, T, H, W, C] and labels int64 [n], on the CPU.
    """
    random = np.random.default_rng(seed)
    epochs = -(-count // len(dataset))
    numbers = np.concatenate([random.permutation(len(dataset)) for _ in range(epochs)])[:count]
    for start in range(0, count, batch_size):
        clips, labels = _read(dataset, numbers[start : start + batch_size], random)
        yield torch.from_numpy(clips), torch.from_numpy(labels)


def distinct_clips(dataset: ClipDataset | VideoFrames) -> int:
    """How many different clips there are."""
    return int(dataset.starts.sum()) if isinstance(dataset, VideoFrames) else len(dataset)


def fingerprint_of(dataset: ClipDataset | VideoFrames) -> str | None:
    """SHA-256, in hexadecimal, of all that the clips of a data set depend on; None where that cannot be told.

    Frames of videos are read where their checksum is not known.
    """
    if isinstance(dataset, VideoFrames):
        options = dataset.stride, dataset.weighting, dataset.loop, dataset.crop, dataset.flip, dataset.clip_shape
        arrays = dataset.first, dataset.length, dataset.labels, dataset.starts
        checksum = dataset.videos.checksum
        if checksum is None:
            return _digest(options, (*arrays, dataset.frames.numpy()))
        return _digest((*options, tuple(dataset.frames.shape), checksum), arrays)
    # Not isinstance: what is derived from it may yield clips of its own.
    if type(dataset) is MovingDigits:
        options = dataset.size, dataset.digits, dataset.channels, dataset.seed, dataset.clip_frames, dataset.image_size
        return _digest(options, dataset.scans)
    return None


def _read(dataset, numbers, random):
    if isinstance(dataset, VideoFrames):
        clips = np.empty((len(numbers), *dataset.clip_shape), np.uint8)
        dataset.cut(dataset.windows(numbers, random), clips)
        return clips, dataset.labels_of(numbers)
    clips, labels = zip(*(dataset[number] for number in numbers.tolist()), strict=True)
    return np.stack(clips), np.array(labels)


def _digest(options, arrays):
    digest = hashlib.sha256(repr(options).encode())
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode())
        # In parts, since frames may be mapped from a file that is larger than the memory.
        for part in np.array_split(array, -(-array.nbytes // _AT_ONCE)):
            digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()
