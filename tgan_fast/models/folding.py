"""Generators for sampling, with batch norms folded into the layers before them.

In evaluation mode batch norm scales and shifts each channel by constants, which the layer before it can absorb:

    W' = W·γ/√(var + ε),  b' = β + (b - mean)·γ/√(var + ε)
"""

import copy
from typing import NamedTuple

import torch
from torch import nn

from tgan_fast.models.generator import Generator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.nn import BatchNormAct1d, BatchNormAct2d

_BATCH_NORMS = BatchNormAct1d, BatchNormAct2d
_TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d


class FoldedGenerator:
    """Folded copy of a generator in evaluation mode, with its own weights.

    Args:
        generator: Generator to fold, read now and by `refresh`, and never changed. It stays on its device.
        dtype: Dtype of the weights and activations. Folding is computed in the generator's own dtype, then rounded.

    Attributes:
        network: Folded copy, in evaluation mode.
    """

    def __init__(self, generator: Generator, dtype: torch.dtype):
        self.network = copy.deepcopy(generator).eval().requires_grad_(False)
        self._dtype = dtype
        self._folds = []
        for live, own in zip(_sequences(generator), _sequences(self.network), strict=True):
            for index, layer in enumerate(live):
                if not isinstance(layer, _BATCH_NORMS):
                    self._folds.append(_fold(live, own, index, dtype))
        self._copies = _cast_rest(generator, self.network, dtype)
        to_channels_last_(self.network)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the generator's current weights and running statistics into the same memory."""
        for layer, norm, weight, shift in self._folds:
            if norm is None:
                weight.copy_(layer.weight)
                shift.copy_(layer.bias)
                continue
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            mean = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias
            shape = [1] * weight.dim()
            shape[1 if isinstance(layer, _TRANSPOSED) else 0] = -1
            torch.mul(layer.weight, scale.view(shape), out=weight)
            torch.addcmul(norm.bias, mean, scale, value=-1, out=shift)
        for live, own in self._copies:
            own.copy_(live)

    def frames(self, inputs: torch.Tensor, interpolate: int = 1, length: int | None = None) -> torch.Tensor:
        """Return frames like `Generator.frames`, in the dtype of the weights."""
        return self.network.frames(inputs.to(self._dtype), interpolate, length)


class _Fold(NamedTuple):
    """A layer of the live generator, the batch norm behind it, and the folded weight and shift."""

    layer: nn.Module
    norm: nn.Module | None
    weight: torch.Tensor
    shift: torch.Tensor


def _sequences(generator):
    return [module for module in generator.modules() if isinstance(module, nn.Sequential)]


def _cast_rest(generator, network, dtype):
    """Cast the parameters outside of sequences, such as recurrent cells'; return pairs of live and own parameters."""
    in_sequences = {id(parameter) for sequence in _sequences(generator) for parameter in sequence.parameters()}
    pairs = []
    for name, live in generator.named_parameters():
        if id(live) not in in_sequences:
            own = network.get_parameter(name)
            own.data = own.data.to(dtype)
            pairs.append((live, own))
    return pairs


def _fold(live, own, index, dtype):
    """Prepare the layer at `index` of `own`, a copy of `live`, and the batch norm after it."""
    layer = own[index].to(dtype)
    norm = live[index + 1] if index + 1 < len(live) else None
    if norm is None:
        shift = layer.bias
    elif _adds_bias_for_free(layer):
        layer.bias = nn.Parameter(layer.weight.new_empty(norm.num_features), requires_grad=False)
        own[index + 1] = _activation_in_place(norm.negative_slope)
        shift = layer.bias
    else:
        # The rest of the batch norm, its shift and activation, is computed in one pass.
        layer.bias = None
        left = own[index + 1]
        left.reset_parameters()
        # PyTorch 2.11 refuses eps = 0; this smallest number does not change a variance of 1.
        left.eps = torch.finfo(torch.float32).tiny
        shift = left.bias
    return _Fold(live[index], norm, layer.weight, shift)


def _adds_bias_for_free(layer):
    # On a GPU PyTorch adds the bias of a convolution in a separate pass.
    return not layer.weight.is_cuda


def _activation_in_place(negative_slope):
    """Return an in-place activation; nothing else reads a convolution's output."""
    return nn.ReLU(inplace=True) if negative_slope == 0 else nn.LeakyReLU(negative_slope, inplace=True)
