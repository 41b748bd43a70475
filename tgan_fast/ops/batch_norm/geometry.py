"""Memory layout of a tensor for the batch norm kernels: rows, columns and strides.

Shapes repeat from one training step to the next, and computing the geometry takes longer than launching a kernel, so
the geometry is cached. While torch.compile traces, sizes may be symbols, and nothing is cached.
"""

import functools
import math
from typing import NamedTuple

import torch

_remember = functools.lru_cache(maxsize=4096)


class Geometry(NamedTuple):
    """Geometry of x [N, C, *] as `groups` blocks [rows, C] if channels-last, or [rows, C, cols] if channels-first."""

    channels_last: bool
    groups: int
    rows: int
    cols: int
    channels: int
    values: int  # per channel and group
    inner: int  # values per channel in a sample; for the small kernels, a channels-last group is one sample
    dense: bool


def geometry_of(x: torch.Tensor, groups: int) -> Geometry:
    """Return the geometry of an x that `to_walkable` returned."""
    return _geometry(x.shape, x.stride(), groups)


def to_walkable(x: torch.Tensor) -> torch.Tensor:
    """Return x if the kernels can walk it, otherwise a copy in the nearest layout that they can walk."""
    layout = _layout.__wrapped__ if torch.compiler.is_compiling() else _layout
    return x if layout(x.shape, x.stride()) is not None else _copied(x, channels_last=x.stride(1) == 1)


def to_layout(t: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Return t if the kernels can walk it in this layout, otherwise a copy."""
    return t if _can_walk(t.shape, t.stride(), channels_last) else _copied(t, channels_last)


def empty_output(x: torch.Tensor, geometry: Geometry | None = None) -> torch.Tensor:
    """Return an uninitialized dense tensor in x's layout."""
    geometry = geometry or _geometry.__wrapped__(x.shape, x.stride(), 1)
    if geometry.dense:
        return torch.empty_like(x)
    if geometry.channels_last:
        return x.new_empty((x.shape[0], *x.shape[2:], x.shape[1])).movedim(-1, 1)
    return x.new_empty(x.shape)


def empty_gradient(x: torch.Tensor, parameter: torch.Tensor | None, wanted: bool) -> torch.Tensor:
    """Return an uninitialized gradient of a parameter, or an empty tensor where it is not wanted."""
    return torch.empty_like(parameter) if wanted and parameter is not None else x.new_empty(0)


def strides_of(geometry: Geometry, *tensors: torch.Tensor | None) -> list[int | None]:
    """Return the strides of a row and of a channel for each tensor; those of None are None."""
    return [stride for t in tensors for stride in _strides(geometry, t)]


def small_strides_of(geometry: Geometry, *tensors: torch.Tensor | None) -> list[int | None]:
    """Return each tensor's strides of a sample, a pixel and a channel; those of None are None.

    If channels-last, a group is one sample.
    """
    return [stride for t in tensors for stride in _small_strides(geometry, t)]


def _strides(geometry, t):
    return (None, None) if t is None else _walk(t.shape, t.stride(), geometry.channels_last)


def _small_strides(geometry, t):
    if t is None:
        return None, None, None
    row, channel = _walk(t.shape, t.stride(), geometry.channels_last)
    return (geometry.rows * row, row, channel) if geometry.channels_last else (row, 1, channel)


def _copied(t, channels_last):
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t.contiguous()


@_remember
def _geometry(shape, strides, groups):
    samples, channels, *pixel_shape = shape
    pixels = math.prod(pixel_shape)
    channels_last = _layout.__wrapped__(shape, strides)
    row, channel = _walk.__wrapped__(shape, strides, channels_last)
    if channels_last:
        rows = samples * pixels
        dense = rows == 1 or row == channels
        return Geometry(True, groups, rows // groups, channels, channels, rows // groups, rows // groups, dense)
    dense = (samples == 1 or row == channels * pixels) and (channels == 1 or channel == pixels)
    rows = samples // groups
    return Geometry(False, groups, rows, pixels, channels, rows * pixels, pixels, dense)


@_remember
def _layout(shape, strides) -> bool | None:
    """Return True for channels-last, False for channels-first, None for neither."""
    if shape[1] > 1 and _can_walk.__wrapped__(shape, strides, True):
        return True
    return False if _can_walk.__wrapped__(shape, strides, False) else None


@_remember
def _can_walk(shape, strides, channels_last):
    if channels_last:
        return strides[1] == 1 and _walk.__wrapped__(shape, strides, True)[0] is not None
    return _stride_over(shape[2:], strides[2:]) == 1


@_remember
def _walk(shape, strides, channels_last):
    """Return the strides of a row and of a channel."""
    if channels_last:
        return _stride_over((shape[0], *shape[2:]), (strides[0], *strides[2:])), strides[1]
    return strides[0], strides[1]


def _stride_over(shape, strides) -> int | None:
    """Return the single stride that walks all these dimensions, or None if there is none."""
    stride, extent = None, 1
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride = step
        elif step != stride * extent:
            return None
        extent *= size
    return 1 if stride is None else stride
