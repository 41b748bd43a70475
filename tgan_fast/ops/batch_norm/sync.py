"""Batch norm + activation in training with statistics over several processes.

Each process computes mean and variance of its own n values; an all-reduce of (n, Σx, Σx²) in float64 combines them.
Backward all-reduces Σg and Σg·(x - mean). triton.py or torch_impl.py does the rest. A process without values adds
zeros, because the others wait for it.
"""

import torch
import torch.distributed as dist

from tgan_fast.ops.batch_norm.activation import IDENTITY
from tgan_fast.ops.batch_norm.geometry import to_walkable
from tgan_fast.ops.native import differentiable_once


def batch_norm_act_sync(
    x, weight, bias, running_mean, running_var, num_batches_tracked, residual, momentum, eps, activation, groups,
    process_group, backend,
):  # fmt: skip
    """Compute `batch_norm_act` in training with a process group; differentiable once."""
    if backend == "triton" and x.numel():
        from tgan_fast.ops.batch_norm import triton as impl
    else:
        from tgan_fast.ops.batch_norm import torch_impl as impl
    weight, bias = (None if vector is None else vector.contiguous() for vector in (weight, bias))
    y, mean, var, count = _SyncBatchNormAct.apply(
        to_walkable(x), weight, bias, residual, eps, activation, groups, process_group, impl
    )
    if num_batches_tracked is not None:
        num_batches_tracked.add_(groups)
    if running_mean is not None:
        unbiased = var * (count / (count - 1).clamp(min=1))
        # If no process has values, the running statistics must not change; only the device knows the count.
        moves = count != 0
        for group in range(groups):
            group_momentum = momentum
            if momentum is None:
                # In float64, because 1 divided by an integer tensor is a float32.
                group_momentum = 1 / (num_batches_tracked - groups + group + 1).double()
            for running, new in ((running_mean, mean[group]), (running_var, unbiased[group])):
                running.add_((new - running) * group_momentum * moves)
    return y


class _SyncBatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, eps, activation, groups, process_group, impl):
        local_count = x.numel() // x.shape[1] // groups
        mean, var, count = _reduce_statistics(process_group, *impl.statistics(x, groups), local_count)
        rstd = (var + eps).rsqrt()
        # Without an activation, the residual's gradient is dy.
        saved_residual = None if activation == IDENTITY else residual
        ctx.save_for_backward(x, mean, rstd, weight, bias, saved_residual, count)
        ctx.activation, ctx.local_count = activation, local_count
        ctx.process_group, ctx.impl = process_group, impl
        ctx.mark_non_differentiable(mean, var, count)
        return impl.normalize(x, mean, rstd, weight, bias, residual, activation), mean, var, count

    @staticmethod
    @differentiable_once
    def backward(ctx, saved, dy, *_):
        *tensors, residual, count = saved
        want_x, want_weight, want_bias, want_residual = ctx.needs_input_grad[:4]
        activation = ctx.activation
        sums, dweight, dbias, g = ctx.impl.gradient_sums(dy, *tensors, residual, activation, want_weight, want_bias)
        if residual is not None:
            dy, activation = g, IDENTITY
        dx = None
        if want_x:
            dist.all_reduce(sums, group=ctx.process_group)
            # Only the device knows the count of all values, so the sums are scaled to be divided by the local count.
            sums = sums * (ctx.local_count / count).to(sums.dtype)
            dx = ctx.impl.input_gradient(dy, *tensors, activation, sums, ctx.local_count)
        dweight, dbias = dweight if want_weight else None, dbias if want_bias else None
        return dx, dweight, dbias, dy if want_residual else None, *(None,) * 5


def _reduce_statistics(process_group, mean, var, count):
    """Return mean and variance [groups, C] over all processes, and the number of values as a tensor []."""
    wide = mean.double()
    sums = torch.stack([torch.ones_like(wide), wide, var.double() + wide**2]) * count
    dist.all_reduce(sums, group=process_group)
    number = sums[0, 0, 0].clone()
    divisor = number.clamp(min=1)
    mean_of_all = sums[1] / divisor
    var_of_all = (sums[2] / divisor - mean_of_all**2).clamp_(min=0)
    return mean_of_all.to(mean.dtype), var_of_all.to(var.dtype), number
