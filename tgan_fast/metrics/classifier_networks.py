"""Networks of classifiers: C3D, which the papers' scores are computed with, and a small one for moving digits.

Source of C3D: Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", arXiv:1412.0767, in the
form that was fine-tuned to UCF-101 and that TGAN's authors load (`conv3d_deepnetA_ucf.npz`).
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import nn

C3D_SIZE = 112  # rows and columns of its input
_WIDTHS = 16, 32, 64, 128


class C3D(nn.Module):
    """Eight 3D convolutions, five max pools and three linear layers; 77,995,776 parameters and 4,097 for each class.

    Args:
        classes: Number of classes.

    Attributes:
        taps: Layers whose activations `forward` can return, with 8192, 4096 and 4096 features.
    """

    taps = ("pool5", "fc6", "fc7")

    def __init__(self, classes: int = 101):
        super().__init__()
        self.conv1a = _conv(3, 64)
        self.conv2a = _conv(64, 128)
        self.conv3a = _conv(128, 256)
        self.conv3b = _conv(256, 256)
        self.conv4a = _conv(256, 512)
        self.conv4b = _conv(512, 512)
        self.conv5a = _conv(512, 512)
        self.conv5b = _conv(512, 512)
        self.fc6 = nn.Linear(8192, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, classes)
        self.dropout = nn.Dropout()

    def forward(self, videos: torch.Tensor, taps: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """Classify videos.

        Args:
            videos: BGR videos [N, 3, 16, 112, 112] with levels from 0 to 255 minus their mean.
            taps: Layers of `self.taps` whose activations to return.

        Returns:
            `logits` [N, classes], and the activations [N, …] of `taps`, for linear layers after the ReLU.
        """
        x = _pool(F.relu(self.conv1a(videos)), (1, 2, 2))
        x = _pool(F.relu(self.conv2a(x)))
        x = _pool(F.relu(self.conv3b(F.relu(self.conv3a(x)))))
        x = _pool(F.relu(self.conv4b(F.relu(self.conv4a(x)))))
        activations = {"pool5": _pool(F.relu(self.conv5b(F.relu(self.conv5a(x))))).flatten(1)}
        activations["fc6"] = self.dropout(F.relu(self.fc6(activations["pool5"])))
        activations["fc7"] = self.dropout(F.relu(self.fc7(activations["fc6"])))
        return {"logits": self.fc8(activations["fc7"]), **{tap: activations[tap] for tap in taps}}


class Small3D(nn.Module):
    """Four strided 3D convolutions with batch norm and ReLU, a mean over time and space, and one linear layer.

    Args:
        classes: Number of classes.
        channels: Color channels of the videos.

    Attributes:
        taps: Layers whose activations `forward` can return: one, with 128 features.
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
            videos: Videos [N, channels, 16, 64, 64] in [-1, 1].
            taps: Layers of `self.taps` whose activations to return.

        Returns:
            `logits` [N, classes], and the activations [N, 128] of `taps`.
        """
        activations = {"mean": self.layers(videos).mean((2, 3, 4))}
        return {"logits": self.linear(activations["mean"]), **{tap: activations[tap] for tap in taps}}


def _conv(in_channels, out_channels):
    return nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)


def _pool(x, size=(2, 2, 2)):
    # Chainer's pools round up, which matters for the last one: 7 → 4.
    return F.max_pool3d(x, size, ceil_mode=True)
