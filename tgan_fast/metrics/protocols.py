"""Protocols: everything that a score depends on besides the videos and the classifier's weights.

    tgan    as in the code of Saito et al., 2017 (github.com/pfnet-research/tgan, evaluation/calc_inception.py)
    tgan2   as in the code of Saito et al., 2020 (github.com/pfnet-research/tgan2)
    plain   for classifiers that this package trains: videos scaled to 16 frames of 64×64 pixels

Scores under different protocols, or with different classifiers, cannot be compared.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from tgan_fast.errors import InputError
from tgan_fast.metrics.classifier import Classifier
from tgan_fast.metrics.classifier_networks import C3D_SIZE
from tgan_fast.models import FRAMES, IMAGE_SIZE
from tgan_fast.pixels import to_videos

ProtocolName = Literal["tgan", "tgan2", "plain"]

# Rows, and columns, of C3D's input within the larger mean.
_TOP = slice(8, 8 + C3D_SIZE)


@dataclass(frozen=True)
class Protocol:
    """Definition of how a score is computed.

    Attributes:
        name: Name that is printed and stored with every score.
        architecture: Architecture of the classifiers that it is for.
        prepare: Function from videos [N, C, T, H, W] in [-1, 1], with the classifier's C, and the classifier's mean to
            its input.
        scaled: Function from real clips uint8 [N, T, H, W, C] to videos for `prepare`.
        layer: Layer of the features for Fréchet distances.
        samples: Number of generated videos in a run.
        runs: Number of runs for the mean and the standard deviation.
        splits: Number of groups of a run whose inception scores are averaged.
        epsilon: Number added to probabilities before their logarithms are taken.
        real_clips: Number of real clips for the statistics of real data.
        clips_per_video: Number of real clips from each video of a data set of videos; None: `real_clips` in all.
        any_size: Whether `prepare` takes videos of any length and size; False: only 16 frames of 64×64 pixels.
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
    clips_per_video: int | None = None
    any_size: bool = False


def protocol_for(classifier: Classifier) -> ProtocolName:
    """Return the default protocol of a classifier: `tgan2` for C3D, else `plain`."""
    return "tgan2" if classifier.architecture == "c3d" else "plain"


def check_size(clip_frames: int, image_size: int, protocol: Protocol | None) -> None:
    """Raise an InputError unless videos of this size can be scored under `protocol`; None: by I3D."""
    any_size = protocol is not None and protocol.any_size
    if not any_size and (clip_frames, image_size) != (FRAMES, IMAGE_SIZE):
        name = "fvd" if protocol is None else f"protocol {protocol.name}"
        raise InputError(
            f"{name} needs videos of {FRAMES} frames of {IMAGE_SIZE}×{IMAGE_SIZE} pixels, "
            f"but these have {clip_frames} of {image_size}×{image_size}: train with the default frames and image_size, "
            "or score with a classifier of train-classifier"
        )


def _prepare_tgan(videos, mean):
    """Resize levels to 128 by cubic splines as OpenCV does (a = -0.75), subtract the mean, crop to 112; BGR."""
    rows = _cubic_rows()[_TOP].to(videos)
    # Matrix products are faster than cubic interpolation and compute only the middle.
    resized = rows @ (videos.flip(1) * 128 + 128) @ rows.T
    return resized - mean[..., 21:149][..., _TOP, _TOP].to(videos)


@functools.cache
def _cubic_rows():
    """Return the matrix [128, 64] that resizes a column."""
    return F.interpolate(torch.eye(64)[None, None], size=(128, 64), mode="bicubic")[0, 0]


def _prepare_tgan2(videos, mean):
    """Resize levels to 112 linearly with aligned corners as Chainer does, subtract the middle of the mean; BGR."""
    levels = videos.flip(1) * 128
    resized = _map_frames(
        levels, lambda frames: F.interpolate(frames, size=(C3D_SIZE, C3D_SIZE), mode="bilinear", align_corners=True)
    )
    return resized + (128 - mean[..., _TOP, _TOP].to(videos))


def _prepare_plain(videos, mean):
    if videos.shape[2] != FRAMES:
        nearest = torch.arange(FRAMES) * videos.shape[2] // FRAMES
        videos = videos[:, :, nearest]
    if videos.shape[-1] == IMAGE_SIZE:
        return videos
    return _map_frames(
        videos, lambda frames: F.interpolate(frames, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    )


def _scaled_as_the_authors(clips):
    """Scale levels from 0–255 to -1–0.992; `_prepare_tgan` and `_prepare_tgan2` restore the levels."""
    return (clips.permute(0, 4, 1, 2, 3).float() - 128) / 128


def _map_frames(videos, function):
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
            clips_per_video=10,
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
            any_size=True,
        ),
    )
}
