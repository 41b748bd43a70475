"""Fusion of the batch norms of a network with what follows them."""

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from tgan_fast.choices import Backend
from tgan_fast.nn.batch_norm_act import FUSED
from tgan_fast.nn.fused import FusedModule, FusedSequential, activation_of, fused_class, is_pair, is_sequential
from tgan_fast.nn.tracing import NotFusedError, norm_at_end, trace
from tgan_fast.ops.batch_norm.activation import IDENTITY

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class FusionReport(NamedTuple):
    """The outcome of `fuse_batch_norm`, by the names of the batch norms; `print` shows it as a table."""

    fused: dict[str, str]  # what is computed with the batch norm, such as "residual + ReLU"
    left: dict[str, str]  # why a batch norm is computed alone

    def __str__(self):
        rows = [f"{len(self.fused)} of {len(self.fused) + len(self.left)} batch norms are fused"]
        width = max((len(name) for name in (*self.fused, *self.left)), default=0)
        rows += [f"  {name:{width}}  with {what}" for name, what in self.fused.items()]
        rows += [f"  {name:{width}}  alone: {why}" for name, why in self.left.items()]
        return "\n".join(rows)


def fuse_batch_norm(
    module: nn.Module, *, process_group: "ProcessGroup | None" = None, backend: Backend = "auto"
) -> FusionReport:
    """Fuse every `nn.BatchNorm1d/2d/3d` of a network with the addition and the activation that follow it, in place.

    Every module stays the same object, with its parameters, attributes and hooks; only its class becomes a subclass.
    The state dict stays the same, and `train`, `eval`, `copy.deepcopy`, `pickle`, DistributedDataParallel and
    `torch.compile` go on working.

    A batch norm is fused in an `nn.Sequential` that has an activation right after it, and in the forward of any other
    module if torch.fx can trace it and the batch norm's output is used by one activation, or by one addition of another
    tensor and perhaps an activation after it. Activations are ReLU, LeakyReLU, ReLU6, SiLU, Hardswish and
    GELU(approximate="tanh"), as modules or functions. All other batch norms become `BatchNormAct*` without activation,
    which computes the same. Subclasses of `nn.BatchNorm*` are left alone.

    A forward is traced once. When it is called with other kinds of arguments than were traced, or after an attribute
    that it reads has changed, the module computes as before. Call `fuse_batch_norm` again after such a change, but not
    while another thread runs a network. Gradients of gradients need `tgan_fast.ops.native_ops`.

    Args:
        module: Network, changed in place.
        process_group, backend: Arguments of every `BatchNormAct1d/2d/3d` without an activation of its own.

    Returns:
        What was fused, and what was not, with the reasons.

    Raises:
        TypeError: `module` is not an `nn.Module`.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"fuse_batch_norm takes an nn.Module and got an object of type {type(module).__name__}")
    child: Any
    for child in module.modules():
        if type(child) in FUSED:
            child.__class__ = FUSED[type(child)]
            child.negative_slope, child.activation = IDENTITY.negative_slope, IDENTITY.name
        if type(child) in FUSED.values() and _is_alone(child):
            child.process_group, child.backend = process_group, backend
    # Sequences first: a batch norm at their end may be fused in the forward that calls them.
    fused: dict[str, str] = {}
    left: dict[str, str] = {}
    refused: dict[str, str] = {}
    names = {child: name for name, child in module.named_modules()}
    for child in reversed(names):  # the inner ones first
        if is_sequential(child) and len(child):
            _fuse_sequence(child, names, fused, left)
    for child, name in names.items():
        inner = {type(module) for module in child.modules() if module is not child}
        if not is_sequential(child) and inner & set(FUSED.values()):
            try:
                _fuse_forward(child, _prefix(name), fused, left)
            except NotFusedError as reason:
                refused[name] = f"forward of {type(child).__name__} is left as it is: {reason}"
    norms = [name for name, child in module.named_modules() if _is_alone(child)]
    left = {name: left.get(name) or _why(name, module, refused) for name in norms if name not in fused}
    return FusionReport({name: fused[name] for name in norms if name in fused}, left)


def _prefix(name):
    return f"{name}." if name else ""


def _fuse_sequence(sequence, names, fused, left):
    """Let a sequence fuse its batch norms, and note what becomes of them."""
    last, found = norm_at_end(sequence), False
    for module, following in itertools.pairwise(sequence):
        norm = norm_at_end(module)
        if is_pair(module, following):
            fused[names[norm]], found = type(following).__name__, True
        elif norm is not None and activation_of(following) is not None:
            left[names[norm]] = "it or the activation has hooks or a forward of its own"
        elif norm is not None:
            left[names[norm]] = f"{type(following).__name__} follows"
    if (found or last is not None) and not isinstance(sequence, FusedSequential):
        sequence.__class__ = fused_class(type(sequence))


def _fuse_forward(module, prefix, fused, left):
    """Let the forward of a module fuse its batch norms, and note what becomes of them."""
    if isinstance(module, FusedModule):
        module._plans = ()
    result = trace(module)
    if result.plans:
        if not isinstance(module, FusedModule):
            module.__class__ = fused_class(type(module))
        module._plans = result.plans
    fused.update({prefix + name: what for name, what in result.fused.items()})
    left.update({prefix + name: why for name, why in result.left.items()})


def _is_alone(module):
    """Return whether a module is a batch norm without an activation."""
    if type(module) in FUSED.values():
        return not module.has_activation()
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _why(name, module, refused):
    """Return why a batch norm that no traced forward calls is computed alone."""
    kind = type(module.get_submodule(name))
    if kind is nn.SyncBatchNorm:
        return "SyncBatchNorm is left alone: pass process_group instead"
    if kind not in FUSED.values():
        return f"{kind.__module__}.{kind.__qualname__} is not one of nn.BatchNorm1d, 2d and 3d"
    parents = itertools.accumulate(name.split("."), lambda path, part: f"{path}.{part}")
    reasons = [refused[parent] for parent in ("", *parents) if parent in refused]
    return reasons[-1] if reasons else "nothing to fuse it with follows where it is called"
