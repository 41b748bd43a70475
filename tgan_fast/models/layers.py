"""Convolutions of the networks as modules: PyTorch's parameters, computed by `tgan_fast.ops.convolution`."""

import torch
import torch.nn.functional as F
from torch import nn

from tgan_fast.models.conditions import convolved_labels
from tgan_fast.ops.convolution import (
    conv3d_halving,
    conv3d_two_frames,
    conv_transpose1d_doubling,
    conv_transpose2d_doubling,
    conv_transpose2d_same,
)
from tgan_fast.ops.native import uses_native_ops


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

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False):
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv_transpose2d_doubling(x, self.weight, self.bias)

    def on_still_and_moving(self, still: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for frames with channels [still, moving], where a video's frames share `still`.

        The layer is linear, so the contribution of `still` is computed once per video and added to every frame.

        Args:
            still: Content of each video [N, C/2, H, W].
            moving: Features of each frame [N·frames, C/2, H, W].

        Returns:
            Features [N·frames, out, 2·H, 2·W].
        """
        for_still, for_moving = self.weight.chunk(2)
        video = conv_transpose2d_doubling(still, for_still, self.bias)
        frames = conv_transpose2d_doubling(moving, for_moving)
        if uses_native_ops():
            return (frames.unflatten(0, (len(video), -1)) + video.unsqueeze(1)).flatten(0, 1)
        return _AddToFrames.apply(frames, video)


class _AddToFrames(torch.autograd.Function):
    """In-place addition of videos [N, …] to frames [N·F, …], without autograd's copy of the gradient of a view."""

    @staticmethod
    def forward(ctx, frames, videos):
        ctx.mark_dirty(frames)
        ctx.videos = len(videos)
        frames.unflatten(0, (ctx.videos, -1)).add_(videos.unsqueeze(1))
        return frames

    @staticmethod
    def backward(ctx, gradient):
        # Channels-last, so that the sum has the channels last too.
        of_videos = gradient.movedim(1, -1).unflatten(0, (ctx.videos, -1)).sum(1).movedim(-1, 1)
        return gradient, of_videos


class SameConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of stride 1 and an odd kernel that keeps the size: [N, C, H, W] → [N, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv_transpose2d_same(x, self.weight, self.bias)


class _Labeled:
    """Mixin for a convolution whose last input channels can be one-hot maps of labels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolved(x, self.weight)

    def with_labels(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for channels [x, one-hot maps of `labels`], without making the maps.

        Args:
            x: Input [N, C, …].
            labels: Class labels, int64 [N]; the layer has C + classes input channels.
        """
        of_x, of_labels = self.weight.split([x.shape[1], self.in_channels - x.shape[1]], 1)
        return self.convolved(x, of_x) + convolved_labels(labels, of_labels, x.shape[2:], self.stride[0])


class HalvingConv3d(_Labeled, nn.Conv3d):
    """`nn.Conv3d` of kernel 4, stride 2 and padding 1: [N, C, T, H, W] → [N, out, T/2, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def convolved(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return conv3d_halving(x, weight, self.bias)


class TwoFrameConv3d(HalvingConv3d):
    """`HalvingConv3d` of two frames: [N, C, 2, H, W] → [N, out, 1, H/2, W/2]."""

    def convolved(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return conv3d_two_frames(x, weight, self.bias)


class OneFrameConv3d(nn.Conv3d):
    """`HalvingConv3d` of one frame, without the taps that only meet padding: kernel 1×4×4, stride 1×2×2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=(1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))


class SameConv2d(_Labeled, nn.Conv2d):
    """`nn.Conv2d` of kernel 3, stride 1 and padding 1: [N, C, H, W] → [N, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def convolved(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, self.bias, padding=1)


class WholeConv2d(nn.Conv2d):
    """`nn.Conv2d` to one channel with a kernel of the input's size: [N, C, k, k] → [N], in float32 at least.

    Computed as a matrix-vector product, without a copy if input and weight are channels-last.
    """

    def __init__(self, in_channels: int, kernel_size: int):
        super().__init__(in_channels, 1, kernel_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows, row = (tensor.movedim(1, -1).flatten(1).to(dtype) for tensor in (x, self.weight))
        return torch.mv(rows, row[0]) + self.bias.to(dtype)
