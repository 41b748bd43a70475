"""Batch normalisation and (leaky) ReLU as one operation.

    y = act((x - mean) / sqrt(var + eps) · weight + bias),   act(v) = v if v > 0 else negative_slope · v

mean and var are those of a channel over everything but the channel axis: the batch's own in training (var biased),
the running ones otherwise.
"""

import torch
import torch.nn.functional as F

from tgan_fast.ops.batch_norm_act_cpu import activate_, batch_norm_act_cpu, fits
from tgan_fast.ops.registry import require


def batch_norm_act(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    negative_slope: float = 0.0,
    groups: int = 1,
    backend: str = "auto",
) -> torch.Tensor:
    """Normalise every channel of `x`, scale and shift it, and apply a leaky ReLU.

    Args:
        x: [N, C, *], floating point, any memory format.
        weight, bias: [C] each, or None for 1 and 0.
        running_mean, running_var: [C] each. In training they are updated in place as `nn.BatchNorm*` does (with the
            unbiased variance); otherwise they are what `x` is normalised with.
        training: normalise with the statistics of `x` itself.
        momentum: weight of the new statistics in the running ones.
        eps: added to the variance.
        negative_slope: slope of the activation below zero; 0 is ReLU, 1 is no activation.
        groups: N is this many equal consecutive parts, each normalised with its own statistics, as if the operation
            had been called once a part; the running statistics are updated once a part, in order.
        backend: "torch"; "auto" picks the fastest that fits the input.

    Returns:
        A tensor of the shape, dtype and memory format of `x`.

    Raises:
        ValueError: shapes, dtype or groups do not fit; one value a channel in training.
        BackendError: the backend asked for cannot run here.
    """
    _check(x, weight, bias, running_mean, running_var, training, groups)
    backend = "torch" if backend == "auto" else backend
    require("batch_norm_act", backend)
    if groups == 1 or not training:
        return _torch(x, weight, bias, running_mean, running_var, training, momentum, eps, negative_slope)
    parts = [
        _torch(part, weight, bias, running_mean, running_var, training, momentum, eps, negative_slope)
        for part in x.chunk(groups)
    ]
    return torch.cat(parts)


def _torch(x, weight, bias, running_mean, running_var, training, momentum, eps, negative_slope):
    if training and fits(x):
        return batch_norm_act_cpu(x, weight, bias, running_mean, running_var, momentum, eps, negative_slope)
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    # In place: batch norm's backward reads its input, never its output, so the activation needs no memory of its own.
    return activate_(y, negative_slope)


def _check(x, weight, bias, running_mean, running_var, training, groups):
    if x.dim() < 2:
        raise ValueError(f"batch_norm_act needs [N, C, *] and got the shape {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"batch_norm_act needs a floating-point tensor and got {x.dtype}")
    channels = x.shape[1]
    named = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, tensor in named.items():
        if tensor is None:
            continue
        if tensor.shape != (channels,):
            raise ValueError(f"{name} has the shape {list(tensor.shape)}, but x has {channels} channels")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, but x is on {x.device}")
    if not training and (running_mean is None or running_var is None):
        raise ValueError("batch_norm_act with training=False needs running_mean and running_var")
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"groups must divide the batch: {x.shape[0]} is not {groups} equal parts")
    if training and x.numel() // max(1, channels) // groups <= 1:
        raise ValueError(
            f"batch norm in training needs more than one value a channel{' and part' if groups > 1 else ''}, "
            f"but x has the shape {list(x.shape)}: use a larger batch"
        )
