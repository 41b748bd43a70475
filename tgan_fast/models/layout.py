"""Channels-last memory format for networks that mix 1D, 2D and 3D convolutions."""

from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def to_channels_last_(module: Module) -> Module:
    """Lay out every parameter of 3 to 5 dimensions with its second dimension last, in place; return the module.

    Convolutions then compute and return channels-last activations. (`Module.to(memory_format=…)` takes one format for a
    network, and has none for 3 dimensions.)
    """
    for parameter in module.parameters():
        if 3 <= parameter.dim() <= 5:
            parameter.data = parameter.data.movedim(1, -1).contiguous().movedim(-1, 1)
    return module
