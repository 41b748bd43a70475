"""Generators of videos: a temporal generator makes frame latents, an image generator a frame from each."""

import math
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
    """Temporal generator `temp` followed by an image generator.

    Args:
        width: Multiplier of all channel counts; 1 is the paper's.
        latent_dim: Size of the latent and of the frame latents.
        channels: Number of color channels of the videos.
        clip_frames: Number of frames of a video, 8 to 64.
        image_size: Side of a frame in pixels: 16, 32, 64 or 128.
        temporal: Class of the temporal generator.
        classes: Number of class labels; 0 for a network without labels.
        latent: Distribution of the latents, a name in `tgan_fast.models.latents.LATENTS`.

    Attributes:
        inputs: Size of a latent and a one-hot label together, as `conditioned` returns them.

    Raises:
        ValueError: There are no networks for videos of this size.
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

    def forward(self, z: torch.Tensor, labels: torch.Tensor | None = None, frames: int | None = None) -> torch.Tensor:
        """Generate videos.

        Args:
            z: Latents [N, latent_dim]; N ≥ 2 in training mode. If `windows(frames)` is more than 1, that many latents
                for each video, [N, windows, latent_dim].
            labels: Class labels, int64 [N], each less than `classes`; None where there are no classes.
            frames: Number of frames; None: `clip_frames`.

        Returns:
            Videos [N, channels, frames, image_size, image_size] in (-1, 1).
        """
        frames = frames or self.clip_frames
        videos = self.frames(self.conditioned(z, labels), length=frames).tanh()
        return videos.unflatten(0, (-1, frames)).transpose(1, 2)

    def windows(self, frames: int) -> int:
        """Return the number of latents that a video with this number of frames is made from.

        A recurrent temporal generator makes a video of any length from one latent. Transposed convolutions need a
        latent for each window of `clip_frames` frames; the first one is also that of the content.
        """
        return self.temp.windows(frames)

    def conditioned(self, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return latents and one-hot labels as one tensor [N, inputs], or [N, windows, inputs] for several windows.

        Arguments are those of `forward`.

        Raises:
            ValueError: Shapes do not fit, labels are missing, or the network takes none.
        """
        if z.dim() not in (2, 3) or z.shape[-1] != self.latent_dim:
            raise ValueError(f"the generator takes latents [N, {self.latent_dim}] and got {list(z.shape)}")
        check_labels(labels, len(z), self.classes, "generator")
        if labels is None:
            return z
        encoded = one_hot(labels, self.classes, z.dtype)
        if z.dim() == 3:
            encoded = encoded.unsqueeze(1).expand(-1, z.shape[1], -1)
        return torch.cat([z, encoded], -1)

    def frames(self, inputs: torch.Tensor, interpolate: int = 1, length: int | None = None) -> torch.Tensor:
        """Return frames before the final tanh.

        Args:
            inputs: Latents and labels from `conditioned`: [N, inputs], or [N, windows, inputs] for several windows.
            interpolate: Factor by which to increase the number of frames, by interpolating frame latents.
            length: Number of frames before interpolation; None: `clip_frames`.

        Returns:
            Frames [N·length·interpolate, channels, image_size, image_size].
        """
        self.check_inputs(inputs, length)
        latents = self.temp(inputs, length)
        if interpolate > 1:
            latents = F.interpolate(
                latents.mT, size=latents.shape[1] * interpolate, mode="linear", align_corners=True
            ).mT
        return self.images(inputs if inputs.dim() == 2 else inputs[:, 0], latents)

    def input_shape(self, length: int | None = None) -> tuple[int, ...]:
        """Return the shape of the inputs for one video of `length` frames: (inputs,), or (windows, inputs)."""
        windows = self.windows(length or self.clip_frames)
        return (self.inputs,) if windows == 1 else (windows, self.inputs)

    def check_inputs(self, inputs: torch.Tensor, length: int | None = None) -> None:
        """Raise a ValueError unless `inputs` has the shape that `frames` takes for videos of `length` frames."""
        expected = self.input_shape(length)
        if inputs.dim() < 2 or inputs.shape[1:] != expected:
            named = "latents and one-hot labels" if self.classes else "latents"
            shape = ", ".join(map(str, ("N", *expected)))
            raise ValueError(f"the generator takes {named} [{shape}] and got {list(inputs.shape)}")

    def set_initial_level_(self, level: float) -> None:
        """Set the bias of the last layer so that untrained videos have about this level, between -1 and 1."""
        nn.init.constant_(self.model[-1].bias, math.atanh(level))

    @abstractmethod
    def images(self, inputs: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return frames [N·T, channels, H, W] from inputs [N, inputs] and frame latents [N, T, latent_dim]."""


class VideoGenerator(Generator):
    """TGAN's generator, 4,449,159 parameters by default; its state dict is that of the PyTorch notebook's model.

    A frame depends on two latents: the frame's own, for motion, and the video's, for content. Labels enter the temporal
    generator and the content.

    Args:
        width, latent_dim, channels, options: Arguments of `Generator`.

    Source: Saito et al., arXiv:1611.06624, table 1.
    """

    def __init__(self, width: float = 1.0, latent_dim: int = 100, channels: int = 3, **options):
        super().__init__(width, latent_dim, channels, **options)
        steps = doublings(self.image_size)
        c256, *rest = (scaled(256 / 2**step, width) for step in range(steps))
        self.fast = nn.Sequential(nn.Linear(latent_dim, c256 * 16, bias=False), BatchNormAct1d(c256 * 16))
        self.slow = nn.Sequential(nn.Linear(self.inputs, c256 * 16, bias=False), BatchNormAct1d(c256 * 16))
        before = [2 * c256, c256, *rest]
        # Layers are named by their positions in an nn.Sequential that also holds the activations.
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
    """Generator whose frames depend on their own latent and the label only, as in DCGAN.

    Args:
        width, latent_dim, channels, options: Arguments of `Generator`.
    """

    def __init__(self, width: float = 1.0, latent_dim: int = 100, channels: int = 3, **options):
        super().__init__(width, latent_dim, channels, **options)
        steps = doublings(self.image_size)
        counts = [scaled(512 / 2**step, width) for step in range(steps)]
        self.first = nn.Sequential(
            nn.Linear(latent_dim + self.classes, counts[0] * 16, bias=False), BatchNormAct1d(counts[0] * 16)
        )
        # Layers are named by their positions in an nn.Sequential that also holds the activations.
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
    """Return features [N, C·16], channels first as in the notebook, as [N, C, 4, 4] with channels last in memory."""
    return features.unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
