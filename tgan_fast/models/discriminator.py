"""TGAN's discriminator: 3D convolutions over a whole video, one score at the end."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from tgan_fast.models.generator import FRAMES, IMAGE_SIZE
from tgan_fast.models.widths import scaled
from tgan_fast.nn import BatchNormAct3d
from tgan_fast.ops.convolution import conv3d_halving, conv3d_two_frames

NEGATIVE_SLOPE = 0.2


class HalvingConv3d(nn.Conv3d):
    """`nn.Conv3d` of kernel 4, stride 2 and padding 1: [N, C, T, H, W] → [N, out, T/2, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv3d_halving(x, self.weight, self.bias)


class TwoFrameConv3d(HalvingConv3d):
    """The same for two frames: [N, C, 2, H, W] → [N, out, 1, H/2, W/2]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv3d_two_frames(x, self.weight, self.bias)


class WholeConv2d(nn.Conv2d):
    """`nn.Conv2d` to one channel with a kernel of the input's size: [N, C, k, k] → [N], in float32 at least.

    A product of matrix and vector over the memory of input and weight, if both have their channels last.
    """

    def __init__(self, in_channels: int, kernel_size: int):
        super().__init__(in_channels, 1, kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows, row = (tensor.movedim(1, -1).flatten(1).to(dtype) for tensor in (x, self.weight))
        return torch.mv(rows, row[0]) + self.bias.to(dtype)


class VideoDiscriminator(nn.Module):
    """TGAN's discriminator, 11,033,281 parameters by default; its state dict is that of the PyTorch notebook's model.

    Args:
        width: multiplier of all channel counts; 1 is the paper's.
        channels: colour channels of the videos.

    Source: Saito et al., arXiv:1611.06624, table 1.
    """

    def __init__(self, width: float = 1.0, channels: int = 3):
        super().__init__()
        self.width, self.channels = width, channels
        c64, c128, c256, c512 = (scaled(c, width) for c in (64, 128, 256, 512))
        # The names are the positions that the layers have in a plain nn.Sequential with its activations.
        layers = OrderedDict()
        layers["0"] = HalvingConv3d(channels, c64)
        layers["2"] = HalvingConv3d(c64, c128)
        layers["3"] = BatchNormAct3d(c128, NEGATIVE_SLOPE)
        layers["5"] = HalvingConv3d(c128, c256)
        layers["6"] = BatchNormAct3d(c256, NEGATIVE_SLOPE)
        layers["8"] = TwoFrameConv3d(c256, c512)
        layers["9"] = BatchNormAct3d(c512, NEGATIVE_SLOPE)
        self.model3d = nn.Sequential(layers)
        self.conv2d = WholeConv2d(c512, kernel_size=4)
        for layer in (*self.model3d, self.conv2d):
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                nn.init.xavier_normal_(layer.weight, gain=math.sqrt(2))

    def forward(self, videos: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """Score videos.

        Args:
            videos: [N, channels, 16, 64, 64].
            groups: N is this many equal consecutive parts; batch norm treats each as a batch of its own, so that one
                call gives what one call a part would give, in larger and fewer convolutions.

        Returns:
            Scores [N], without a sigmoid; in float32 also where the layers compute in bfloat16.
        """
        self.check(videos)
        first, *rest = self.model3d
        # In place: a convolution's backward does not read its output.
        x = F.leaky_relu_(first(videos), NEGATIVE_SLOPE)
        for layer in rest:
            x = layer(x, groups) if isinstance(layer, BatchNormAct3d) else layer(x)
        return self.conv2d(x.squeeze(2))

    def check(self, videos: torch.Tensor) -> None:
        """Raise a ValueError unless `videos` has the shape that `forward` takes."""
        expected = (self.channels, FRAMES, IMAGE_SIZE, IMAGE_SIZE)
        if videos.shape[1:] != expected:
            raise ValueError(f"the discriminator takes videos {['N', *expected]} and got {list(videos.shape)}")
