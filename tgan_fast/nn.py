"""Modules around the operations: fused batch norm and activation, and the Lipschitz constraint of a network."""

import copy
import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from tgan_fast.choices import Backend, ClippingAccuracy, ClippingBackend
from tgan_fast.ops import batch_norm_act, constrain_layers_, singular_value_clip, singular_value_clip_
from tgan_fast.ops.clipping import check_options
from tgan_fast.ops.clipping.operands import check_weight

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _BatchNormAct(nn.modules.batchnorm._BatchNorm):
    """`nn.BatchNorm*` and a leaky ReLU in one operation.

    Parameters, buffers and therefore the state dict are those of `nn.BatchNorm*`.

    Args:
        num_features: Number of channels C of the input [N, C, *].
        negative_slope: Finite slope of the activation below zero; 0 is ReLU, 1 is no activation.
        eps, momentum, affine, track_running_stats, device, dtype: Arguments of `nn.BatchNorm*`.
        process_group: Processes whose statistics are combined in training, as in `nn.SyncBatchNorm`, except that None
            means this process alone, and `torch.distributed.group.WORLD` all processes.
        backend: Backend of `tgan_fast.ops.batch_norm_act`.
    """

    def __init__(self, num_features, negative_slope=0.0, *, process_group=None, backend="auto", **batch_norm_options):
        super().__init__(num_features, **batch_norm_options)
        self.negative_slope = negative_slope
        self.process_group = process_group
        self.backend = backend

    def forward(self, input: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """Return act(batch_norm(input)) for input [N, C, *]; `tgan_fast.ops.batch_norm_act` explains `groups`."""
        if torch.jit.is_scripting():
            y = self._forward_in_torchscript(input, groups)
        elif isinstance(input, fx.Proxy):
            # torch.fx traces into every module that is not PyTorch's own, and would fail at the shape checks.
            arguments = (input,) if groups == 1 else (input, groups)
            y = input.tracer.create_proxy("call_module", input.tracer.path_of_module(self), arguments, {})
        else:
            y = self._normalize(input, groups, self.negative_slope)
        return y

    def _normalize(self, x, groups, negative_slope):
        self._check_input_dim(x)
        tracked = not self.training or self.track_running_stats
        running_mean, running_var = (self.running_mean, self.running_var) if tracked else (None, None)
        return batch_norm_act(
            x,
            self.weight,
            self.bias,
            running_mean,
            running_var,
            training=self.training or running_mean is None,
            momentum=self.momentum,
            eps=self.eps,
            negative_slope=negative_slope,
            groups=groups,
            num_batches_tracked=self.num_batches_tracked if self.training and tracked else None,
            process_group=self.process_group if self.training else None,
            backend=self.backend,
        )

    def _forward_in_torchscript(self, x: torch.Tensor, groups: int) -> torch.Tensor:
        assert groups == 1, "groups must be 1 in torch.jit.script"
        self._check_input_dim(x)
        tracked = not self.training or self.track_running_stats
        mean = self.running_mean if tracked else None
        var = self.running_var if tracked else None
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and tracked and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, self.training or mean is None, momentum, self.eps)
        return F.relu(y) if self.negative_slope == 0 else F.leaky_relu(y, float(self.negative_slope))

    def __prepare_scriptable__(self):
        if self.process_group is not None:
            raise ValueError("torch.jit.script cannot combine statistics of processes: set process_group to None")
        return self

    def __deepcopy__(self, memo):
        """Return a copy that shares the process group, which cannot be copied."""
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        memo[id(self.process_group)] = self.process_group
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone

    def extra_repr(self):
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """`nn.BatchNorm1d` and a leaky ReLU of slope `negative_slope` (0: ReLU, 1: none), on [N, C] or [N, C, L]."""


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """`nn.BatchNorm2d` and a leaky ReLU of slope `negative_slope` (0: ReLU, 1: none), on [N, C, H, W]."""


class BatchNormAct3d(_BatchNormAct, nn.BatchNorm3d):
    """`nn.BatchNorm3d` and a leaky ReLU of slope `negative_slope` (0: ReLU, 1: none), on [N, C, D, H, W]."""


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # the classes above are derived from them
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FUSED = dict(zip(BATCH_NORMS, (BatchNormAct1d, BatchNormAct2d, BatchNormAct3d), strict=True))


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
        type(norm) in _FUSED.values()
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
        if type(child) in _FUSED:
            child.__class__ = _FUSED[type(child)]
            child.negative_slope, child.process_group, child.backend = 1.0, process_group, backend
    for child in module.modules():
        kind: Any = type(child)
        if _is_sequential(kind) and any(itertools.starmap(_is_pair, itertools.pairwise(child))):
            child.__class__ = _fused_class(kind)
    return module


