"""Temporal generators: networks that turn one latent into a latent for every frame."""

import math
from collections import OrderedDict

import torch
from torch import nn

from tgan_fast.models.layers import DoublingConvTranspose1d, PointwiseConvTranspose1d
from tgan_fast.nn import BatchNormAct1d
from tgan_fast.sizes import FRAMES, scaled


class TemporalGenerator(nn.Module):
    """TGAN's temporal generator: [N, inputs] → [N, frames, outputs] in (-1, 1), by transposed convolutions.

    Each convolution doubles the number of frames, starting from one. Longer videos are windows of `clip_frames` frames,
    each with a latent of its own. Neighbors overlap by a quarter of a window, where one set of frame latents fades into
    the next along a raised cosine.

    Args:
        inputs: Size of a latent and a one-hot label together.
        outputs: Size of the frame latents.
        clip_frames: Number of frames, a power of two.
        width: Multiplier of all channel counts.

    Source: Saito et al., arXiv:1611.06624, table 1.
    """

    def __init__(self, inputs: int, outputs: int, clip_frames: int = FRAMES, width: float = 1.0):
        super().__init__()
        steps = clip_frames.bit_length() - 1
        if clip_frames != 1 << steps:
            raise ValueError(f"clip_frames is {clip_frames}, but transposed convolutions need a power of two")
        c512, c256, c128 = (scaled(c, width) for c in (512, 256, 128))
        channels = [c512, c256, *[c128] * (steps - 2), outputs]
        # Layers are named by their positions in an nn.Sequential that also holds the activations.
        layers = OrderedDict({"0": PointwiseConvTranspose1d(inputs, c512)})
        for step in range(steps):
            layers[f"{3 * step + 1}"] = BatchNormAct1d(channels[step])
            layers[f"{3 * step + 3}"] = DoublingConvTranspose1d(*channels[step : step + 2])
        self.model = nn.Sequential(layers)
        self.clip_frames, self._overlap = clip_frames, clip_frames // 4
        for layer in self.model:
            if isinstance(layer, nn.ConvTranspose1d):
                nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(2))

    def forward(self, z: torch.Tensor, frames: int | None = None) -> torch.Tensor:
        """Return frame latents [N, frames, outputs].

        Args:
            z: Latents [N, inputs], or [N, windows, inputs] for several windows.
            frames: Number of frames; None: `clip_frames`.
        """
        if z.dim() == 2:
            return self.model(z.unsqueeze(2)).tanh().transpose(1, 2)[:, :frames]
        windows = self.model(z.flatten(0, 1).unsqueeze(2)).tanh().transpose(1, 2).unflatten(0, (-1, z.shape[1]))
        angle = torch.arange(1, self._overlap + 1, device=z.device) * (math.pi / (self._overlap + 1))
        fade = ((1 - angle.cos()) / 2).to(z.dtype).unsqueeze(1)
        first, *others = windows.unbind(1)
        parts, end = [first[:, : -self._overlap]], first[:, -self._overlap :]
        for window in others:
            parts += [torch.lerp(end, window[:, : self._overlap], fade), window[:, self._overlap : -self._overlap]]
            end = window[:, -self._overlap :]
        return torch.cat([*parts, end], 1)[:, :frames]

    def windows(self, frames: int) -> int:
        """Return the number of windows, each with a latent, of videos with this number of frames."""
        return 1 + math.ceil(max(0, frames - self.clip_frames) / (self.clip_frames - self._overlap))


class RecurrentTemporalGenerator(nn.Module):
    """Recurrent temporal generator: linear layer, recurrent cell, linear layer: [N, inputs] → [N, frames, outputs].

    The cell sees the same input in every frame. It is called once per frame, because a single `nn.GRU` or `nn.LSTM`
    over all frames needs its weights in cuDNN's own memory, while training keeps all weights of a network in a flat
    tensor. A CUDA graph hides the cost of the launches.

    Args:
        inputs, outputs, clip_frames, width: Arguments of `TemporalGenerator`; any number of frames.
    """

    cell: type[nn.GRUCell | nn.LSTMCell]

    def __init__(self, inputs: int, outputs: int, clip_frames: int = FRAMES, width: float = 1.0):
        super().__init__()
        self.clip_frames = clip_frames
        hidden = scaled(512, width)
        self.first = nn.Linear(inputs, hidden)
        self.recurrent = self.cell(hidden, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, z: torch.Tensor, frames: int | None = None) -> torch.Tensor:
        """Return frame latents [N, frames, outputs] from latents [N, inputs]; by default of `clip_frames` frames."""
        x, state, hidden = self.first(z), None, []
        for _ in range(frames or self.clip_frames):
            state = self.recurrent(x, state)
            hidden.append(self.hidden(state))
        return self.last(torch.stack(hidden, 1))

    def windows(self, frames: int) -> int:
        """Return 1, the number of latents of videos with this number of frames."""
        return 1


class GRUTemporalGenerator(RecurrentTemporalGenerator):
    """Temporal generator with a gated recurrent unit, as summaries of TGAN describe it."""

    cell = nn.GRUCell

    @staticmethod
    def hidden(state: torch.Tensor) -> torch.Tensor:
        return state


class LSTMTemporalGenerator(RecurrentTemporalGenerator):
    """Temporal generator with an LSTM, as in later video GANs (MoCoGAN, arXiv:1707.04993), without noise per frame."""

    cell = nn.LSTMCell

    @staticmethod
    def hidden(state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return state[0]
