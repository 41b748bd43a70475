"""Channels-last memory formats for networks that mix 2D and 3D convolutions."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_channels_last_(module: Module) -> Module:
    """Lay out every 4- and 5-dimensional parameter with its channels last, in place; returns the module.

    Convolutions then compute, and pass on, channels-last activations. (`Module.to(memory_format=…)` takes one format
    and refuses networks that have parameters of both dimensions.)
    """
    for parameter in module.parameters():
        if parameter.dim() in _FORMATS:
            parameter.data = parameter.data.contiguous(memory_format=_FORMATS[parameter.dim()])
    return module
