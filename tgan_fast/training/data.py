"""The data of a training run, as its config tells."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tgan_fast.data import ClipDataset, MovingDigits, VideoFrames
from tgan_fast.data.idx import read_digits
from tgan_fast.errors import InputError
from tgan_fast.training.config import TrainingConfig


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on.

    Attributes:
        dataset: the clips.
        summary: one line on what they are; None where there is nothing to say.
        fingerprint: changes with what lies on the disk; None where nothing does.
        checksum: of all frames of videos, where it is known without reading them.
        class_names: by their numbers, where they are known.
    """

    dataset: ClipDataset | VideoFrames
    summary: str | None = None
    fingerprint: str | None = None
    checksum: str | None = None
    class_names: tuple[str, ...] = ()


def with_data(config: TrainingConfig, data: Path | None) -> TrainingConfig:
    """The config of a run on other prepared videos, if any are given, whatever it was trained on."""
    if data is None:
        return config
    return TrainingConfig(**config.model_dump() | {"data": str(data), "digit_images": None, "axes": None})


def open_data(config: TrainingConfig) -> TrainingData:
    """Open what a run trains on: `config.data`, or moving digits.

    Raises:
        InputError: it is not there, damaged or of no use for training.
    """
    if config.data is not None:
        if not Path(config.data).exists():
            raise InputError(f"there is no {config.data}: if the data has moved, give its new place with --data")
        # Here, since it brings along the codecs, for which others need not wait.
        from tgan_fast.data.prepared_videos import open_videos

        opened = open_videos(
            Path(config.data),
            stride=config.frame_stride,
            short=config.short_videos,
            weighting=config.weighting,
            last_start=config.last_start,
            crop=config.crop,
            flip=config.flip,
            axes=config.axes,
            clip_frames=config.frames,
            image_size=config.image_size,
        )
        return TrainingData(opened.videos, opened.summary, opened.fingerprint, opened.checksum, opened.classes)
    options = {
        "digits": config.digits,
        "channels": config.channels,
        "seed": config.seed,
        "clip_frames": config.frames,
        "image_size": config.image_size,
    }
    if config.digit_images is None:
        return TrainingData(MovingDigits(**options))
    images, labels = read_digits(Path(config.digit_images))
    fingerprint = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    digits = MovingDigits(**options, scans=(images, labels))
    return TrainingData(digits, f"{len(images):,} handwritten digits of {config.digit_images}", fingerprint)


def classes_of(config: TrainingConfig, data: TrainingData) -> int:
    """How many classes a conditional run has: as its config says, or else its data.

    Raises:
        InputError: the data has no classes, or more than the config says.
    """
    found = getattr(data.dataset, "classes", None)
    if found is None and config.classes is None:
        raise InputError("the data set does not tell its number of classes: set classes")
    if found is not None and found < 2:
        raise InputError("conditional needs videos of two classes or more, and the data tells of none: leave it out")
    if found is not None and config.classes is not None and found > config.classes:
        raise InputError(f"classes is {config.classes}, but the data has {found}: leave it out")
    return config.classes or found
