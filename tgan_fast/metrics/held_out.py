"""Split of a data set into clips to train a classifier on and held-out clips to test it on."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tgan_fast.data import ClipDataset, MovingDigits, VideoFrames, read_videos
from tgan_fast.data.moving_digits import scikit_learn_scans
from tgan_fast.errors import InputError
from tgan_fast.sizes import PAPER_DIGITS, PAPER_SPEED

_HELD_OUT_DIGITS = 1024
_NAMED = 3
# Sizes of digits, from the paper's to larger than any preset's.
_DIGIT_SIZES = PAPER_DIGITS, 0.625, 0.8125
# Largest share of the free space that a digit crosses per frame, the same as for the paper's digits.
_SPEED = PAPER_SPEED / (1 - PAPER_DIGITS)


@dataclass(frozen=True)
class LabeledClips:
    """Clips with labels, split in two.

    Attributes:
        training: Clips to train on.
        held_out: Clips to test on, each of them once.
        classes: Name of each label.
        summary: Description of both in one line.
        notices: Sentences on classes that are left out, or have no held-out clip.
    """

    training: ClipDataset | VideoFrames
    held_out: ClipDataset | VideoFrames
    classes: tuple[str, ...]
    summary: str
    notices: tuple[str, ...] = ()


class DigitsOfSizes:
    """Data set of moving digits in frames of 64 pixels, whose size changes from clip to clip.

    Args:
        size: Number of clips.
        digits: Number of digits in a clip.
        seed: Seed of the clips.
        scans: Handwritten digits, as `MovingDigits` takes them.

    Attributes:
        scans: Handwritten digits: images and labels.
    """

    def __init__(self, size: int, *, digits: int, seed: int, scans: tuple[np.ndarray, np.ndarray]):
        self._size, self.scans = size, scans
        self._sets = [
            MovingDigits(size, digits=digits, seed=seed, scans=scans, digit_size=side, digit_speed=_SPEED * (1 - side))
            for side in _DIGIT_SIZES
        ]

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return clip `index`, uint8 [16, 64, 64, 1], and its class."""
        return self._sets[index % len(self._sets)][index]


def split_digits(share: float, *, digits: int = 1, seed: int = 0) -> LabeledClips:
    """Return moving digits of several sizes, split by handwriting: no handwriting in `held_out` is in `training`.

    Args:
        share: Share of each class's handwritings to hold out, more than 0 and less than 1.
        digits: Number of digits in a clip, 1 or 2.
        seed: Seed of the split and of the clips.
    """
    images, labels = scikit_learn_scans()
    held_out = hold_out(labels, np.arange(len(labels)), share, seed=seed, fewest=digits)
    return LabeledClips(
        DigitsOfSizes(100_000, digits=digits, seed=seed, scans=(images[~held_out], labels[~held_out])),
        # The same seed would give the positions and speeds of the training clips.
        DigitsOfSizes(_HELD_OUT_DIGITS, digits=digits, seed=seed + 1, scans=(images[held_out], labels[held_out])),
        tuple(map(str, range(10))),
        f"moving digits: {(~held_out).sum():,} handwritings to train on, {held_out.sum():,} others held out",
    )


def split_videos(path: Path, share: float, *, seed: int = 0) -> LabeledClips:
    """Return prepared videos, split by group if groups are known, else by video.

    Half of the training clips are mirrored.

    Args:
        path: Clip store or prepared file, as `read_videos` takes it.
        share: Share of each class's groups or videos to hold out, more than 0 and less than 1.
        seed: Seed of the split.

    Raises:
        InputError: The file cannot be opened, there are fewer than two classes, or each has only one group or video.
    """
    dataset = VideoFrames(read_videos(path))
    videos = dataset.videos
    present, labels = np.unique(videos.labels, return_inverse=True)
    if len(present) < 2:
        raise InputError(
            f"the videos of {path} have {'one class' if videos.class_names else 'no classes'}, but a classifier needs "
            "two or more: prepare a folder with a subfolder of videos for each class"
        )
    classes = tuple(videos.class_names[number] for number in present)
    # Clips of a UCF-101 group show one person in one place, so a split by video would leak test scenes into training.
    held_out = hold_out(labels, videos.groups, share, seed=seed)
    grouped = np.unique((labels, videos.groups), axis=1).shape[1] < len(labels)
    unit = "group" if grouped else "video"
    if not held_out.any():
        raise InputError(f"every class of {path} has only one {unit}, so that none can be held out: prepare more")

    def subset(chosen, flip):
        return VideoFrames(replace(videos.only(chosen), labels=labels[chosen]), flip=flip)

    return LabeledClips(
        subset(~held_out, flip=True),
        subset(held_out, flip=False),
        classes,
        f"{dataset.summary}; to train on: {(~held_out).sum():,}; "
        f"held out: {held_out.sum():,}{' of other groups' if grouped else ''}",
        tuple(_notices(videos.class_names, classes, np.isin(range(len(classes)), labels[held_out]), unit)),
    )


def hold_out(labels: np.ndarray, groups: np.ndarray, share: float, *, seed: int, fewest: int = 1) -> np.ndarray:
    """Choose whole groups at random, about the same share of each class.

    Args:
        labels: Class of each item, integers [n].
        groups: Group of each item, integers [n]. Items of one class with the same number stay together.
        share: Share of each class's groups to choose.
        seed: Seed of the choice.
        fewest: Smallest number of groups that each class keeps, and also the smallest number held out if the class has
            twice as many.

    Returns:
        Whether each item is held out, bool [n].
    """
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = labels == label
        shuffled = random.permutation(np.unique(groups[of_class]))
        count = min(max(round(share * len(shuffled)), fewest), len(shuffled) - fewest)
        held_out |= of_class & np.isin(groups, shuffled[: max(count, 0)])
    return held_out


def _notices(of_store, classes, tested, unit):
    absent = [name for name in of_store if name not in classes]
    if absent:
        yield f"classes without a video, which are left out: {_join_names(absent)}"
    alone = [name for name, is_tested in zip(classes, tested, strict=True) if not is_tested]
    if alone:
        yield f"classes with only one {unit}, which is not held out: {_join_names(alone)}"


def _join_names(names):
    further = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + further
