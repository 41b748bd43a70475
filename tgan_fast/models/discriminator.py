"""Discriminators: networks that score whole videos."""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from tgan_fast.models.conditions import check_labels
from tgan_fast.models.layers import HalvingConv3d, OneFrameConv3d, SameConv2d, TwoFrameConv3d, WholeConv2d
from tgan_fast.nn import WEIGHTED, BatchNormAct3d
from tgan_fast.sizes import FRAMES, IMAGE_SIZE, SMALLEST_IMAGE, check_sizes, doublings, scaled

NEGATIVE_SLOPE = 0.2
_MOST_CHANNELS = 512


class Discriminator(nn.Module, ABC):
    """Network that scores videos, without a sigmoid.

    Args:
        width: Multiplier of all channel counts; 1 is the paper's.
        channels: Number of color channels of the videos.
        clip_frames: Number of frames of a video, 8 to 64.
        image_size: Side of a frame in pixels: 16, 32, 64 or 128.
        classes: Number of class labels; 0 for a network without labels. A label is a set of one-hot maps, additional
            channels of the first layer.

    Raises:
        ValueError: There are no networks for videos of this size.
    """

    def __init__(
        self,
        width: float = 1.0,
        channels: int = 3,
        *,
        clip_frames: int = FRAMES,
        image_size: int = IMAGE_SIZE,
        classes: int = 0,
    ):
        super().__init__()
        check_sizes(clip_frames, image_size)
        self.width, self.channels, self.classes = width, channels, classes
        self.clip_frames, self.image_size = clip_frames, image_size

    def forward(self, videos: torch.Tensor, groups: int = 1, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Score videos.

        Args:
            videos: Videos [N, channels, clip_frames, image_size, image_size].
            groups: Number of equal consecutive slices of the batch, each with separate batch-norm statistics: the
                result equals one call per slice, but with larger and fewer convolutions.
            labels: Class labels, int64 [N], each less than `classes`; None where there are no classes.

        Returns:
            Scores [N], without a sigmoid; in float32 even if the layers compute in bfloat16.

        Raises:
            ValueError: Videos or labels do not fit.
        """
        self.check(videos)
        check_labels(labels, len(videos), self.classes, "discriminator")
        return self.scores(videos, groups, labels)

    def freeze_(self, layers: int) -> None:
        """Exclude the first layers, nearest to the videos, and their batch norms from training.

        Args:
            layers: Number of convolutions and linear layers, less than there are.

        Source: Mo, Cho and Shin, Freeze the Discriminator, arXiv:2002.10964.
        """
        number = 0
        for module in self.modules():
            number += isinstance(module, WEIGHTED)
            if 0 < number <= layers:
                module.requires_grad_(False)

    @abstractmethod
    def scores(self, videos: torch.Tensor, groups: int, labels: torch.Tensor | None) -> torch.Tensor:
        """Score videos whose shape and labels are checked; arguments as for `forward`."""

    def check(self, videos: torch.Tensor) -> None:
        """Raise a ValueError unless `videos` has the shape that `forward` takes."""
        expected = (self.channels, self.clip_frames, self.image_size, self.image_size)
        if videos.shape[1:] != expected:
            raise ValueError(f"the discriminator takes videos {['N', *expected]} and got {list(videos.shape)}")


class VideoDiscriminator(Discriminator):
    """TGAN's discriminator, 11,033,281 parameters by default; its state dict is that of the PyTorch notebook's model.

    3D convolutions halve a video in space until 4×4 pixels are left, and in time as long as there are frames to halve.

    Args:
        width, channels, options: Arguments of `Discriminator`.

    Source: Saito et al., arXiv:1611.06624, table 1.
    """

    def __init__(self, width: float = 1.0, channels: int = 3, **options):
        super().__init__(width, channels, **options)
        frames, before = self.clip_frames, channels + self.classes
        # Layers are named by their positions in an nn.Sequential that also holds the activations.
        layers = OrderedDict()
        for step, after in enumerate(_channels(self.image_size, width)):
            layers[f"{max(0, 3 * step - 1)}"] = _layer_for(frames)(before, after)
            if step:
                layers[f"{3 * step}"] = BatchNormAct3d(after, NEGATIVE_SLOPE)
            frames, before = max(1, frames // 2), after
        self.model3d = nn.Sequential(layers)
        self.conv2d = WholeConv2d(before * frames, SMALLEST_IMAGE)
        for layer in (*self.model3d, self.conv2d):
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                nn.init.xavier_normal_(layer.weight, gain=math.sqrt(2))

    def scores(self, videos: torch.Tensor, groups: int, labels: torch.Tensor | None) -> torch.Tensor:
        first, *rest = self.model3d
        x = first(videos) if labels is None else first.with_labels(videos, labels)
        # In place: a convolution's backward does not read its output.
        x = F.leaky_relu_(x, NEGATIVE_SLOPE)
        for layer in rest:
            x = layer(x, groups) if isinstance(layer, BatchNormAct3d) else layer(x)
        return self.conv2d(x.squeeze(2) if x.shape[2] == 1 else x.transpose(1, 2).flatten(1, 2))


class FramesDiscriminator(Discriminator):
    """2D discriminator of frames as channels of one image: convolution, leaky ReLU and max pool in turn, linear head.

    Summaries of TGAN describe it in this form. It has no batch norm.

    Args:
        width, channels, options: Arguments of `Discriminator`.
    """

    def __init__(self, width: float = 1.0, channels: int = 3, **options):
        super().__init__(width, channels, **options)
        before = channels * self.clip_frames + self.classes
        self.blocks = nn.ModuleList()
        for after in _channels(self.image_size, width):
            self.blocks.append(SameConv2d(before, after))
            before = after
        self.head = nn.Linear(before * SMALLEST_IMAGE**2, 1)

    def scores(self, videos: torch.Tensor, groups: int, labels: torch.Tensor | None) -> torch.Tensor:
        first, *rest = self.blocks
        x = videos.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        x = _pooled(first(x) if labels is None else first.with_labels(x, labels))
        for block in rest:
            x = _pooled(block(x))
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.flatten(1).to(dtype), self.head.weight.to(dtype), self.head.bias.to(dtype)).squeeze(1)


def _channels(image_size, width):
    """Return the channels of each layer; the last one leaves 4×4 pixels."""
    return [scaled(min(64 << step, _MOST_CHANNELS), width) for step in range(doublings(image_size))]


def _layer_for(frames):
    """Return the class of the layer for an input of this number of frames."""
    return {1: OneFrameConv3d, 2: TwoFrameConv3d}.get(frames, HalvingConv3d)


def _pooled(x):
    # Pool first: it commutes with a monotonic activation, and leaves a quarter of the values to activate.
    return F.leaky_relu_(F.max_pool2d(x, 2), NEGATIVE_SLOPE)
