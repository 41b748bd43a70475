"""Functions that open the data set of a training config, and the feed of its clips."""

from pathlib import Path

import numpy as np
import torch

from tgan_fast.data import ClipDataset, Feed, MovingDigits, VideoFrames, open_feed, read_videos
from tgan_fast.data.idx import read_digits
from tgan_fast.errors import InputError
from tgan_fast.metrics.real_clips import read_clips
from tgan_fast.precision import compute_dtype, resolve_precision
from tgan_fast.processes import Processes
from tgan_fast.training.config import OF_DIGITS, TrainingConfig

# Settings of evaluations during training.
_OF_EVALUATION = "evaluate_every", "classifier"


def with_data(config: TrainingConfig, data: Path | None) -> TrainingConfig:
    """Return the config for other prepared videos, without settings of the old data; unchanged if `data` is None."""
    if data is None:
        return config
    defaults = {name: TrainingConfig.model_fields[name].default for name in (*OF_DIGITS, "axes", *_OF_EVALUATION)}
    return TrainingConfig(**config.model_dump() | defaults | {"data": str(data)})


def open_data(config: TrainingConfig) -> MovingDigits | VideoFrames:
    """Open the data that a run trains on: `config.data`, or moving digits.

    Raises:
        InputError: The data is missing, damaged or unsuitable for training.
    """
    sizes = {"clip_frames": config.frames, "image_size": config.image_size}
    if config.data is None:
        scans = None if config.digit_images is None else read_digits(Path(config.digit_images))
        return MovingDigits(
            digits=config.digits,
            digit_size=config.digit_size,
            digit_speed=config.digit_speed,
            channels=config.channels,
            seed=config.seed,
            scans=scans,
            **sizes,
        )
    if not Path(config.data).exists():
        raise InputError(f"there is no {config.data}: if the data has moved, give its new path with --data")
    return VideoFrames(
        read_videos(Path(config.data), config.axes),
        stride=config.frame_stride,
        short=config.short_videos,
        weighting=config.weighting,
        last_start=config.last_start,
        crop=config.crop,
        flip=config.flip,
        **sizes,
    )


def fingerprint_and_summary(dataset: ClipDataset | VideoFrames) -> tuple[str | None, str | None]:
    """Return the fingerprint and the summary of a data set, None for each that it does not have as a text."""
    found = getattr(dataset, "fingerprint", None), getattr(dataset, "summary", None)
    fingerprint, summary = (text if isinstance(text, str) else None for text in found)
    return fingerprint, summary


def classes_of(config: TrainingConfig, dataset: ClipDataset | VideoFrames) -> int:
    """Return the number of classes of a conditional run: the config's, or else the data set's.

    Raises:
        InputError: The data has no classes, or more than the config says.
    """
    found: int | None = getattr(dataset, "classes", None)
    if found is None:
        if config.classes is None:
            raise InputError("the data set does not say how many classes it has: set classes")
        return config.classes
    if found < 2:
        raise InputError("conditional needs videos of at least two classes, which the data does not have: leave it out")
    if config.classes is not None and found > config.classes:
        raise InputError(f"classes is {config.classes}, but the data has {found}: leave it out")
    return config.classes or found


def open_run_feed(
    config: TrainingConfig, dataset: ClipDataset | VideoFrames, device: torch.device, processes: Processes
) -> Feed:
    """Return the feed of a run.

    Args:
        config: Settings of the run.
        dataset: Data set of the run.
        device: Device of the step.
        processes: Processes that train together.
    """
    return open_feed(
        dataset,
        batch_size=config.batch_size,
        batches_per_step=config.critic_steps,
        channels=config.channels,
        frames=config.frames,
        image_size=config.image_size,
        labeled=config.conditional,
        seed=config.seed,
        workers=config.workers,
        device=device,
        dtype=compute_dtype(resolve_precision(config.precision, device), torch.float32),
        rank=processes.rank,
        world_size=processes.size,
    )


def clips_to_show(dataset: ClipDataset | VideoFrames, count: int, config: TrainingConfig) -> tuple[np.ndarray, list]:
    """Return random clips of a data set, always the same ones, and their labels.

    Args:
        dataset: Data set of clips or videos.
        count: Number of clips; a data set that has fewer gives all of them.
        config: Settings of the run.

    Returns:
        Clips uint8 [n, T, H, W, config.channels] and n labels, as the data set has them.
    """
    random = np.random.default_rng(config.seed)
    numbers = random.choice(len(dataset), min(count, len(dataset)), replace=False)
    clips, labels = read_clips(dataset, numbers, random)
    return np.broadcast_to(clips, (*clips.shape[:-1], config.channels)), labels.tolist()


def class_name(dataset: ClipDataset | VideoFrames, label: int) -> str:
    """Return the name of a class, or "class 3" where classes have only numbers."""
    if isinstance(dataset, MovingDigits):
        return str(label)
    names = dataset.videos.class_names if isinstance(dataset, VideoFrames) else ()
    return names[label] if label < len(names) else f"class {label}"
