"""Protocols: all that a score depends on besides the videos and the classifier's weights.

    tgan    of the code of Saito et al., 2017 (github.com/pfnet-research/tgan, evaluation/calc_inception.py)
    tgan2   of the code of Saito et al., 2020 (github.com/pfnet-research/tgan2)
    plain   of the classifiers that this package trains: videos as they are

Scores under different protocols, or with different classifiers, cannot be compared.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from tgan_fast.errors import InputError
from tgan_fast.metrics.c3d import SIZE
from tgan_fast.metrics.classifier import Classifier
from tgan_fast.models import FRAMES, IMAGE_SIZE
from tgan_fast.pixels import to_videos

ProtocolName = Literal["tgan", "tgan2", "plain"]

# Of the mean, which is larger than what C3D takes, the part that belongs to its input.
_TOP = slice(8, 8 + SIZE)


@dataclass(frozen=True)
class Protocol:
    """How a score is computed.

    Attributes:
        name: printed and stored with every score.
        architecture: of the classifiers that it is for.
        prepare: generated videos [N, C, 16, 64, 64] in [-1, 1], C the classifier's, and its mean → its input.
        scaled: real clips uint8 [N, 16, 64, 64, C] → videos that `prepare` takes as it takes generated ones.
        layer: of the features for Fréchet distances.
        samples, runs: generated videos of a run, and how many runs the mean and the standard deviation are of.
        splits: parts of a run whose inception scores are averaged.
        epsilon: added to probabilities before their logarithms are taken.
        real_clips: that the statistics of real data are of.
        passes: of data sets of videos that many clips of each video instead, as the authors' code takes them.
    """

    name: ProtocolName
    architecture: str
    prepare: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    scaled: Callable[[torch.Tensor], torch.Tensor]
    layer: str
    samples: int
    runs: int
    splits: int
    epsilon: float
    real_clips: int
    passes: int | None = None


def protocol_for(classifier: Classifier) -> ProtocolName:
    """What a classifier is used under if nothing else is said: `tgan2` for C3D."""
    return "tgan2" if classifier.architecture == "c3d" else "plain"


def check_size(clip_frames: int, image_size: int) -> None:
    """Raise an InputError unless there are scores of videos of this size."""
    if (clip_frames, image_size) != (FRAMES, IMAGE_SIZE):
        raise InputError(
            f"scores are of videos of {FRAMES} frames of {IMAGE_SIZE}×{IMAGE_SIZE} pixels, "
            f"but these have {clip_frames} of {image_size}×{image_size}: train with the default frames and image_size"
        )


def _prepare_tgan(videos, mean):
    """Levels resized to 128 by cubic splines (a = -0.75, as OpenCV's), BGR, minus the mean, the middle 112 of 128."""
    rows = _cubic_rows()[_TOP].to(videos)
    # As products of matrices, which are quicker than cubic interpolation, and have to compute the middle alone.
    resized = rows @ (videos.flip(1) * 128 + 128) @ rows.T
    return resized - mean[..., 21:149][..., _TOP, _TOP].to(videos)


@functools.cache
def _cubic_rows():
    """Matrix [128, 64] that resizes a column."""
    return F.interpolate(torch.eye(64)[None, None], size=(128, 64), mode="bicubic")[0, 0]


def _prepare_tgan2(videos, mean):
    """Levels resized straight to 112, linearly from corner to corner as Chainer does, BGR, minus a part of the mean."""
    levels = videos.flip(1) * 128
    resized = _of_frames(
        levels, lambda frames: F.interpolate(frames, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
    )
    return resized + (128 - mean[..., _TOP, _TOP].to(videos))


def _prepare_plain(videos, mean):
    return videos


def _scaled_as_the_authors(clips):
    """Levels 0 to 255 to -1 to 0.992, which `_prepare_…` make the same levels again."""
    return (clips.permute(0, 4, 1, 2, 3).float() - 128) / 128


def _of_frames(videos, function):
    frames = function(videos.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (len(videos), -1)).transpose(1, 2)


PROTOCOLS: dict[ProtocolName, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="tgan",
            architecture="c3d",
            prepare=_prepare_tgan,
            scaled=_scaled_as_the_authors,
            layer="fc7",
            samples=9984,  # 208 batches of 48
            runs=4,
            splits=1,
            epsilon=1e-7,
            real_clips=4 * 9984,
        ),
        Protocol(
            name="tgan2",
            architecture="c3d",
            prepare=_prepare_tgan2,
            scaled=_scaled_as_the_authors,
            layer="fc7",
            samples=2048,
            runs=10,
            splits=1,
            epsilon=1e-20,
            real_clips=10 * 2048,
            passes=10,
        ),
        Protocol(
            name="plain",
            architecture="small",
            prepare=_prepare_plain,
            scaled=to_videos,
            layer="mean",
            samples=2048,
            runs=10,
            splits=1,
            epsilon=1e-20,
            real_clips=2 * 2048,
        ),
    )
}
