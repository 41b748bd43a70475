"""Launchers of the C++ kernels of batch norm + residual + activation, csrc/cpu/batch_norm.h."""

import functools

import torch
from torch import Tensor

from tgan_fast.ops.batch_norm.geometry import empty_gradient, empty_output, geometry_of, strides_of, to_layout
from tgan_fast.ops.cpu_extension import extension, why_not_tensor

_TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}
STATISTICS_DTYPE = torch.float64  # of mean and rstd


def why_not(x: Tensor) -> str | None:
    """Return why the kernels cannot take `x`, or None if they can."""
    if x.dtype not in _TYPES:
        return f"it takes {', '.join(_TYPES.values())}, and x is {x.dtype}"
    return why_not_tensor(x)


def channels_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that weight, bias and running statistics must have."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def train(x, weight, bias, running_mean, running_var, batches, momentum, eps, residual, activation, groups):
    """Return y, mean and rstd [groups, C] in float64, and update the running statistics."""
    running = running_mean, running_var, batches
    return _forward(x, weight, bias, *running, residual, True, momentum, eps, activation, groups)


def evaluate(x, mean, var, weight, bias, residual, activation, eps):
    """Return y from running statistics [C]."""
    return _forward(x, weight, bias, mean, var, None, residual, False, 0.0, eps, activation, 1)[0]


def backward(dy, x, mean, rstd, var, weight, bias, residual, activation, eps, want_x, want_weight, want_bias):
    """Return dx, dweight and dbias, empty where not wanted, and the gradient of the residual, empty without one.

    Training passes rstd, and evaluation var.
    """
    try:
        dy.data_ptr()
    except RuntimeError:
        raise RuntimeError("batch_norm_act takes one gradient at a time: use native_ops for is_grads_batched") from None
    training = var is None
    if not training:
        mean, rstd = mean.double(), (var.double() + eps).rsqrt()
    geometry = geometry_of(x, mean.numel() // x.shape[1])
    dy = to_layout(dy.resolve_neg(), geometry.channels_last)
    residual, residual_strides = _readable(residual, geometry)
    outputs = want_x, residual is not None
    dx, dresidual = (empty_output(x, geometry) if wanted else x.new_empty(0) for wanted in outputs)
    dweight, dbias = empty_gradient(x, weight, want_weight), empty_gradient(x, bias, want_bias)
    extension().batch_norm_backward(
        _layout(geometry, x.dtype, x.shape, x.stride(), residual_strides, dy.stride()),
        x.data_ptr(),
        _address(residual),
        dy.data_ptr(),
        dx.data_ptr() if want_x else 0,
        dresidual.data_ptr() if residual is not None else 0,
        mean.data_ptr(),
        rstd.data_ptr(),
        _address(weight),
        _address(bias),
        dweight.data_ptr() if want_weight else 0,
        dbias.data_ptr() if want_bias else 0,
        training,
        getattr(extension().Activation, activation.name),
        activation.negative_slope,
        torch.get_num_threads(),
    )
    return dx, dweight, dbias, dresidual


def _forward(
    x, weight, bias, running_mean, running_var, batches, residual, training, momentum, eps, activation, groups
):
    geometry = geometry_of(x, groups)
    residual, residual_strides = _readable(residual, geometry)
    y = empty_output(x, geometry)
    mean, rstd = (x.new_empty((groups, x.shape[1]), dtype=STATISTICS_DTYPE) for _ in range(2))
    extension().batch_norm_forward(
        _layout(geometry, x.dtype, x.shape, x.stride(), residual_strides, y.stride()),
        x.data_ptr(),
        _address(residual),
        y.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        _address(weight),
        _address(bias),
        _address(running_mean),
        _address(running_var),
        _address(batches),
        training,
        momentum,
        eps,
        getattr(extension().Activation, activation.name),
        activation.negative_slope,
        torch.get_num_threads(),
    )
    return y, mean, rstd


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def _readable(residual, geometry):
    """Return the residual in a layout that the kernels can walk, and its strides; None for each without one."""
    if residual is None:
        return None, None
    residual = to_layout(residual.resolve_neg(), geometry.channels_last)
    return residual, residual.stride()


@functools.lru_cache(maxsize=4096)
def _layout(geometry, dtype, shape, strides, residual_strides, other_strides):
    """Return the kernels' description of x, residual (or None), another tensor (y or dy), and dx and dresidual."""
    every_strides = strides, residual_strides or strides, other_strides
    x, residual, other = (torch.empty_strided(shape, s, dtype=dtype, device="meta") for s in every_strides)
    module, cols = extension(), 1 if geometry.channels_last else geometry.cols
    sizes = geometry.channels_last, geometry.groups, geometry.rows, cols, geometry.channels
    of_tensors = strides_of(geometry, x, residual, other, empty_output(x, geometry))
    return module.Layout(getattr(module.Type, _TYPES[dtype]), *sizes, of_tensors)
