"""Launchers of the Triton kernels of batch norm + activation."""

import functools
import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from tgan_fast.ops.batch_norm import triton_kernels as kernels
from tgan_fast.ops.batch_norm.activation import IDENTITY
from tgan_fast.ops.batch_norm.geometry import (
    empty_gradient,
    empty_output,
    geometry_of,
    small_strides_of,
    strides_of,
    to_layout,
)
from tgan_fast.ops.batch_norm.tiles import columns_for, small_rows_for, tile_for

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STATISTICS_DTYPE = torch.float32  # of mean and rstd

# When Triton decorates a kernel, it decides whether its interpreter runs it on a CPU, which is slow and for tests.
INTERPRETED = not isinstance(kernels.normalize_kernel, triton.JITFunction)
_INTERPRETED_MULTIPROCESSORS = 2
_WIDEST_ACCESS = 8  # half-precision values in 16 bytes
_MOST_REGISTERS = 255  # of a thread


def why_not(x: Tensor) -> str | None:
    """Return why the kernels cannot take `x`, or None if they can."""
    if x.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, and x is {x.dtype}"
    if not (x.is_cuda or (INTERPRETED and x.is_cpu)):
        return f"it runs on a GPU, and x is on {x.device}"
    return None


def channels_dtype(x: Tensor) -> None:
    """Return the dtype that weight, bias and running statistics must have; None for any."""


def train(x, weight, bias, running_mean, running_var, batches, momentum, eps, residual, activation, groups):
    """Return y, mean and rstd [groups, C], and update the running statistics."""
    running = running_mean, running_var, batches, momentum
    if momentum is None and batches is not None:
        batches.add_(groups)
    geometry = geometry_of(x, groups)
    if small_rows_for(geometry.values, geometry.channels_last) is not None:
        return _small_forward(x, weight, bias, *running, eps, residual, activation, geometry)
    rstd = x.new_empty((groups, x.shape[1]), dtype=torch.float32)
    mean = _statistics(x, groups, rstd, None, eps, *running)
    return normalize(x, mean, rstd, weight, bias, residual, activation), mean, rstd


def evaluate(x, mean, var, weight, bias, residual, activation, eps):
    """Return y from running statistics [C]."""
    return normalize(x, mean, None, weight, bias, residual, activation, var, eps)


