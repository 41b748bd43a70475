"""TGAN's kinds of convolution, each with several algorithms; `algorithms.TABLE` lists which one runs where."""

from tgan_fast.ops.convolution.conv3d_halving import conv3d_halving
from tgan_fast.ops.convolution.conv3d_two_frames import conv3d_two_frames
from tgan_fast.ops.convolution.conv_transpose1d_doubling import conv_transpose1d_doubling
from tgan_fast.ops.convolution.conv_transpose2d_doubling import conv_transpose2d_doubling
from tgan_fast.ops.convolution.conv_transpose2d_same import conv_transpose2d_same

__all__ = [
    "conv3d_halving",
    "conv3d_two_frames",
    "conv_transpose1d_doubling",
    "conv_transpose2d_doubling",
    "conv_transpose2d_same",
]
