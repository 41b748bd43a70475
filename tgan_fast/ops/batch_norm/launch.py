"""Batch norm + (leaky) ReLU on a GPU: how the kernels are launched, and how autograd and torch.compile see them.

Forward, backward and evaluation are registered with PyTorch, and torch.compile takes each as it is. Outside of it they
are called directly, which saves the dispatcher's time.
"""

import contextlib
import functools
import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from tgan_fast.ops.batch_norm import kernels
from tgan_fast.ops.batch_norm.tiles import columns_for, small_rows_for, tile_for

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Triton decides it when it decorates the kernels: in its interpreter they run on a CPU, slowly, for tests.
INTERPRETED = not isinstance(kernels.normalize_kernel, triton.JITFunction)
_INTERPRETED_MULTIPROCESSORS = 2
_WIDEST_ACCESS = 8  # values of half precision in 16 bytes


def why_not(x: Tensor) -> str | None:
    """Why the kernels cannot take `x`; None if they can."""
    if x.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, and x is {x.dtype}"
    if not (x.is_cuda or INTERPRETED):
        return f"it runs on a GPU, and x is on {x.device}"
    return None


def batch_norm_act_triton(x, *arguments):
    """As `batch_norm_act`, its arguments in the order of `_BatchNormAct`; differentiable once."""
    return _BatchNormAct.apply(walkable(x), *arguments)


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, batches, training, momentum, eps, slope, groups):
        compiling = torch.compiler.is_compiling()
        if training:
            forward = _train_operation if compiling else _train
            running = running_mean, running_var, batches
            y, mean, spread = forward(x, weight, bias, *running, momentum, eps, slope, groups)
            eps = None
        else:
            mean, spread = running_mean, running_var
            y = (_evaluate_operation if compiling else normalize)(x, mean, spread, weight, bias, slope, eps)
        ctx.save_for_backward(x, mean, spread, weight, bias)
        ctx.options = slope, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        wanted = ctx.needs_input_grad[:3]
        backward = _backward_operation if torch.compiler.is_compiling() else _backward
        grads = backward(dy, *ctx.saved_tensors, *ctx.options, *wanted)
        return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), *(None,) * 8


