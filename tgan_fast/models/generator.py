"""TGAN's generator: a latent becomes sixteen frame latents in time, and each of those a frame."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from tgan_fast.models.widths import scaled
from tgan_fast.nn import BatchNormAct1d, BatchNormAct2d

FRAMES = 16
IMAGE_SIZE = 64


class TemporalGenerator(nn.Module):
    """Latents [N, latent_dim] → frame latents [N, 16, latent_dim] in (-1, 1)."""

    def __init__(self, width: float = 1.0, latent_dim: int = 100):
        super().__init__()
        c512, c256, c128 = (scaled(c, width) for c in (512, 256, 128))
        doubling = {"kernel_size": 4, "stride": 2, "padding": 1}
        # The names are the positions that the layers have in a plain nn.Sequential with its activations.
        layers = OrderedDict()
        layers["0"] = nn.ConvTranspose1d(latent_dim, c512, kernel_size=1)
        layers["1"] = BatchNormAct1d(c512)
        layers["3"] = nn.ConvTranspose1d(c512, c256, **doubling)
        layers["4"] = BatchNormAct1d(c256)
        layers["6"] = nn.ConvTranspose1d(c256, c128, **doubling)
        layers["7"] = BatchNormAct1d(c128)
        layers["9"] = nn.ConvTranspose1d(c128, c128, **doubling)
        layers["10"] = BatchNormAct1d(c128)
        layers["12"] = nn.ConvTranspose1d(c128, latent_dim, **doubling)
        self.model = nn.Sequential(layers)
        for layer in self.model:
            if isinstance(layer, nn.ConvTranspose1d):
                nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(2))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.model(z.unsqueeze(2)).tanh().transpose(1, 2)


class ConvTranspose2dStride1(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of stride 1, computed as the ordinary convolution that it is.

    y = conv2d(x, w with its channels exchanged and its kernel turned by 180°, padding = kernel - 1 - padding)

    The same numbers, but libraries' convolutions are better tuned than their transposed ones, above all for few
    channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int):
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.weight.transpose(0, 1).flip(2, 3)
        return F.conv2d(x, kernel, self.bias, padding=self.kernel_size[0] - 1 - self.padding[0])


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
        doubling = {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False}
        layers = OrderedDict()
        layers["0"] = nn.ConvTranspose2d(2 * c256, c256, **doubling)
        layers["1"] = BatchNormAct2d(c256)
        layers["3"] = nn.ConvTranspose2d(c256, c128, **doubling)
        layers["4"] = BatchNormAct2d(c128)
        layers["6"] = nn.ConvTranspose2d(c128, c64, **doubling)
        layers["7"] = BatchNormAct2d(c64)
        layers["9"] = nn.ConvTranspose2d(c64, c32, **doubling)
        layers["10"] = BatchNormAct2d(c32)
        layers["12"] = ConvTranspose2dStride1(c32, channels, kernel_size=3, padding=1)
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
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"the generator takes latents [N, {self.latent_dim}] and got {list(z.shape)}")
        n = z.shape[0]
        fast = self.fast(self.temp(z).flatten(0, 1)).unflatten(1, (-1, 4, 4))
        slow = self.slow(z).unflatten(1, (-1, 4, 4))
        x = self._first_deconvolution(slow, fast)
        for layer in self.model[1:]:
            x = layer(x)
        return x.tanh().unflatten(0, (n, FRAMES)).transpose(1, 2)

    def _first_deconvolution(self, slow, fast):
        """The first layer on the channels [slow, fast], with slow [N, …] the same in all frames of fast [N·16, …].

        The layer is linear, so its share of slow is computed once a video and added to every frame.
        """
        deconvolution = self.model[0]
        weights = deconvolution.weight.chunk(2)
        options = {"stride": deconvolution.stride, "padding": deconvolution.padding}
        frames = F.conv_transpose2d(fast, weights[1], **options).unflatten(0, (-1, FRAMES))
        return (frames + F.conv_transpose2d(slow, weights[0], **options).unsqueeze(1)).flatten(0, 1)
