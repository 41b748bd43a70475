"""TGAN's generator: a latent becomes sixteen frame latents in time, and each of those a frame."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from tgan_fast.models.widths import scaled
from tgan_fast.nn import BatchNormAct1d, BatchNormAct2d
from tgan_fast.ops.convolution import (
    conv_transpose1d_doubling,
    conv_transpose2d_doubling,
    conv_transpose2d_same,
)

FRAMES = 16
IMAGE_SIZE = 64


class PointwiseConvTranspose1d(nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` of kernel 1: [N, C, L] → [N, out, L], a linear layer that leaves the channels last."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.transpose(1, 2), self.weight.squeeze(2).t(), self.bias).transpose(1, 2)


class DoublingConvTranspose1d(nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` of kernel 4, stride 2 and padding 1: [N, C, L] → [N, out, 2·L]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv_transpose1d_doubling(x, self.weight, self.bias)


class DoublingConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of kernel 4, stride 2 and padding 1: [N, C, H, W] → [N, out, 2·H, 2·W]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv_transpose2d_doubling(x, self.weight, self.bias)

    def on_still_and_moving(self, still: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """The layer on the channels [still, moving] of frames, of which those of a video share `still`.

        The layer is linear, so its share of `still` is computed once a video and added to every frame.

        Args:
            still: [N, C/2, H, W].
            moving: [N·frames, C/2, H, W].

        Returns:
            [N·frames, out, 2·H, 2·W].
        """
        for_still, for_moving = self.weight.chunk(2)
        video = conv_transpose2d_doubling(still, for_still, self.bias)
        return _AddToFrames.apply(conv_transpose2d_doubling(moving, for_moving), video)


class _AddToFrames(torch.autograd.Function):
    """frames [N·F, …] += videos [N, …]: autograd's own way for a tensor seen as [N, F, …] copies the gradient."""

    @staticmethod
    def forward(ctx, frames, videos):
        ctx.mark_dirty(frames)
        ctx.videos = len(videos)
        frames.unflatten(0, (ctx.videos, -1)).add_(videos.unsqueeze(1))
        return frames

    @staticmethod
    def backward(ctx, gradient):
        # Summed with the channels last, or else the sum would have them first.
        of_videos = gradient.movedim(1, -1).unflatten(0, (ctx.videos, -1)).sum(1).movedim(-1, 1)
        return gradient, of_videos


class SameConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of stride 1 and an odd kernel that keeps the size: [N, C, H, W] → [N, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv_transpose2d_same(x, self.weight, self.bias)


class TemporalGenerator(nn.Module):
    """Latents [N, latent_dim] → frame latents [N, 16, latent_dim] in (-1, 1)."""

    def __init__(self, width: float = 1.0, latent_dim: int = 100):
        super().__init__()
        c512, c256, c128 = (scaled(c, width) for c in (512, 256, 128))
        # The names are the positions that the layers have in a plain nn.Sequential with its activations.
        layers = OrderedDict()
        layers["0"] = PointwiseConvTranspose1d(latent_dim, c512)
        layers["1"] = BatchNormAct1d(c512)
        layers["3"] = DoublingConvTranspose1d(c512, c256)
        layers["4"] = BatchNormAct1d(c256)
        layers["6"] = DoublingConvTranspose1d(c256, c128)
        layers["7"] = BatchNormAct1d(c128)
        layers["9"] = DoublingConvTranspose1d(c128, c128)
        layers["10"] = BatchNormAct1d(c128)
        layers["12"] = DoublingConvTranspose1d(c128, latent_dim)
        self.model = nn.Sequential(layers)
        for layer in self.model:
            if isinstance(layer, nn.ConvTranspose1d):
                nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(2))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.model(z.unsqueeze(2)).tanh().transpose(1, 2)


class VideoGenerator(nn.Module):
    """TGAN's generator, 4,449,159 parameters by default; its state dict is that of the PyTorch notebook's model.

    Args:
        width: multiplier of all channel counts; 1 is the paper's.
        latent_dim: size of the latent and of the frame latents.
        channels: colour channels of the videos.

    Source: Saito et al., arXiv:1611.06624, table 1.
    """

    def __init__(self, width: float = 1.0, latent_dim: int = 100, channels: int = 3):
        super().__init__()
        self.width, self.latent_dim, self.channels = width, latent_dim, channels
        c256, c128, c64, c32 = (scaled(c, width) for c in (256, 128, 64, 32))
        self.temp = TemporalGenerator(width, latent_dim)
        self.fast = nn.Sequential(nn.Linear(latent_dim, c256 * 16, bias=False), BatchNormAct1d(c256 * 16))
        self.slow = nn.Sequential(nn.Linear(latent_dim, c256 * 16, bias=False), BatchNormAct1d(c256 * 16))
        layers = OrderedDict()
        layers["0"] = DoublingConvTranspose2d(2 * c256, c256)
        layers["1"] = BatchNormAct2d(c256)
        layers["3"] = DoublingConvTranspose2d(c256, c128)
        layers["4"] = BatchNormAct2d(c128)
        layers["6"] = DoublingConvTranspose2d(c128, c64)
        layers["7"] = BatchNormAct2d(c64)
        layers["9"] = DoublingConvTranspose2d(c64, c32)
        layers["10"] = BatchNormAct2d(c32)
        layers["12"] = SameConvTranspose2d(c32, channels, kernel_size=3)
        self.model = nn.Sequential(layers)
        for layer in (self.fast[0], self.slow[0], *self.model):
            if isinstance(layer, (nn.Linear, nn.ConvTranspose2d)):
                nn.init.uniform_(layer.weight, -0.01, 0.01)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Generate videos.

        Args:
            z: latents [N, latent_dim], uniform in (-1, 1); N ≥ 2 in training mode.

        Returns:
            Videos [N, channels, 16, 64, 64] in (-1, 1).
        """
        return self.frames(z).tanh().unflatten(0, (-1, FRAMES)).transpose(1, 2)

    def frames(self, z: torch.Tensor) -> torch.Tensor:
        """The videos' frames [N·16, channels, 64, 64] before their tanh, from latents as in `forward`."""
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"the generator takes latents [N, {self.latent_dim}] and got {list(z.shape)}")
        fast, slow = self.fast(self.temp(z).flatten(0, 1)), self.slow(z)
        x = self.model[0].on_still_and_moving(_image(slow), _image(fast))
        for layer in self.model[1:]:
            x = layer(x)
        return x


def _image(features):
    """[N, C·16], channels first as in the notebook's linear layers, → [N, C, 4, 4] with the channels last in memory."""
    return features.unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
