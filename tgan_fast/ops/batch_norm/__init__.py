"""Batch normalization, addition of a residual and activation as one operation.

    y = act((x - mean) / sqrt(var + eps) · weight + bias + residual)

mean and var are per channel: in training the mean and the biased variance of the batch over all other dimensions,
otherwise the running statistics.
"""

import math
from typing import TYPE_CHECKING, get_args

import torch
import torch.nn.functional as F

from tgan_fast.choices import ActivationName, Backend
from tgan_fast.ops.arguments import check_tensor
from tgan_fast.ops.batch_norm import cpu
from tgan_fast.ops.batch_norm.activation import Activation
from tgan_fast.ops.batch_norm.torch_impl import activate_
from tgan_fast.ops.dispatch import BackendError, choose
from tgan_fast.ops.native import uses_native_ops

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Number of elements up to which PyTorch's own operations are faster on a contiguous CPU tensor, because calling the
# kernels from Python takes longer than computing.
_SMALL = 1 << 17


def batch_norm_act(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    *,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    negative_slope: float = 0.0,
    activation: ActivationName = "leaky_relu",
    residual: torch.Tensor | None = None,
    groups: int = 1,
    num_batches_tracked: torch.Tensor | None = None,
    process_group: "ProcessGroup | None" = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Normalize every channel of `x`, scale and shift it, add a residual, and apply an activation function.

    Args:
        x: Input [N, C, *] in float16, bfloat16, float32 or float64 and any memory format; an empty `x` leaves the
            running statistics unchanged. The kernels ("triton", "cpu") read dense tensors and slices of samples or
            channels, channels-last (fastest) or channels-first; a view that skips pixels is copied first. "triton"
            takes all dtypes but float64.
        weight, bias: Scale and shift [C], or None for 1 and 0.
        running_mean, running_var: Running statistics [C]. In training they are updated in place as `nn.BatchNorm*`
            does (with the unbiased variance); otherwise they normalize `x`.
        training: Whether to normalize with the statistics of `x` instead of the running ones.
        momentum: Weight of the new statistics in the running ones; None for a running mean over all batches.
        eps: Number added to the variance.
        negative_slope: Finite slope of the leaky ReLU below zero; 0 is ReLU, 1 is no activation.
        activation: Name of the activation, one of "leaky_relu", "relu6", "silu", "gelu_tanh" (the approximation of GELU
            by tanh) and "hardswish", as in `torch.nn.functional`.
        residual: Tensor of the shape, dtype and device of `x`, added before the activation, or None. It is saved for
            the backward pass, unless there is no activation.
        groups: Number of equal consecutive slices of the batch. Each is normalized with its own statistics, as if the
            operation were called once for each, and updates the running statistics in turn.
        num_batches_tracked: Counter, int64 [], to which training adds `groups`; required if `momentum` is None.
        process_group: Processes whose statistics are combined in training, as in `nn.SyncBatchNorm`; None for this
            process alone. Gradients of `weight` and `bias` are not combined. Not supported by torch.compile.
        backend: Name of an implementation: "triton" (GPUs), "cpu" (C++ kernels) or "torch"; "auto" picks the fastest
            that fits the input.

    Returns:
        A tensor of the shape, dtype and memory format of `x`. Only inside `tgan_fast.ops.native_ops` can its gradients
        be differentiated again.

    Raises:
        TypeError: An argument that must be a tensor is not one.
        ValueError: Shapes, dtypes, layouts, devices, groups, the slope or the name of the activation are invalid, or a
            channel has one value in training.
        BackendError: The requested backend cannot run here, or cannot take this tensor.
    """
    _check(x, weight, bias, running_mean, running_var, training, momentum, groups, num_batches_tracked, process_group)
    _check_residual(x, residual)
    check_activation(activation, negative_slope)
    if uses_native_ops():
        backend = _native_backend(backend, training, process_group)
    elif backend == "auto" and groups == 1 and _is_small(x, weight, bias, running_mean, running_var):
        backend = "torch"
    tensors = x, weight, bias, running_mean, running_var, num_batches_tracked, residual
    synchronized = training and process_group is not None
    why_not = {"triton": lambda: _why_not_triton(x), "cpu": lambda: _why_not_cpu(x, synchronized)}
    chosen = choose("batch_norm_act", backend, x, why_not)
    options = training, momentum, eps, Activation(activation, negative_slope), groups
    if x.numel() == 0 and not (synchronized and x.shape[1]):
        return _empty(x, weight, bias, residual, num_batches_tracked if training else None, groups)
    if synchronized:
        from tgan_fast.ops.batch_norm.sync import batch_norm_act_sync

        return batch_norm_act_sync(*tensors, *options[1:], process_group, chosen)
    if chosen != "torch":
        from tgan_fast.ops.batch_norm.autograd import batch_norm_act_by_kernels

        return batch_norm_act_by_kernels(chosen, *tensors, *options)
    return _torch_impl(*tensors, *options)


def _is_small(x, *vectors):
    """Return whether PyTorch's own operations support the tensors' dtypes and are faster than the CPU kernels."""
    return (
        x.is_cpu
        and x.numel() <= _SMALL
        and x.is_contiguous()
        and all(vector is None or vector.dtype == x.dtype for vector in vectors)
    )


def _native_backend(backend, training, process_group):
    if backend in ("triton", "cpu"):
        raise BackendError(f"batch_norm_act: backend {backend!r} cannot be used within native_ops")
    if training and process_group is not None:
        raise BackendError("batch_norm_act: statistics over several processes are not supported within native_ops")
    return "torch" if backend == "auto" else backend


def _why_not_triton(x):
    from tgan_fast.ops.batch_norm.triton import why_not

    return why_not(x)


def _why_not_cpu(x, synchronized):
    return "it does not support statistics over several processes" if synchronized else cpu.why_not(x)


def _empty(x, weight, bias, residual, num_batches_tracked, groups):
    """Return an empty tensor that gives all inputs gradients of zero, as `nn.BatchNorm*` does."""
    if num_batches_tracked is not None:
        num_batches_tracked.add_(groups)
    y = x.clone() if residual is None else x + residual
    for vector in (weight, bias):
        if vector is not None:
            y = y + vector.sum()
    return y


def _torch_impl(
    x, weight, bias, running_mean, running_var, num_batches_tracked, residual, training, momentum, eps, activation,
    groups,
):  # fmt: skip
    vectors = weight, bias, running_mean, running_var
    if not training:
        return _torch_group(x, residual, *vectors, training, 0.0, eps, activation)
    momenta = [momentum] * groups
    if num_batches_tracked is not None:
        if momentum is None:
            momenta = [1 / (int(num_batches_tracked) + group) for group in range(1, groups + 1)]
        num_batches_tracked.add_(groups)
    if groups == 1:  # x itself, because chunk(1) would be a view, whose backward copies the gradient
        return _torch_group(x, residual, *vectors, training, momenta[0], eps, activation)
    residuals = [None] * groups if residual is None else residual.chunk(groups)
    return torch.cat(
        [
            _torch_group(*group, *vectors, training, group_momentum, eps, activation)
            for *group, group_momentum in zip(x.chunk(groups), residuals, momenta, strict=True)
        ]
    )


def _torch_group(x, residual, weight, bias, running_mean, running_var, training, momentum, eps, activation):
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum or 0.0, eps)
    # In place: batch norm's backward reads its input, never its output, so the rest needs no memory of its own.
    if residual is not None:
        y = y.add_(residual)
    return activate_(y, activation)


def _check(x, weight, bias, running_mean, running_var, training, momentum, groups, num_batches_tracked, process_group):
    check_tensor("x", x)
    if x.dim() < 2:
        raise ValueError(f"batch_norm_act needs [N, C, *] and got the shape {list(x.shape)}")
    named = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, tensor in named.items():
        if tensor is not None:
            _check_channels(x, name, tensor)
    if (running_mean is None) != (running_var is None):
        raise ValueError("pass both running_mean and running_var, or neither of them")
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"groups must divide the batch: {x.shape[0]} samples do not form {groups} equal groups")
    if not training:
        if running_mean is None:
            raise ValueError("batch_norm_act with training=False needs running_mean and running_var")
        return
    if num_batches_tracked is not None:
        _check_count(x, num_batches_tracked, momentum)
    elif momentum is None and running_mean is not None:
        raise ValueError("momentum=None needs num_batches_tracked: pass it, or a number as momentum")
    values = x.numel() // max(1, x.shape[1]) // groups
    if values == 1 and (process_group is None or process_group.size() == 1):
        raise ValueError(
            f"batch norm in training needs more than one value per channel{' and group' if groups > 1 else ''}, "
            f"but x has the shape {list(x.shape)}: use a larger batch"
        )


def _check_residual(x, residual):
    if residual is None:
        return
    check_tensor("residual", residual)
    for what in ("shape", "dtype", "device"):
        mine, of_x = getattr(residual, what), getattr(x, what)
        if mine != of_x:
            mine, of_x = (list(value) if what == "shape" else value for value in (mine, of_x))
            raise ValueError(f"residual must have the {what} of x, which is {of_x}, and has {mine}")


def check_activation(name: str, negative_slope: float) -> None:
    """Raise a ValueError unless there is such an activation with such a slope."""
    if name not in get_args(ActivationName):
        raise ValueError(f"activation must be one of {', '.join(get_args(ActivationName))}, and is {name!r}")
    # Not math.isfinite, which torch.compile with dynamic=True cannot trace.
    if not abs(negative_slope) < math.inf:
        raise ValueError(f"negative_slope must be finite and is {negative_slope}")
    if name != "leaky_relu" and negative_slope != 0:
        raise ValueError(f"negative_slope belongs to leaky_relu, and activation is {name}: leave it out")


def _check_count(x, count, momentum):
    if not isinstance(count, torch.Tensor):
        raise TypeError(f"num_batches_tracked must be a tensor, not {type(count).__name__}")
    if count.dtype != torch.int64 or count.dim() != 0 or count.device != x.device:
        raise ValueError(
            f"num_batches_tracked must be one int64 on {x.device}, and is {list(count.shape)} {count.dtype} "
            f"on {count.device}"
        )
    if momentum is None and count.device.type == "meta":
        raise ValueError("num_batches_tracked has no value on the meta device: pass a number as momentum")


def _check_channels(x, name, tensor):
    check_tensor(name, tensor)
    if tensor.shape != (x.shape[1],):
        raise ValueError(f"{name} has the shape {list(tensor.shape)}, but x has {x.shape[1]} channels")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, but x is on {x.device}")
