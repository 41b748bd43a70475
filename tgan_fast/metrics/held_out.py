"""Which clips a classifier is trained on, and which others it is judged by."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tgan_fast.data import MovingDigits, VideoFrames, read_videos
from tgan_fast.data.moving_digits import scikit_learn_scans
from tgan_fast.errors import InputError

_HELD_OUT_DIGITS = 1024
_NAMED = 3


@dataclass(frozen=True)
class LabelledClips:
    """Clips with classes, in two parts.

    Attributes:
        training: to train on.
        held_out: to judge by, each clip once.
        classes: names of the numbers of their labels.
        summary: one line on what they are.
        remarks: on classes that are left out, or cannot be judged.
    """

    training: MovingDigits | VideoFrames
    held_out: MovingDigits | VideoFrames
    classes: tuple[str, ...]
    summary: str
    remarks: tuple[str, ...] = ()


def split_digits(share: float, *, digits: int = 1, channels: int = 1, seed: int = 0) -> LabelledClips:
    """Moving digits, held out by handwriting: none of those in `held_out` is in `training`.

    Args:
        share: of the handwritings of each class that are held out, more than 0 and less than 1.
        digits, channels: see `MovingDigits`.
        seed: of the split and of the clips.
    """
    images, labels = scikit_learn_scans()
    held_out = hold_out(labels, np.arange(len(labels)), share, seed=seed, fewest=digits)
    options = {"digits": digits, "channels": channels}
    return LabelledClips(
        MovingDigits(**options, seed=seed, scans=(images[~held_out], labels[~held_out])),
        # Another seed, or else places and speeds would be those of training.
        MovingDigits(_HELD_OUT_DIGITS, **options, seed=seed + 1, scans=(images[held_out], labels[held_out])),
        tuple(map(str, range(10))),
        f"moving digits: {(~held_out).sum():,} handwritings to train on, {held_out.sum():,} others held out",
    )


def split_videos(path: Path, share: float, *, seed: int = 0) -> LabelledClips:
    """Prepared videos, half of those to train on mirrored, held out by group where groups are known, else by video.

    Args:
        path: as `read_videos` takes it.
        share: of the groups, or videos, of each class that are held out, more than 0 and less than 1.
        seed: of the split.

    Raises:
        InputError: as `read_videos`; fewer than two classes; no class with two groups or videos.
    """
    dataset = VideoFrames(read_videos(path))
    videos = dataset.videos
    present, labels = np.unique(videos.labels, return_inverse=True)
    if len(present) < 2:
        raise InputError(
            f"the videos of {path} are of {'one class' if videos.class_names else 'no class'}, but a classifier tells "
            "two or more apart: prepare a folder that has a folder of videos for each class"
        )
    classes = tuple(videos.class_names[number] for number in present)
    # Clips of a group of UCF-101 show one person in one place: held out by video, the others would give them away.
    held_out = hold_out(labels, videos.groups, share, seed=seed)
    grouped = np.unique((labels, videos.groups), axis=1).shape[1] < len(labels)
    unit = "group" if grouped else "video"
    if not held_out.any():
        raise InputError(f"every class of {path} has one {unit} alone, so that none can be held out: prepare more")

    def part(chosen, flip):
        return VideoFrames(replace(videos.only(chosen), labels=labels[chosen]), flip=flip)

    return LabelledClips(
        part(~held_out, flip=True),
        part(held_out, flip=False),
        classes,
        f"{dataset.summary}; to train on: {(~held_out).sum():,}; "
        f"held out: {held_out.sum():,}{' of other groups' if grouped else ''}",
        tuple(_remarks(videos.class_names, classes, np.isin(range(len(classes)), labels[held_out]), unit)),
    )


def hold_out(labels: np.ndarray, groups: np.ndarray, share: float, *, seed: int, fewest: int = 1) -> np.ndarray:
    """Choose whole groups at random, about equally many of each class.

    Args:
        labels: the class of each item: integers [n].
        groups: what must not be torn apart: items of equal class and equal number: integers [n].
        share: of the groups of each class that are chosen.
        seed: of the choice.
        fewest: groups that each class keeps, and, where it has enough for that, also gives.

    Returns:
        Which items are held out: bool [n].
    """
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = labels == label
        shuffled = random.permutation(np.unique(groups[of_class]))
        count = min(max(round(share * len(shuffled)), fewest), len(shuffled) - fewest)
        held_out |= of_class & np.isin(groups, shuffled[: max(count, 0)])
    return held_out


def _remarks(of_store, classes, judged, unit):
    absent = [name for name in of_store if name not in classes]
    if absent:
        yield f"classes without a video, which are left out: {_named(absent)}"
    alone = [name for name, is_judged in zip(classes, judged, strict=True) if not is_judged]
    if alone:
        yield f"classes with one {unit} alone, of which none is held out: {_named(alone)}"


def _named(names):
    further = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + further
