"""Batch norm + activation by kernels, registered with autograd and torch.compile.

The launchers are triton.py and cpu.py. Training, evaluation and backward are custom operators for torch.compile. Other
callers use the functions directly, which saves the dispatcher's time.
"""

from types import ModuleType

import torch
from torch import Tensor

from tgan_fast.ops.batch_norm import cpu
from tgan_fast.ops.batch_norm.activation import IDENTITY, Activation
from tgan_fast.ops.batch_norm.geometry import empty_gradient, empty_output, to_walkable
from tgan_fast.ops.native import differentiable_once


def launchers(backend: str) -> ModuleType:
    """Return the module of a backend, "triton" or "cpu"."""
    if backend == "cpu":
        return cpu
    # Not at the top, because importing Triton takes a while.
    from tgan_fast.ops.batch_norm import triton

    return triton


def batch_norm_act_by_kernels(
    backend, x, weight, bias, running_mean, running_var, num_batches_tracked, residual, training, momentum, eps,
    activation, groups,
):  # fmt: skip
    """Compute `batch_norm_act` by kernels; differentiable once."""
    dtype, given = launchers(backend).channels_dtype(x), (weight, bias, running_mean, running_var)
    weight, bias, *running = (_dense(vector, dtype) for vector in given)
    x = to_walkable(x)
    # Adding 0.0 makes a new symbol, because torch.compile with dynamic=True cannot pass one symbol to two functions.
    momentum = None if momentum is None else momentum + 0.0
    options = training, momentum, eps + 0.0, activation.name, activation.negative_slope + 0.0, groups
    inputs = x, weight, bias, residual
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    apply = _BatchNormAct.apply if differentiable else _compute
    y, *_ = apply(backend, *inputs, *running, num_batches_tracked, *options)
    for vector, moved in zip(given[2:], running, strict=True):
        if training and vector is not moved:
            vector.copy_(moved)
    return y


def _dense(vector, dtype):
    if vector is None or (vector.dtype == (dtype or vector.dtype) and vector.is_contiguous()):
        return vector
    return vector.to(dtype or vector.dtype).contiguous()


def _compute(
    backend, x, weight, bias, residual, running_mean, running_var, batches, training, momentum, eps, name, slope, groups
):
    """Return y and the statistics that backward needs: mean, rstd (None in evaluation) and var (None in training)."""
    compiling = torch.compiler.is_compiling()
    if training:
        train, running = _train_operation if compiling else _train, (running_mean, running_var, batches)
        return *train(backend, x, weight, bias, *running, residual, momentum, eps, name, slope, groups), None
    evaluate = _evaluate_operation if compiling else _evaluate
    y = evaluate(backend, x, running_mean, running_var, weight, bias, residual, name, slope, eps)
    return y, running_mean, None, running_var


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, x, weight, bias, residual, *others):
        y, *statistics = _compute(backend, x, weight, bias, residual, *others)
        *_, eps, name, slope, _ = others
        # Without an activation, the residual's gradient is dy.
        saved_residual = None if (name, slope) == IDENTITY else residual
        ctx.save_for_backward(x, *statistics, weight, bias, saved_residual)
        ctx.backend, ctx.options = backend, (name, slope, eps)
        return (y,)

    @staticmethod
    @differentiable_once
    def backward(ctx, tensors, dy):
        wanted = ctx.needs_input_grad[1:5]
        backward = _backward_operation if torch.compiler.is_compiling() else _backward
        *grads, dresidual = backward(ctx.backend, dy, *tensors, *ctx.options, *wanted[:3])
        grads = *grads, dy if tensors[-1] is None else dresidual
        return None, *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), *(None,) * 9


def _train(
    backend: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    residual: Tensor | None,
    momentum: float | None,
    eps: float,
    activation: str,
    negative_slope: float,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, mean and rstd [groups, C], and update the running statistics."""
    running = running_mean, running_var, batches
    act = Activation(activation, negative_slope)
    results = launchers(backend).train(x, weight, bias, *running, momentum, eps, residual, act, groups)
    for changed in running:
        if changed is not None and not changed.is_inference():
            torch.autograd.graph.increment_version(changed)
    return results


def _evaluate(
    backend: str,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    eps: float,
) -> Tensor:
    """Return y from running statistics [C]."""
    act = Activation(activation, negative_slope)
    return launchers(backend).evaluate(x, mean, var, weight, bias, residual, act, eps)


def _backward(
    backend: str,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    eps: float,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx, dweight and dbias, empty where not wanted, and the gradient of the residual, empty without one.

    Training passes rstd, and evaluation var.
    """
    act, wanted = Activation(activation, negative_slope), (want_x, want_weight, want_bias)
    return launchers(backend).backward(dy, x, mean, rstd, var, weight, bias, residual, act, eps, *wanted)


_train_operation = torch.library.custom_op(
    "tgan_fast::batch_norm_act_train", _train, mutates_args=("running_mean", "running_var", "batches")
)
_evaluate_operation = torch.library.custom_op("tgan_fast::batch_norm_act_evaluate", _evaluate, mutates_args=())
_backward_operation = torch.library.custom_op("tgan_fast::batch_norm_act_backward", _backward, mutates_args=())


@_train_operation.register_fake
def _(
    backend, x, weight, bias, running_mean, running_var, batches, residual, momentum, eps, activation, negative_slope,
    groups,
):  # fmt: skip
    dtype = launchers(backend).STATISTICS_DTYPE
    mean, rstd = (x.new_empty((groups, x.shape[1]), dtype=dtype) for _ in range(2))
    return empty_output(x), mean, rstd


@_evaluate_operation.register_fake
def _(backend, x, mean, var, weight, bias, residual, activation, negative_slope, eps):
    return empty_output(x)


@_backward_operation.register_fake
def _(
    backend, dy, x, mean, rstd, var, weight, bias, residual, activation, negative_slope, eps, want_x, want_weight,
    want_bias,
):  # fmt: skip
    dx, dresidual = (empty_output(x) if wanted else x.new_empty(0) for wanted in (want_x, residual is not None))
    return dx, empty_gradient(x, weight, want_weight), empty_gradient(x, bias, want_bias), dresidual