def _train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | None,
    eps: float,
    negative_slope: float,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and mean and 1 / sqrt(var + eps) as [groups, C]; moves the running statistics."""
    running = running_mean, running_var, batches, momentum
    if momentum is None and batches is not None:
        batches.add_(groups)
    geometry = _Geometry.of(x, groups)
    if small_rows_for(geometry.count, geometry.channels_last) is not None:
        results = _small_forward(x, weight, bias, *running, eps, negative_slope, geometry)
    else:
        mean, spread = statistics(x, groups, eps, *running)
        results = normalize(x, mean, spread, weight, bias, negative_slope), mean, spread
    for changed in (running_mean, running_var, batches):
        if changed is not None and not changed.is_inference():
            torch.autograd.graph.increment_version(changed)
    return results


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    negative_slope: float,
    eps: float | None,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias, empty where not wanted; of evaluation if there is an eps."""
    training = eps is None
    geometry = _Geometry.of(x, mean.numel() // x.shape[1])
    arguments = dy, x, mean, spread, weight, bias, negative_slope
    if training and small_rows_for(geometry.count, geometry.channels_last) is not None:
        return _small_backward(*arguments, want_x, want_weight, want_bias, geometry)
    sums, dweight, dbias = None, x.new_empty(0), x.new_empty(0)
    if training or want_weight or want_bias:
        sums, dweight, dbias = gradient_sums(*arguments, want_weight, want_bias, eps)
    if not want_x:
        return x.new_empty(0), dweight, dbias
    dx = input_gradient(*arguments, sums if training else None, geometry.count, eps)
    return dx, dweight, dbias


def walkable(x):
    """x, or a copy in the layout most like its own that the kernels can walk."""
    return x if _is_channels_last(x) is not None else _laid_out(x, channels_last=x.stride(1) == 1)


# In what follows, as in the kernels, `spread` is 1 / sqrt(var + eps) where eps is None, and var where it is given.


def statistics(x, groups, eps=None, running_mean=None, running_var=None, batches=None, momentum=None):
    """Mean and biased variance, or with an eps mean and 1 / sqrt(var + eps), as [groups, C] in float32.

    Moves the running statistics, if there are any.
    """
    geometry = _Geometry.of(x, groups)
    mean, spread = (x.new_empty((groups, x.shape[1]), dtype=torch.float32) for _ in range(2))
    tile = _tile("statistics", x, geometry)
    splits, blocks = _splits(x, geometry, tile)
    partials = x.new_empty((groups, splits, 4, x.shape[1]), dtype=torch.float32)
    with _on_device_of(x):
        kernels.statistics_kernel[(splits * blocks * groups,)](
            x, partials, geometry.rows, geometry.cols, geometry.channels, splits, blocks,
            *_walk(x, geometry.channels_last), **_blocks(geometry, tile, x),
        )  # fmt: skip
        kernels.combine_statistics_kernel[(_combining_programs(x),)](
            partials, mean, spread, running_mean, running_var, batches, momentum, eps, geometry.count,
            geometry.channels, splits, groups, num_warps=4,
        )  # fmt: skip
    return mean, spread


def normalize(
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    negative_slope: float,
    eps: float | None = None,
) -> Tensor:
    """y from x and given statistics [groups, C], or [C] for all of x."""
    geometry = _Geometry.of(x, mean.numel() // max(1, x.shape[1]))
    y = _empty_like(x, geometry.channels_last)
    if x.numel() == 0:
        return y
    tile = _tile("normalize", x, geometry)
    splits, blocks = _splits(x, geometry, tile)
    with _on_device_of(x):
        kernels.normalize_kernel[(splits * blocks * geometry.groups,)](
            x, y, mean, spread, weight, bias, eps, geometry.rows, geometry.cols, geometry.channels, splits, blocks,
            *_walk(x, geometry.channels_last), *_walk(y, geometry.channels_last),
            NEGATIVE_SLOPE=negative_slope, **_blocks(geometry, tile, x, y),
        )  # fmt: skip
    return y


def gradient_sums(dy, x, mean, spread, weight, bias, negative_slope, want_weight, want_bias, eps=None):
    """Sums of g and of g·(x - mean) as [groups, 2, C] in float32, dweight and dbias (empty where not wanted)."""
    geometry = _Geometry.of(x, mean.numel() // x.shape[1])
    dy = _laid_out(dy, geometry.channels_last)
    tile = _tile("gradient_sums", x, geometry)
    splits, blocks = _splits(x, geometry, tile)
    partials = x.new_empty((geometry.groups, splits, 2, x.shape[1]), dtype=torch.float32)
    sums = x.new_empty((geometry.groups, 2, x.shape[1]), dtype=torch.float32)
    dweight, dbias = _empty_gradient(x, weight, want_weight), _empty_gradient(x, bias, want_bias)
    with _on_device_of(x):
        kernels.gradient_sums_kernel[(splits * blocks * geometry.groups,)](
            x, dy, partials, mean, spread, weight, bias, eps, geometry.rows, geometry.cols, geometry.channels, splits,
            blocks, *_walk(x, geometry.channels_last), *_walk(dy, geometry.channels_last),
            NEGATIVE_SLOPE=negative_slope, **_blocks(geometry, tile, x, dy),
        )  # fmt: skip
        kernels.combine_gradients_kernel[(_combining_programs(x),)](
            partials, sums, dweight if want_weight else None, dbias if want_bias else None, spread, eps,
            geometry.channels, splits, geometry.groups, num_warps=4,
        )  # fmt: skip
    return sums, dweight, dbias


def input_gradient(dy, x, mean, spread, weight, bias, negative_slope, sums, count, eps=None):
    """dx; `sums` [groups, 2, C] are over `count` values a channel and group, None if mean and var are constants."""
    geometry = _Geometry.of(x, mean.numel() // x.shape[1])
    dy = _laid_out(dy, geometry.channels_last)
    dx = _empty_like(x, geometry.channels_last)
    if x.numel() == 0:
        return dx
    tile = _tile("input_gradient", x, geometry)
    splits, blocks = _splits(x, geometry, tile)
    with _on_device_of(x):
        kernels.input_gradient_kernel[(splits * blocks * geometry.groups,)](
            x, dy, dx, sums, mean, spread, weight, bias, eps, 1 / count, geometry.rows, geometry.cols,
            geometry.channels, splits, blocks,
            *(stride for t in (x, dy, dx) for stride in _walk(t, geometry.channels_last)),
            NEGATIVE_SLOPE=negative_slope, **_blocks(geometry, tile, x, dy, dx),
        )  # fmt: skip
    return dx


def _small_forward(x, weight, bias, running_mean, running_var, batches, momentum, eps, negative_slope, geometry):
    y = _empty_like(x, geometry.channels_last)
    mean, spread = (x.new_empty((geometry.groups, geometry.channels), dtype=torch.float32) for _ in range(2))
    tile = _small_tile("small_forward", x, geometry)
    with _on_device_of(x):
        kernels.small_forward_kernel[(triton.cdiv(geometry.channels, tile.columns),)](
            x, y, mean, spread, weight, bias, running_mean, running_var, batches, momentum, eps, geometry.count,
            geometry.inner, geometry.channels, geometry.groups,
            *(stride for t in (x, y) for stride in _small_walk(t, geometry.channels_last)),
            NEGATIVE_SLOPE=negative_slope, BLOCK_ROWS=tile.rows, BLOCK_COLS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return y, mean, spread


def _small_backward(dy, x, mean, spread, weight, bias, negative_slope, want_x, want_weight, want_bias, geometry):
    dy = _laid_out(dy, geometry.channels_last)
    dx = _empty_like(x, geometry.channels_last) if want_x else x.new_empty(0)
    dweight, dbias = _empty_gradient(x, weight, want_weight), _empty_gradient(x, bias, want_bias)
    tile = _small_tile("small_backward", x, geometry)
    strides = [_small_walk(t, geometry.channels_last) for t in (x, dy)]
    strides.append(_small_walk(dx, geometry.channels_last) if want_x else (0, 0, 0))
    with _on_device_of(x):
        kernels.small_backward_kernel[(triton.cdiv(geometry.channels, tile.columns),)](
            x, dy, dx if want_x else None, dweight if want_weight else None, dbias if want_bias else None,
            mean, spread, weight, bias, geometry.count, geometry.inner, geometry.channels, geometry.groups,
            *(stride for walk in strides for stride in walk),
            NEGATIVE_SLOPE=negative_slope, BLOCK_ROWS=tile.rows, BLOCK_COLS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return dx, dweight, dbias


class _Geometry(NamedTuple):
    """x [N, C, *] as the kernels walk it: `groups` times [rows, C] or, with the channels first, [rows, C, cols]."""

    channels_last: bool
    groups: int
    rows: int
    cols: int
    channels: int
    count: int  # values a channel and group
    inner: int  # values a channel in what the small kernels take for a sample

    @classmethod
    def of(cls, x, groups):
        channels = x.shape[1]
        values = x.numel() // max(1, channels)
        count = values // groups
        if _is_channels_last(x):
            return cls(True, groups, count, channels, channels, count, values)
        pixels = values // max(1, x.shape[0])
        return cls(False, groups, x.shape[0] // groups, pixels, channels, count, pixels)

    def tiles(self, tile):
        """Tiles of a block of channels in a group, and blocks of channels."""
        if self.channels_last:
            return triton.cdiv(self.rows, tile.rows), triton.cdiv(self.channels, tile.columns)
        return triton.cdiv(self.rows, tile.rows) * triton.cdiv(self.cols, tile.columns), self.channels


def _is_channels_last(x) -> bool | None:
    """Which of the two layouts x has: channels last, channels first, or (None) another one."""
    if x.shape[1] > 1 and _walks(x, channels_last=True):
        return True
    return False if _walks(x, channels_last=False) else None


def _walks(t, channels_last):
    """Whether the kernels can walk t in this layout."""
    if channels_last:
        return t.stride(1) == 1 and _stride_over(t, (0, *range(2, t.dim()))) is not None
    return _stride_over(t, range(2, t.dim())) == 1


def _walk(t, channels_last):
    """Strides of a row and of a channel."""
    if channels_last:
        return _stride_over(t, (0, *range(2, t.dim()))), 1
    return t.stride(0), t.stride(1)


def _small_walk(t, channels_last):
    """Strides of a sample, a pixel and a channel; with the channels last all of t is one sample."""
    row, channel = _walk(t, channels_last)
    return (0, row, channel) if channels_last else (row, 1, channel)


def _stride_over(t, dims) -> int | None:
    """The stride that walks these dimensions of t as if they were one, if there is such a one."""
    stride, extent = None, 1
    for dim in reversed(dims):
        if t.shape[dim] == 1:
            continue
        if stride is None:
            stride = t.stride(dim)
        elif t.stride(dim) != stride * extent:
            return None
        extent *= t.shape[dim]
    return 1 if stride is None else stride


def _laid_out(t, channels_last):
    """t itself if the kernels can walk it in this layout, otherwise a copy."""
    if _walks(t, channels_last):
        return t
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t.contiguous()


def _empty_like(x, channels_last):
    """An output for x: dense, in its layout."""
    pixels = x.numel() // max(1, x.shape[0] * x.shape[1])
    row, channel = _walk(x, channels_last)
    if channels_last:
        if row == x.shape[1] or x.shape[0] * pixels == 1:
            return torch.empty_like(x)
        return x.new_empty((x.shape[0], *x.shape[2:], x.shape[1])).movedim(-1, 1)
    if (row == x.shape[1] * pixels or x.shape[0] == 1) and (channel == pixels or x.shape[1] == 1):
        return torch.empty_like(x)
    return x.new_empty(x.shape)


def _empty_gradient(x, parameter, wanted):
    return torch.empty_like(parameter) if wanted else x.new_empty(0)


def _tile(kernel, x, geometry):
    columns = columns_for(geometry.cols, geometry.channels_last)
    return tile_for(kernel, x.element_size(), geometry.channels_last, columns)


def _small_tile(kernel, x, geometry):
    rows = small_rows_for(geometry.count, geometry.channels_last)
    return tile_for(kernel, x.element_size(), geometry.channels_last, rows)


def _blocks(geometry, tile, *tensors):
    strides = (stride for t in tensors for stride in _walk(t, geometry.channels_last)[: 2 - geometry.channels_last])
    return {
        "CHANNELS_LAST": geometry.channels_last,
        "ALIGNMENT": math.gcd(_WIDEST_ACCESS, geometry.cols, *strides),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLS": tile.columns,
        "num_warps": tile.warps,
    }


def _splits(x, geometry, tile):
    """How many programs share the sums of a channel, so that the GPU is full once, and the blocks of channels."""
    tiles, blocks = geometry.tiles(tile)
    programs = tile.programs * _multiprocessors(x.device)
    return max(1, min(tiles, programs // (blocks * geometry.groups))), blocks


@functools.cache
def _multiprocessors(device):
    if INTERPRETED:
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _combining_programs(x):
    return triton.cdiv(x.shape[1], kernels.COMBINED_CHANNELS.value)


def _on_device_of(x):
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


_train_operation = torch.library.custom_op(
    "tgan_fast::batch_norm_act_train", _train, mutates_args=("running_mean", "running_var", "batches")
)
_evaluate_operation = torch.library.custom_op("tgan_fast::batch_norm_act_evaluate", normalize, mutates_args=())
_backward_operation = torch.library.custom_op("tgan_fast::batch_norm_act_backward", _backward, mutates_args=())


@_train_operation.register_fake
def _(x, weight, bias, running_mean, running_var, batches, momentum, eps, negative_slope, groups):
    mean, spread = (x.new_empty((groups, x.shape[1]), dtype=torch.float32) for _ in range(2))
    return _empty_like(x, _is_channels_last(x)), mean, spread


@_evaluate_operation.register_fake
def _(x, mean, spread, weight, bias, negative_slope, eps=None):
    return _empty_like(x, _is_channels_last(x))


@_backward_operation.register_fake
def _(dy, x, mean, spread, weight, bias, negative_slope, eps, want_x, want_weight, want_bias):
    dx = _empty_like(x, _is_channels_last(x)) if want_x else x.new_empty(0)
    return dx, _empty_gradient(x, weight, want_weight), _empty_gradient(x, bias, want_bias)