class SingularValueClipping:
    """Clipping of a module's weights after the steps of an optimizer, which calls it as a hook.

        optimizer.register_step_post_hook(SingularValueClipping(model, 1.0, every=5))

    It clips the weights of `nn.Linear`, `nn.Conv1d/2d/3d` and `nn.ConvTranspose1d/2d/3d` as matrices [shape[0],
    everything else], and every projection of an `nn.MultiheadAttention` as a matrix of its own. Parameters, state dict
    and forward pass of the module stay as they are. Weights that are not finite are left alone.

    Before the first clipping, and between two of them, weights may exceed the threshold; after one, by rounding.

    Args:
        module: Network whose weights are clipped; layers that are added later are clipped too.
        max_singular_value: Threshold, as in `tgan_fast.ops.singular_value_clip`.
        every: Number of steps from one clipping to the next.
        accuracy, backend: Arguments of `tgan_fast.ops.singular_value_clip`.

    Attributes:
        steps: Number of steps taken. Save it beside the optimizer's state, and set it when training is resumed.

    Raises:
        TypeError: `module` is not an `nn.Module`.
        ValueError: `every` is not a positive whole number, the module has no weight to clip, a parametrization computes
            one of the weights, or another argument is refused by `tgan_fast.ops.singular_value_clip`.
    """

    def __init__(
        self,
        module: nn.Module,
        max_singular_value: float = 1.0,
        *,
        every: int = 1,
        accuracy: ClippingAccuracy = "exact",
        backend: ClippingBackend = "auto",
    ):
        if not isinstance(module, nn.Module):
            raise TypeError(f"SingularValueClipping takes an nn.Module, not an object of type {type(module).__name__}")
        if type(every) is not int or every < 1:
            raise ValueError(f"every must be a whole number of steps, 1 or more, not {every!r}")
        self.module, self.max_singular_value, self.every = module, max_singular_value, every
        self.accuracy, self.backend = accuracy, backend
        self.steps = 0
        # Report errors here rather than after `every` steps.
        check_options(max_singular_value, accuracy, backend)
        if not _matrices_of(module):
            raise ValueError(f"{type(module).__name__} has no linear layer, convolution or attention to clip")

    def __call__(self, *_hook_arguments: Any) -> None:
        """Count a step, and clip after every `every`-th; the arguments of the hook are not used."""
        self.steps += 1
        if self.steps % self.every == 0:
            weights = _matrices_of(self.module)
            singular_value_clip_(weights, self.max_singular_value, accuracy=self.accuracy, backend=self.backend)


def _matrices_of(module) -> list[torch.Tensor]:
    """Return the weights that `SingularValueClipping` clips."""
    weights: list[torch.Tensor] = []
    for name, child in module.named_modules():
        names = [key for key in _clipped_parameters(child) if getattr(child, key, None) is not None]
        # A parametrization, pruning or FSDP computes the attribute, and keeps its parameters elsewhere.
        parameters = dict(child.named_parameters(recurse=False))
        if computed := [key for key in names if key not in parameters]:
            raise ValueError(
                f"{computed[0]} of {name or type(child).__name__} is computed by a parametrization, so clipping it "
                "would change nothing: remove the parametrization, or leave the layer out of the module"
            )
        for key in names:
            weight = parameters[key]
            if key == "in_proj_weight":  # [3·E, E], of query, key and value
                check_weight(weight)  # its parts would not show that it is sharded
                weights += weight.detach().chunk(3)
            else:
                weights.append(weight)
    return weights


def _clipped_parameters(module):
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    return ("weight",) if isinstance(module, (*WEIGHTED, *TRANSPOSED)) else ()


class ClippedSingularValues(nn.Module):
    """Parametrization that clips the singular values of a weight in every forward pass, with gradients through it.

        torch.nn.utils.parametrize.register_parametrization(layer, "weight", ClippedSingularValues(1.0))

    The optimizer moves the unclipped weight, so it costs a clipping per forward pass and an eigendecomposition per
    backward pass; `SingularValueClipping` costs less.

    Args:
        max_singular_value, batch_dims, out_dim, accuracy, backend: Arguments of
            `tgan_fast.ops.singular_value_clip`.
    """

    def __init__(
        self,
        max_singular_value: float = 1.0,
        *,
        batch_dims: int = 0,
        out_dim: int = 0,
        accuracy: ClippingAccuracy = "exact",
        backend: ClippingBackend = "auto",
    ):
        super().__init__()
        check_options(max_singular_value, accuracy, backend)
        self.max_singular_value = max_singular_value
        self.options: dict[str, Any] = {
            "batch_dims": batch_dims,
            "out_dim": out_dim,
            "accuracy": accuracy,
            "backend": backend,
        }

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the clipped weight."""
        return singular_value_clip(weight, self.max_singular_value, **self.options)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight`, which becomes the unclipped weight when a user assigns it."""
        return weight

    def extra_repr(self):
        return f"max_singular_value={self.max_singular_value}"


def constrain_(network: nn.Module, max_singular_value: float = 1.0, *, backend: ClippingBackend = "auto") -> None:
    """Constrain the weights and batch-norm scales of a network, in place, as TGAN does its discriminator.

    The singular values of the weights of `nn.Linear` and `nn.Conv1d/2d/3d`, as matrices [out, everything else], are
    clipped at `max_singular_value`. The scales of `nn.BatchNorm1d/2d/3d` that have running statistics are clamped into
    [0.01·s, s] with s = sqrt(running_var). Activations of slope ≤ 1 need no change (Saito et al., arXiv:1611.06624,
    section 3.3). All other layers stay as they are, including transposed convolutions, whose weights
    `tgan_fast.ops.singular_value_clip_` and `SingularValueClipping` clip. With a threshold of 1, linear layers do
    not amplify; a convolution still can where its windows overlap.

    Args:
        network: Discriminator, or any other module.
        max_singular_value: Threshold, as in `tgan_fast.ops.singular_value_clip`.
        backend: Backend of `tgan_fast.ops.constrain_layers_`.
    """
    constrain_layers_(weights_of(network), *scales_of(network), max_singular_value, backend=backend)


def weights_of(network: nn.Module) -> list[torch.Tensor]:
    """Return the weights of all linear layers and convolutions."""
    return [module.weight for module in network.modules() if isinstance(module, WEIGHTED)]


def scales_of(network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the scales and the running variances of all batch norms that have both."""
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    norms = [norm for norm in norms if norm.affine and norm.track_running_stats]
    return [norm.weight for norm in norms], [norm.running_var for norm in norms if norm.running_var is not None]
