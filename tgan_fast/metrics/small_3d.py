"""A small 3D network, for those who have no weights of C3D: it learns moving digits in a minute or two on a CPU."""

from collections.abc import Collection

import torch
from torch import nn

_WIDTHS = 16, 32, 64, 128


class Small3D(nn.Module):
    """Four strided 3D convolutions with batch norm and ReLU, the mean over time and place, one linear layer.

    Args:
        classes: how many.
        channels: colour channels of the videos.

    Attributes:
        taps: the layer whose activations can be asked for, of 128 numbers.
    """

    taps = ("mean",)

    def __init__(self, classes: int, channels: int):
        super().__init__()
        layers = []
        for before, width in zip((channels, *_WIDTHS), _WIDTHS, strict=False):
            convolution = nn.Conv3d(before, width, kernel_size=3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm3d(width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(_WIDTHS[-1], classes)

    def forward(self, videos: torch.Tensor, taps: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """Classify videos.

        Args:
            videos: [N, channels, 16, 64, 64] in [-1, 1].
            taps: layers of `self.taps` that are wanted besides.

        Returns:
            `logits` [N, classes], and the activations [N, 128] of `taps`.
        """
        activations = {"mean": self.layers(videos).mean((2, 3, 4))}
        return {"logits": self.linear(activations["mean"]), **{tap: activations[tap] for tap in taps}}
