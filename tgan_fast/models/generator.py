"""Generators of videos: latents in time first, and of each of those a frame."""

from abc import ABC, abstractmethod
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from tgan_fast.models.conditions import check_labels, one_hot
from tgan_fast.models.latents import LATENTS
from tgan_fast.models.layers import DoublingConvTranspose2d, SameConvTranspose2d
from tgan_fast.models.temporal_generators import TemporalGenerator
from tgan_fast.nn import BatchNormAct1d, BatchNormAct2d
from tgan_fast.sizes import FRAMES, IMAGE_SIZE, check_sizes, doublings, scaled


class Generator(nn.Module, ABC):
    """A temporal generator `temp`, and what makes frames of its frame latents.

    Args:
        width: multiplier of all channel counts; 1 is the paper's.
        latent_dim: size of the latent and of the frame latents.
        channels: color channels of the videos.
        clip_frames: of a video, 8 to 64.
        image_size: pixels of a frame's sides: 16, 32, 64 or 128.
        temporal: class of the temporal generator.
        classes: how many class labels there are; 0: it takes no labels.
        latent: distribution of the latents, a name in `tgan_fast.models.latents.LATENTS`.

    Attributes:
        inputs: size of what `conditioned` makes: a latent and a one-hot label.

    Raises:
        ValueError: there are no networks for videos of this size.
    """

    def __init__(
        self,
        width: float = 1.0,
        latent_dim: int = 100,
        channels: int = 3,
        *,
        clip_frames: int = FRAMES,
        image_size: int = IMAGE_SIZE,
        temporal: type[nn.Module] = TemporalGenerator,
        classes: int = 0,
        latent: str = "uniform",
    ):
        super().__init__()
        check_sizes(clip_frames, image_size)
        self.width, self.latent_dim, self.channels, self.classes = width, latent_dim, channels, classes
        self.clip_frames, self.image_size = clip_frames, image_size
        self.latent = LATENTS[latent]
        self.inputs = latent_dim + classes
        self.temp = temporal(self.inputs, latent_dim, clip_frames, width)

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Generate videos.

        Args:
            z: latents [N, latent_dim]; N ≥ 2 in training mode.
            labels: int64 [N], each less than `classes`; None where there are no classes.

        Returns:
            Videos [N, channels, clip_frames, image_size, image_size] in (-1, 1).
        """
        return self.frames(self.conditioned(z, labels)).tanh().unflatten(0, (-1, self.clip_frames)).transpose(1, 2)

    def conditioned(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Latents and labels, as `forward` takes them, as one tensor [N, inputs].

        Raises:
            ValueError: their shapes do not fit, or labels are missing, or not wanted.
        """
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"the generator takes latents [N, {self.latent_dim}] and got {list(z.shape)}")
        check_labels(labels, len(z), self.classes, "generator")
        return z if labels is None else torch.cat([z, one_hot(labels, self.classes, z.dtype)], 1)

    def frames(self, inputs: torch.Tensor, interpolate: int = 1) -> torch.Tensor:
        """Frames before their tanh, of what `conditioned` makes.

        Args:
            inputs: [N, inputs].
            interpolate: this many times as many frames of the same motion: their latents are interpolated.

        Returns:
            [N·clip_frames·interpolate, channels, image_size, image_size].
        """
        self.check_inputs(inputs)
        latents = self.temp(inputs)
        if interpolate > 1:
            length = self.clip_frames * interpolate
            latents = F.interpolate(latents.mT, size=length, mode="linear", align_corners=True).mT
        return self.images(inputs, latents)

    def check_inputs(self, inputs: torch.Tensor) -> None:
        """Raise a ValueError unless `inputs` has the shape that `frames` takes."""
        if inputs.dim() != 2 or inputs.shape[1] != self.inputs:
            named = "latents and one-hot labels" if self.classes else "latents"
            raise ValueError(f"the generator takes {named} [N, {self.inputs}] and got {list(inputs.shape)}")

    @abstractmethod
    def images(self, inputs: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Frames [N·T, channels, image_size, image_size] of inputs [N, inputs] and frame latents [N, T, latent_dim]."""


class VideoGenerator(Generator):
    """TGAN's generator, 4,449,159 parameters by default; its state dict is that of the PyTorch notebook's model.

    A frame comes from two latents: that of the frame, and the video's own, which is its content. Labels go into the
    temporal generator and into the content.

    Args:
        width, latent_dim, channels, options: see `Generator`.

    Source: Saito et al., arXiv:1611.06624, table 1.
    """

    def __init__(self, width: float = 1.0, latent_dim: int = 100, channels: int = 3, **options):
        super().__init__(width, latent_dim, channels, **options)
        steps = doublings(self.image_size)
        c256, *rest = (scaled(256 / 2**step, width) for step in range(steps))
        self.fast = nn.Sequential(nn.Linear(latent_dim, c256 * 16, bias=False), BatchNormAct1d(c256 * 16))
        self.slow = nn.Sequential(nn.Linear(self.inputs, c256 * 16, bias=False), BatchNormAct1d(c256 * 16))
        before = [2 * c256, c256, *rest]
        # The names are the positions that the layers have in a plain nn.Sequential with its activations.
        layers = OrderedDict()
        for step, after in enumerate(before[1:]):
            layers[f"{3 * step}"] = DoublingConvTranspose2d(before[step], after)
            layers[f"{3 * step + 1}"] = BatchNormAct2d(after)
        layers[f"{3 * steps}"] = SameConvTranspose2d(before[-1], channels, kernel_size=3)
        self.model = nn.Sequential(layers)
        for layer in (self.fast[0], self.slow[0], *self.model):
            if isinstance(layer, (nn.Linear, nn.ConvTranspose2d)):
                nn.init.uniform_(layer.weight, -0.01, 0.01)

    def images(self, inputs: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        fast, slow = self.fast(latents.flatten(0, 1)), self.slow(inputs)
        x = self.model[0].on_still_and_moving(_image(slow), _image(fast))
        for layer in self.model[1:]:
            x = layer(x)
        return x


class FrameGenerator(Generator):
    """A frame from its own latent alone, as in DCGAN, and from the label.

    Args:
        width, latent_dim, channels, options: see `Generator`.
    """

    def __init__(self, width: float = 1.0, latent_dim: int = 100, channels: int = 3, **options):
        super().__init__(width, latent_dim, channels, **options)
        steps = doublings(self.image_size)
        counts = [scaled(512 / 2**step, width) for step in range(steps)]
        self.first = nn.Sequential(
            nn.Linear(latent_dim + self.classes, counts[0] * 16, bias=False), BatchNormAct1d(counts[0] * 16)
        )
        # The names are the positions that the layers have in a plain nn.Sequential with its activations.
        layers = OrderedDict()
        for step in range(steps - 1):
            layers[f"{3 * step}"] = DoublingConvTranspose2d(*counts[step : step + 2])
            layers[f"{3 * step + 1}"] = BatchNormAct2d(counts[step + 1])
        layers[f"{3 * (steps - 1)}"] = DoublingConvTranspose2d(counts[-1], channels, bias=True)
        self.model = nn.Sequential(layers)
        for layer in (self.first[0], *self.model):
            if isinstance(layer, (nn.Linear, nn.ConvTranspose2d)):
                nn.init.normal_(layer.weight, std=0.02)

    def images(self, inputs: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        labels = inputs[:, None, self.latent_dim :].expand(-1, latents.shape[1], -1)
        return self.model(_image(self.first(torch.cat([latents, labels], 2).flatten(0, 1))))


def _image(features):
    """[N, C·16], channels first as in the notebook's linear layers, → [N, C, 4, 4] with the channels last in memory."""
    return features.unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
