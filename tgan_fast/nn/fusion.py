"""Fusion of the batch norms of a network with what follows them."""

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from tgan_fast.choices import Backend
from tgan_fast.nn.batch_norm import FUSED

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class FusedSequential(nn.Sequential):
    """An `nn.Sequential` that computes a `BatchNormAct*` and the (leaky) ReLU right after it in one operation.

    Both modules stay in their places, so indices, slices, hooks and the state dict mean the same as in `nn.Sequential`.
    Only a `BatchNormAct*` with a `negative_slope` of 1 is fused with the activation after it. The two are computed
    separately if one of them has hooks, and under torch.fx and torch.jit.script.
    """

    def forward(self, input):
        if torch.jit.is_scripting():
            for module in self:
                input = module(input)
        elif isinstance(input, fx.Proxy) or nn.modules.module._has_any_global_hook():
            input = super().forward(input)
        else:
            input = self._forward_in_pairs(input)
        return input

    def _forward_in_pairs(self, x):
        done = False
        for module, following in itertools.zip_longest(self, itertools.islice(self, 1, None)):
            if done:
                done = False
            elif _is_pair(module, following) and not (_is_altered(module) or _is_altered(following)):
                x = module._normalize(x, 1, getattr(following, "negative_slope", 0.0))
                done = True
            else:
                x = module(x)
        return x

    def __reduce_ex__(self, protocol):
        if not hasattr(self, "_derived_from"):
            return super().__reduce_ex__(protocol)
        # Pickle cannot find by name a class that `_fused_class` made.
        _, _, *state = super().__reduce_ex__(2)
        return _new_fused, (self._derived_from,), *state


@functools.cache
def _fused_class(cls):
    """Return a subclass of `FusedSequential` and of `cls`, which must have the forward of `nn.Sequential`."""
    if cls is nn.Sequential:
        return FusedSequential
    return type(cls.__name__, (FusedSequential, cls), {"_derived_from": cls})


def _new_fused(cls):
    fused = _fused_class(cls)
    return fused.__new__(fused)


def _is_pair(norm, activation):
    return (
        type(norm) in FUSED.values()
        and norm.negative_slope == 1
        and type(activation) in (nn.ReLU, nn.LeakyReLU)
        and abs(getattr(activation, "negative_slope", 0.0)) < math.inf
    )


def _is_sequential(cls):
    """Return whether a class computes and pickles as `nn.Sequential` does."""
    return (
        cls.forward is nn.Sequential.forward
        and cls.__reduce_ex__ is object.__reduce_ex__
        and (cls.__reduce__ is object.__reduce__)
    )


def _is_altered(module):
    """Return whether a call of the module does more than its class's forward: it has hooks or a forward of its own."""
    return is_watched(module) or "forward" in vars(module)


def is_watched(module: nn.Module) -> bool:
    """Return whether hooks of a module see its inputs, outputs or gradients."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def convert_batch_norm(
    module: nn.Module, *, process_group: "ProcessGroup | None" = None, backend: Backend = "auto"
) -> nn.Module:
    """Turn every `nn.BatchNorm1d/2d/3d` of a network into a `BatchNormAct1d/2d/3d`.

    Every module stays the same object, with its parameters, attributes and hooks; only its class changes. An
    `nn.Sequential`, or a subclass that inherits its forward, becomes a `FusedSequential` if an `nn.ReLU` or
    `nn.LeakyReLU` is right after one of its batch norms. It then computes the two in one operation and leaves both in
    their places, so that a slice such as `network[:2]` still ends before the activation. Elsewhere the order of calls
    is unknown, and a batch norm is computed without its activation. Subclasses of `nn.BatchNorm*` are left alone.

    Args:
        module: Network, changed in place.
        process_group, backend: Arguments of every `BatchNormAct1d/2d/3d`.

    Returns:
        The network.

    Raises:
        TypeError: `module` is not an `nn.Module`.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"convert_batch_norm takes an nn.Module and got an object of type {type(module).__name__}")
    child: Any
    for child in module.modules():
        if type(child) in FUSED:
            child.__class__ = FUSED[type(child)]
            child.negative_slope, child.process_group, child.backend = 1.0, process_group, backend
    for child in module.modules():
        kind: Any = type(child)
        if _is_sequential(kind) and any(itertools.starmap(_is_pair, itertools.pairwise(child))):
            child.__class__ = _fused_class(kind)
    return module
