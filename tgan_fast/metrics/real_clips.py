"""Real clips for comparison with generated ones: drawing them, and the fingerprint of their data set."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from tgan_fast.data import ClipDataset, MovingDigits, VideoFrames
from tgan_fast.sizes import PAPER_DIGITS, PAPER_SPEED

_AT_ONCE = 1 << 26  # bytes


def draw_clips(
    dataset: ClipDataset | VideoFrames, count: int, *, seed: int, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield clips and their labels in a random order; all come once before any is repeated.

    The clips depend only on the arguments. A video of `VideoFrames` starts at another frame each time.

    Args:
        dataset: Data set of clips or videos.
        count: Number of clips to draw.
        seed: Seed of the order, and of windows, crops and flips.
        batch_size: Number of clips at once; the last batch may be smaller.

    Yields:
        Clips uint8 [n, T, H, W, C] and labels int64 [n], on the CPU.
    """
    random = np.random.default_rng(seed)
    epochs = -(-count // len(dataset))
    numbers = np.concatenate([random.permutation(len(dataset)) for _ in range(epochs)])[:count]
    for start in range(0, count, batch_size):
        clips, labels = read_clips(dataset, numbers[start : start + batch_size], random)
        yield torch.from_numpy(clips), torch.from_numpy(labels)


def distinct_clips(dataset: ClipDataset | VideoFrames) -> int:
    """Return the number of different clips."""
    return int(dataset.starts.sum()) if isinstance(dataset, VideoFrames) else len(dataset)


def fingerprint_of(dataset: ClipDataset | VideoFrames) -> str | None:
    """Return a SHA-256, in hexadecimal, of everything that clips depend on; None for unknown kinds of data sets.

    Frames of videos are read if their checksum is not known.
    """
    if isinstance(dataset, VideoFrames):
        # The spelling of 0.1.0 keeps cached statistics valid.
        crop = "centre" if dataset.crop == "center" else dataset.crop
        options = dataset.stride, dataset.weighting, dataset.loop, crop, dataset.flip, dataset.clip_shape
        arrays = dataset.first, dataset.length, dataset.labels, dataset.starts
        checksum = dataset.videos.checksum
        if checksum is None:
            return _digest(options, (*arrays, dataset.frames.numpy()))
        return _digest((*options, tuple(dataset.frames.shape), checksum), arrays)
    # isinstance would accept subclasses, which may yield other clips.
    if type(dataset) is MovingDigits:
        options = dataset.size, dataset.digits, dataset.channels, dataset.seed, dataset.clip_frames, dataset.image_size
        # Leaving out the defaults, as in 0.1.0, keeps cached statistics valid.
        if (dataset.digit_size, dataset.digit_speed) != (PAPER_DIGITS, PAPER_SPEED):
            options = *options, dataset.digit_size, dataset.digit_speed
        return _digest(options, dataset.scans)
    return None


def read_clips(
    dataset: ClipDataset | VideoFrames, numbers: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return clips of a data set and their labels.

    Args:
        dataset: Data set of clips or videos.
        numbers: Indices of the clips, int64 [n].
        random: Generator that chooses windows, crops and flips.

    Returns:
        Clips uint8 [n, T, H, W, C] and labels [n], int64 in data sets of this package.
    """
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
        # In pieces, since frames may be mapped from a file larger than memory.
        for piece in np.array_split(array, -(-array.nbytes // _AT_ONCE)):
            digest.update(np.ascontiguousarray(piece))
    return digest.hexdigest()
