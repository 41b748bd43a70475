"""Checks of what is to be clipped, and its division into matrices."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from tgan_fast.ops.arguments import check_tensor, check_writable, number, tensor_list

_SMALLEST_THRESHOLD, _LARGEST_THRESHOLD = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


class Operand(NamedTuple):
    """A matrix [rows, *] to clip at its threshold, and a tensor of its shape for a copy of the result, or None."""

    weight: torch.Tensor
    copy: torch.Tensor | None
    threshold: float


def checked_operands(weights, thresholds, copies, non_finite, batch_dims: int = 0, out_dim: int = 0) -> list[Operand]:
    """Return the matrices of all weights; the arguments are those of `singular_value_clip_`.

    Raises:
        TypeError, ValueError: As for `singular_value_clip_`.
    """
    weights = tensor_list("weights", weights)
    copies = [None] * len(weights) if copies is None else tensor_list("copies", copies)
    if len(copies) != len(weights):
        raise ValueError(f"copies must have one entry per weight: {len(weights)} weights, but {len(copies)} copies")
    thresholds = _checked_thresholds(thresholds, len(weights))
    if non_finite is not None:
        _check_flag(non_finite)
    for weight, copy in zip(weights, copies, strict=True):
        check_weight(weight, batch_dims, out_dim)
        check_writable("a weight", weight)
        if copy is not None:
            _check_copy(copy, weight)
        if non_finite is not None and non_finite.device != weight.device:
            raise ValueError(f"non_finite is on {non_finite.device}, but a weight is on {weight.device}")
    operands = []
    for weight, copy, threshold in zip(weights, copies, _smallest_thresholds(weights, thresholds), strict=True):
        matrices = matrices_of(weight, batch_dims, out_dim)
        parts = [None] * len(matrices) if copy is None else matrices_of(copy, batch_dims, out_dim)
        operands += [Operand(matrix, part, threshold) for matrix, part in zip(matrices, parts, strict=True)]
    return operands


def matrices_of(tensor: torch.Tensor, batch_dims: int, out_dim: int) -> list[torch.Tensor]:
    """Return the matrices [rows, *] of a checked weight, or of a tensor of its shape, as views."""
    return [tensor[index].movedim(out_dim, 0) for index in np.ndindex(*tensor.shape[:batch_dims])]


def check_weight(weight: torch.Tensor, batch_dims: int = 0, out_dim: int = 0) -> None:
    """Raise unless a weight, of any type, can be clipped as a matrix, or as matrices.

    Raises:
        TypeError, ValueError: As for `singular_value_clip`.
    """
    check_tensor("a weight", weight)
    if hasattr(weight, "full_tensor"):
        raise ValueError(
            "a weight is a DTensor, whose singular values are not those of its parts: clip full = weight.full_tensor(),"
            " then weight.copy_(distribute_tensor(full, weight.device_mesh, weight.placements))"
        )
    # FSDP with use_orig_params leaves each process a flat part of a weight.
    if getattr(weight, "_fsdp_flattened", False) and weight.dim() < 2:
        raise ValueError(
            "a weight is sharded by FSDP, and the singular values are not those of its parts: clip it inside "
            "FullyShardedDataParallel.summon_full_params(module)"
        )
    for name, value in (("batch_dims", batch_dims), ("out_dim", out_dim)):
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} must be a whole number, 0 or more, not {value!r}")
    if weight.dim() == 0 or weight.numel() == 0:
        raise ValueError(f"singular value clipping needs a matrix with elements, not {list(weight.shape)}")
    if batch_dims + out_dim >= weight.dim():
        raise ValueError(
            f"batch_dims={batch_dims} and out_dim={out_dim} need a weight of at least {batch_dims + out_dim + 1} "
            f"dimensions, not {list(weight.shape)}"
        )


def _checked_thresholds(thresholds, count) -> list[float]:
    if not isinstance(thresholds, list | tuple):
        thresholds = [thresholds] * count
    if len(thresholds) != count:
        raise ValueError(
            f"max_singular_value must be a number or a list with one for each weight: {count} weights, but "
            f"{len(thresholds)} thresholds"
        )
    return [checked_threshold(value) for value in thresholds]


def checked_threshold(value: float) -> float:
    """Return a threshold as a float; a TypeError or ValueError if it is no number in the range of float32."""
    return number("max_singular_value", value, _SMALLEST_THRESHOLD, _LARGEST_THRESHOLD)


def _check_flag(non_finite):
    if not isinstance(non_finite, torch.Tensor):
        raise TypeError(f"non_finite must be one int32 tensor, not {type(non_finite).__name__}")
    if non_finite.dtype != torch.int32 or non_finite.numel() != 1:
        raise ValueError(f"non_finite must be one int32, and is {list(non_finite.shape)} of {non_finite.dtype}")


def _check_copy(copy, weight):
    check_tensor("a copy", copy, float8=True)
    if copy.shape != weight.shape or copy.device != weight.device:
        raise ValueError(
            f"a copy of {list(copy.shape)} on {copy.device} does not fit the weight of {list(weight.shape)} on "
            f"{weight.device}"
        )
    check_writable("a copy", copy)


def _smallest_thresholds(weights: Sequence[torch.Tensor], thresholds: list[float]) -> list[float]:
    """Return the thresholds; a weight that is listed several times gets the smallest of its own.

    Raises:
        ValueError: Two different weights share elements, which the kernels would change at the same time.
    """
    least: dict[tuple, float] = {}
    for weight, threshold in zip(weights, thresholds, strict=True):
        place = place_of(weight)
        least[place] = min(threshold, least.get(place, threshold))
    _check_apart([weight for weight in {place_of(weight): weight for weight in weights}.values() if has_memory(weight)])
    return [least[place_of(weight)] for weight in weights]


def has_memory(weight: torch.Tensor) -> bool:
    """Return whether the tensor has an address, unlike a FakeTensor or another class with its own dispatch."""
    return type(weight).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def place_of(weight):
    """Return a key that two tensors share if they are the same elements in the same order."""
    return weight.data_ptr() if has_memory(weight) else id(weight), weight.dtype, weight.shape, weight.stride()


def _check_apart(weights):
    started: list[tuple[int, torch.Tensor]] = []  # ends and weights whose ranges of addresses are not over
    for weight in sorted(weights, key=torch.Tensor.data_ptr):
        begin = weight.data_ptr()
        reach = sum(stride * (size - 1) for stride, size in zip(weight.stride(), weight.shape, strict=True))
        started = [(end, other) for end, other in started if end > begin]
        for _, other in started:
            if other.device == weight.device and np.shares_memory(_addresses(weight), _addresses(other)):
                raise ValueError(
                    f"two weights, {list(other.shape)} and {list(weight.shape)}, share elements: pass them to separate "
                    "calls"
                )
        started.append((begin + (reach + 1) * weight.element_size(), weight))


def _addresses(weight):
    """Return an array of the elements' addresses, on any device, for NumPy's exact test; it reads no element."""
    size = weight.element_size()
    strides = tuple(stride * size for stride in weight.stride())
    memory = {"data": (weight.data_ptr(), True), "shape": tuple(weight.shape), "strides": strides}
    return np.asarray(SimpleNamespace(__array_interface__={**memory, "typestr": f"|V{size}", "version": 3}))
