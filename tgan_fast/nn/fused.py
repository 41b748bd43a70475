"""Batch norms computed together with the addition and the activation that follow them.

A `FusedSequential` finds them in its own order of modules. Any other module is a `FusedModule`: `tgan_fast.nn.tracing`
reads from its forward what follows each batch norm.
"""

import contextlib
import functools
import itertools
import math
from typing import Any

import torch
from torch import fx, nn

from tgan_fast.nn.batch_norm_act import FUSED
from tgan_fast.ops.batch_norm.activation import IDENTITY, Activation
from tgan_fast.ops.batch_norm.torch_impl import activate, activate_

_NAMES: dict[type, str] = {nn.ReLU: "leaky_relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish"}


def activation_of(module: nn.Module) -> Activation | None:
    """Return the activation that a module computes, or None if `batch_norm_act` has no such activation."""
    if type(module) is nn.LeakyReLU:
        slope: Any = module.negative_slope
        return Activation("leaky_relu", slope) if abs(slope) < math.inf else None
    if type(module) is nn.GELU:
        return Activation("gelu_tanh") if module.approximate == "tanh" else None
    name = _NAMES.get(type(module))
    return None if name is None else Activation(name)


def is_watched(module: nn.Module) -> bool:
    """Return whether hooks of a module see its inputs, outputs or gradients."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def is_altered(module: nn.Module) -> bool:
    """Return whether a call of the module does more than its class's forward: it has hooks or a forward of its own."""
    return is_watched(module) or "forward" in vars(module)


def is_sequential(module: nn.Module) -> bool:
    """Return whether a module computes as `nn.Sequential` does."""
    return isinstance(module, nn.Sequential) and type(module).forward in (
        nn.Sequential.forward,
        FusedSequential.forward,
    )


def last_norm(module: Any) -> nn.Module | None:
    """Return the batch norm without an activation that a module is, or that a sequence of modules ends with."""
    if is_altered(module):
        return None
    if type(module) in FUSED.values():
        return None if module.has_activation() else module
    return last_norm(module[-1]) if isinstance(module, FusedSequential) and len(module) else None


def call_fused(norm, activation, x, residual=None, order=None):
    """Return activation(norm(x) + residual), in one operation if nothing has changed since the network was traced.

    Args:
        norm: `BatchNormAct*`, or sequence that ends with one.
        activation: Module or `Activation`.
        x: Input of `norm`.
        residual: What the network adds, or None.
        order: How the network adds it, "in place", "first" or "second", which decides about the sum's dtype and layout.
    """
    known = activation if isinstance(activation, Activation) else activation_of(activation)
    changed = known is None or (known is not activation and is_altered(activation)) or last_norm(norm) is None
    if not (changed or isinstance(x, fx.Proxy) or nn.modules.module._has_any_global_hook()):
        return _normalize_last(norm, x, known, residual, order)
    y = norm(x)
    if residual is not None:
        y = _add(y, residual, order)
    # Not in place, because the batch norm may have become a module that returns its input.
    return activate(y, *activation) if known is activation else activation(y)


def _normalize_last(module, x, activation, residual=None, order=None):
    if isinstance(module, FusedSequential):
        return module._forward_in_pairs(x, activation, residual, order)
    if residual is None or _is_alike(residual, x, order):
        return module.normalize(x, activation, residual)
    return activate_(_add(module.normalize(x, IDENTITY), residual, order), activation)


def _add(y, residual, order):
    if order == "in place":
        return y.add_(residual)
    return residual + y if order == "first" else y + residual


def _is_alike(residual, x, order):
    """Return whether a sum of the batch norm's output and the residual has the dtype and the layout of that output."""
    names = ("shape", "dtype", "device")
    return (
        isinstance(residual, torch.Tensor)
        and all(getattr(residual, name) == getattr(x, name) for name in names)
        and (order == "in place" or residual.stride() == x.stride())
    )


class Unregistered:
    """Base of classes made here, which hides them from a class that registers its subclasses."""

    def __init_subclass__(cls):
        pass


class _Fused(Unregistered):
    """Base of the classes that `fused_class` makes."""

    _derived_from: type  # the class that the module had

    def __reduce_ex__(self, protocol):
        # Pickle cannot find by name a class that `fused_class` made.
        _, _, *state = super().__reduce_ex__(2)
        return _new_fused, (self._derived_from,), *state


class FusedSequential(nn.Sequential):
    """An `nn.Sequential` that computes a batch norm and the activation right after it in one operation.

    Both modules stay in their places, so indices, slices, hooks and the state dict mean the same as in `nn.Sequential`.
    Only a `BatchNormAct*` without an activation of its own is fused with the one after it. The two are computed
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

    def _forward_in_pairs(self, x, activation=None, residual=None, order=None):
        """Compute `forward`; an activation and a residual belong to the batch norm at the end."""
        done = False
        for module, following in itertools.zip_longest(self, itertools.islice(self, 1, None)):
            if done:
                done = False
            elif following is None and activation is not None:
                x = _normalize_last(module, x, activation, residual, order)
            elif is_pair(module, following):
                x, done = _normalize_last(module, x, activation_of(following)), True
            else:
                x = module(x)
        return x


def is_pair(module: nn.Module, following: nn.Module | None) -> bool:
    """Return whether a module is or ends with a batch norm, and the next one is an activation to fuse it with."""
    if following is None or activation_of(following) is None or is_altered(following):
        return False
    return last_norm(module) is not None


class FusedModule(nn.Module):
    """A module whose forward calls a batch norm and, on its output, an addition or an activation.

    It computes them in one operation as long as the arguments are such as were traced and the attributes that decide
    about its forward have the values that they had then; otherwise it computes as its original class does.
    """

    _plans: Any = ()

    def __setstate__(self, state):
        """Restore the state of a copied or loaded module; trace a loaded one again, because a file holds no code."""
        from tgan_fast.nn.tracing import NotFusedError, trace

        super().__setstate__(state)
        if self._plans is None:
            self._plans = ()
            with contextlib.suppress(NotFusedError):
                self._plans = trace(self).plans

    def __prepare_scriptable__(self):
        raise TypeError(
            f"torch.jit.script cannot compile the fused {type(self).__name__}: "
            "script the network before fuse_batch_norm; its state dict fits both"
        )


@functools.cache
def fused_class(cls):
    """Return a subclass of a module's class whose forward fuses batch norms."""
    if cls is nn.Sequential:
        return FusedSequential
    members = {"_derived_from": cls, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    if cls.forward is nn.Sequential.forward:
        return type(cls.__name__, (_Fused, FusedSequential, cls), members)

    @functools.wraps(cls.forward)
    def forward(self, *args, **kwargs):
        plan, arguments = _find_plan(self, args, kwargs)
        return cls.forward(self, *args, **kwargs) if plan is None else plan.forward(self, *arguments)

    return type(cls.__name__, (FusedModule, _Fused, cls), {**members, "forward": forward})


def _new_fused(cls):
    fused = fused_class(cls)
    return fused.__new__(fused)


def _find_plan(module, args, kwargs):
    """Return a plan that fits the module and the arguments, and the arguments in its order; None if there is none."""
    for plan in module._plans:
        arguments = (*args, *(kwargs[name] for name in plan.names[len(args) :] if name in kwargs))
        if len(arguments) == len(args) + len(kwargs) and plan.fits(module, arguments):
            return plan, arguments
    return None, args