def backward(dy, x, mean, rstd, var, weight, bias, residual, activation, eps, want_x, want_weight, want_bias):
    """Return dx, dweight and dbias, empty where not wanted, and the gradient of the residual, empty without one.

    Training passes rstd, and evaluation var.
    """
    training = var is None
    geometry = geometry_of(x, mean.numel() // x.shape[1])
    tensors, wanted = (x, mean, rstd, weight, bias), (want_weight, want_bias)
    if training and small_rows_for(geometry.values, geometry.channels_last) is not None:
        return _small_backward(dy, *tensors, residual, activation, want_x, *wanted, geometry)
    sums = None
    dweight, dbias, dresidual = (x.new_empty(0) for _ in range(3))
    if training or any(wanted) or residual is not None:
        sums, dweight, dbias, g = gradient_sums(dy, *tensors, residual, activation, *wanted, var, eps)
        if residual is not None:
            dy, activation, dresidual = g, IDENTITY, g
    if not want_x:
        return x.new_empty(0), dweight, dbias, dresidual
    dx = input_gradient(dy, *tensors, activation, sums if training else None, geometry.values, var, eps)
    return dx, dweight, dbias, dresidual


def statistics(x, groups):
    """Return mean and biased variance, [groups, C] each in float32."""
    var = x.new_empty((groups, x.shape[1]), dtype=torch.float32)
    return _statistics(x, groups, None, var), var


def _statistics(x, groups, rstd, var, eps=None, running_mean=None, running_var=None, batches=None, momentum=None):
    """Return mean [groups, C]; write rstd or var, whichever is not None, and update the running statistics."""
    geometry = geometry_of(x, groups)
    mean = x.new_empty((groups, x.shape[1]), dtype=torch.float32)
    strides, launch = _launch("statistics", x, geometry)
    partials = x.new_empty((groups, launch.splits, 4, x.shape[1]), dtype=torch.float32)
    with torch.cuda.device_of(x):
        kernels.statistics_kernel[launch.grid](
            x, partials, geometry.rows, geometry.cols, geometry.channels, launch.splits, launch.blocks, *strides,
            **launch.options,
        )  # fmt: skip
        kernels.combine_statistics_kernel[_combine_grid(x)](
            partials, mean, rstd, var, running_mean, running_var, batches, momentum, eps, geometry.values,
            geometry.channels, launch.splits, groups, num_warps=4,
        )  # fmt: skip
    return mean


# Below, rstd is 1 / sqrt(var + eps). In evaluation it is None, and the kernels compute it from var and eps, which saves
# a launch.


def normalize(x, mean, rstd, weight, bias, residual, activation, var=None, eps=None):
    """Return y from x and statistics [groups, C], or [C] for all of x."""
    geometry = geometry_of(x, mean.numel() // max(1, x.shape[1]))
    y = empty_output(x, geometry)
    if x.numel() == 0:
        return y
    residual = _residual_to_layout(residual, geometry)
    strides, launch = _launch("normalize", x, geometry, y, residual)
    with torch.cuda.device_of(x):
        kernels.normalize_kernel[launch.grid](
            x, y, residual, mean, rstd, var, eps, weight, bias, geometry.rows, geometry.cols, geometry.channels,
            launch.splits, launch.blocks, *strides, **_options_of(activation, residual), **launch.options,
        )  # fmt: skip
    return y


def gradient_sums(dy, x, mean, rstd, weight, bias, residual, activation, want_weight, want_bias, var=None, eps=None):
    """Return sums of g and g·(x - mean) [groups, 2, C] in float32, dweight and dbias (empty where not wanted), and g.

    g is the gradient of the residual, and None if there is none.
    """
    geometry = geometry_of(x, mean.numel() // x.shape[1])
    dy, residual = to_layout(dy, geometry.channels_last), _residual_to_layout(residual, geometry)
    g = None if residual is None else empty_output(x, geometry)
    strides, launch = _launch("gradient_sums", x, geometry, dy, residual, g)
    partials = x.new_empty((geometry.groups, launch.splits, 2, x.shape[1]), dtype=torch.float32)
    sums = x.new_empty((geometry.groups, 2, x.shape[1]), dtype=torch.float32)
    dweight, dbias = empty_gradient(x, weight, want_weight), empty_gradient(x, bias, want_bias)
    with torch.cuda.device_of(x):
        kernels.gradient_sums_kernel[launch.grid](
            x, dy, residual, g, partials, mean, rstd, var, eps, weight, bias, geometry.rows, geometry.cols,
            geometry.channels, launch.splits, launch.blocks, *strides, **_options_of(activation, residual),
            **launch.options,
        )  # fmt: skip
        kernels.combine_gradients_kernel[_combine_grid(x)](
            partials, sums, dweight if want_weight else None, dbias if want_bias else None, rstd, var, eps,
            geometry.channels, launch.splits, geometry.groups, num_warps=4,
        )  # fmt: skip
    return sums, dweight, dbias, g


def input_gradient(dy, x, mean, rstd, weight, bias, activation, sums, count, var=None, eps=None):
    """Return dx; `sums` [groups, 2, C] are over `count` values per channel and group, None for constant statistics.

    With a residual, pass its gradient as dy, and IDENTITY.
    """
    geometry = geometry_of(x, mean.numel() // x.shape[1])
    dy, dx = to_layout(dy, geometry.channels_last), empty_output(x, geometry)
    if x.numel() == 0:
        return dx
    strides, launch = _launch("input_gradient", x, geometry, dy, dx)
    with torch.cuda.device_of(x):
        kernels.input_gradient_kernel[launch.grid](
            x, dy, dx, sums, mean, rstd, var, eps, weight, bias, 1 / count, geometry.rows, geometry.cols,
            geometry.channels, launch.splits, launch.blocks, *strides, **_options_of(activation), **launch.options,
        )  # fmt: skip
    return dx


def _small_forward(x, weight, bias, running_mean, running_var, batches, momentum, eps, residual, activation, geometry):
    y, residual = empty_output(x, geometry), _residual_to_layout(residual, geometry)
    mean, rstd = (x.new_empty((geometry.groups, geometry.channels), dtype=torch.float32) for _ in range(2))
    grid, options = _small_launch_for("small_forward", x.element_size(), geometry)
    with torch.cuda.device_of(x):
        kernels.small_forward_kernel[grid](
            x, y, residual, mean, rstd, weight, bias, running_mean, running_var, batches, momentum, eps,
            geometry.values, geometry.inner, geometry.channels, geometry.groups,
            *small_strides_of(geometry, x, y, residual), **_options_of(activation, residual), **options,
        )  # fmt: skip
    return y, mean, rstd


def _small_backward(dy, x, mean, rstd, weight, bias, residual, activation, want_x, want_weight, want_bias, geometry):
    dy, residual = to_layout(dy, geometry.channels_last), _residual_to_layout(residual, geometry)
    dx = empty_output(x, geometry)
    g = None if residual is None else empty_output(x, geometry)
    dweight, dbias = empty_gradient(x, weight, want_weight), empty_gradient(x, bias, want_bias)
    grid, options = _small_launch_for("small_backward", x.element_size(), geometry)
    with torch.cuda.device_of(x):
        kernels.small_backward_kernel[grid](
            x, dy, dx if want_x else None, residual, g, dweight if want_weight else None, dbias if want_bias else None,
            mean, rstd, weight, bias, geometry.values, geometry.inner, geometry.channels, geometry.groups,
            *small_strides_of(geometry, x, dy, dx, residual, g), **_options_of(activation, residual), **options,
        )  # fmt: skip
    return dx if want_x else x.new_empty(0), dweight, dbias, x.new_empty(0) if g is None else g


def _residual_to_layout(residual, geometry):
    return None if residual is None else to_layout(residual, geometry.channels_last)


def _options_of(activation, residual=None):
    """Return compile-time arguments of a kernel with this activation, and its limit of registers."""
    options = {"ACTIVATION": activation.name, "NEGATIVE_SLOPE": activation.negative_slope}
    # By its own choice, ptxas spills registers of these kernels, so that one more program fits a multiprocessor.
    spills = residual is not None or activation == IDENTITY
    return {**options, "maxnreg": _MOST_REGISTERS} if spills else options


class _Launch(NamedTuple):
    """A grid and the arguments that depend on it."""

    grid: tuple[int]
    splits: int  # number of programs that share the tiles of a block of channels
    blocks: int  # of channels
    options: dict


def _launch(kernel, x, geometry, *others):
    """Return strides and launch of a kernel on x and other tensors of its shape, which may be None."""
    strides = strides_of(geometry, x, *others)
    return strides, _launch_for(kernel, x.element_size(), x.device, geometry, tuple(strides))


@functools.lru_cache(maxsize=4096)
def _launch_for(kernel, itemsize, device, geometry, strides):
    channels_last = geometry.channels_last
    tile = tile_for(kernel, itemsize, channels_last, columns_for(geometry.cols, channels_last))
    tiles, blocks = triton.cdiv(geometry.rows, tile.rows), geometry.channels
    if channels_last:
        blocks = triton.cdiv(blocks, tile.columns)
    else:
        tiles *= triton.cdiv(geometry.cols, tile.columns)
    programs = tile.programs * _multiprocessors(device)
    splits = max(1, min(tiles, triton.cdiv(programs, blocks * geometry.groups)))
    # The stride of a column is 1, and if channels-last also that of a channel.
    steps = strides[::2] if channels_last else strides
    options = {
        "CHANNELS_LAST": channels_last,
        "ALIGNMENT": math.gcd(_WIDEST_ACCESS, geometry.cols, *(step for step in steps if step is not None)),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLS": tile.columns,
        "num_warps": tile.warps,
    }
    return _Launch((splits * blocks * geometry.groups,), splits, blocks, options)


@functools.lru_cache(maxsize=4096)
def _small_launch_for(kernel, itemsize, geometry):
    rows = small_rows_for(geometry.values, geometry.channels_last)
    tile = tile_for(kernel, itemsize, geometry.channels_last, rows)
    options = {"BLOCK_ROWS": tile.rows, "BLOCK_COLS": tile.columns, "num_warps": tile.warps}
    return (triton.cdiv(geometry.channels, tile.columns),), options


def forget_launches():
    """Drop cached launches after a change of the table."""
    _launch_for.cache_clear()
    _small_launch_for.cache_clear()


@functools.cache
def _multiprocessors(device):
    if INTERPRETED:
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _combine_grid(x):
    return (triton.cdiv(x.shape[1], kernels.COMBINED_CHANNELS.value),)
