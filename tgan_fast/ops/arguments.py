"""Argument checks that the operations share; each raises before anything is changed."""

import math
import numbers
import reprlib
import sys
from collections.abc import Iterable, Mapping

import torch

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def tensor_list(name: str, tensors: torch.Tensor | Iterable) -> list:
    """Return tensors as a list; a single tensor becomes a list of one, and a generator is read once.

    Raises:
        TypeError: `tensors` is neither a tensor nor a list; its elements are not checked.
    """
    if isinstance(tensors, torch.Tensor):
        return [tensors]
    # Iterating over an array would yield its rows, and over a mapping its keys.
    if not isinstance(tensors, Iterable) or isinstance(tensors, (Mapping, str)) or hasattr(tensors, "dtype"):
        raise TypeError(f"{name} must be a list of tensors or a tensor, not {type(tensors).__name__}")
    return list(tensors)


def check_tensor(name: str, tensor: torch.Tensor, *, float8: bool = False) -> None:
    """Raise unless `tensor` is a dense floating-point tensor.

    Args:
        name: Name of the tensor in messages, such as "a weight".
        tensor: Argument to check, of any type.
        float8: Whether 8-bit dtypes are allowed, for tensors that are only converted.

    Raises:
        TypeError: `tensor` is not a tensor.
        ValueError: `tensor` has an unsupported layout or dtype.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_nested:
        layout = "a nested one" if tensor.is_nested else tensor.layout
        raise ValueError(f"{name} must be a dense tensor, not {layout}: convert it first")
    if float8 and not tensor.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, not {tensor.dtype}")
    if not float8 and tensor.dtype not in _DTYPES:
        raise ValueError(f"{name} must be float64, float32, float16 or bfloat16, not {tensor.dtype}")


def check_writable(name: str, tensor: torch.Tensor) -> None:
    """Raise a ValueError unless a dense tensor can be changed in place and its elements share no memory."""
    if tensor.device.type == "meta":
        raise ValueError(f"{name} is on the meta device and has no values: allocate it with torch.nn.Module.to_empty")
    if _may_overlap(tensor):
        raise ValueError(f"{name} has elements that share memory, as after .expand(): pass a .clone()")
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{name} is an inference tensor: pass a .clone(), or call inside torch.inference_mode()")


def number(name: str, value: float, least: float = 0.0, most: float = sys.float_info.max) -> float:
    """Return a Python or NumPy number as a float.

    Raises:
        TypeError: `value` is not a real number, or is a bool.
        ValueError: `value` is NaN or lies outside [least, most].
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        converted = float(value) if real else math.nan
    except OverflowError:
        converted = math.inf
    if not least <= converted <= most:
        message = f"{name} must be a number from {least:.3g} to {most:.3g}, not {reprlib.repr(value)}"
        raise ValueError(message) if real else TypeError(message)
    return converted


def _may_overlap(tensor):
    if tensor.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
