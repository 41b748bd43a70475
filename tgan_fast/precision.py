"""Precision of the networks: bfloat16, TF32 or float32.

Weights, batch statistics, losses and the state of the optimizers are always float32. Only the inputs and outputs of
convolutions and matrix products differ.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tgan_fast.choices import Precision, PrecisionOption
from tgan_fast.errors import InputError

_OLDEST_WITH_TF32 = (8, 0)


def resolve_precision(name: PrecisionOption, device: torch.device) -> Precision:
    """Return a precision that the device supports; `auto` is bf16 on GPUs with bf16 hardware, else fp32.

    Args:
        name: Precision, or "auto".
        device: Device that computes.

    Raises:
        InputError: The device does not support the precision.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" and _has_bf16(device) else "fp32"
    if name == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise InputError(f"{_name(device)} does not compute in bfloat16: choose --precision fp32")
    if name == "tf32" and not _has_tf32(device):
        raise InputError(f"{_name(device)} does not compute in TF32: choose --precision fp32")
    return name


def resolve_evaluation_precision(name: PrecisionOption, device: torch.device) -> Precision:
    """Return a precision like `resolve_precision`, except that `auto` is tf32 on GPUs that support it, else fp32.

    Scores are compared to three digits, for which bf16 is too coarse.
    """
    if name == "auto":
        return "tf32" if _has_tf32(device) else "fp32"
    return resolve_precision(name, device)


def compute_dtype(precision: Precision, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of activations in a network with weights of `dtype`."""
    return torch.bfloat16 if precision == "bf16" else dtype


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Let cuDNN and cuBLAS compute float32 in TF32 if that is the precision, and choose algorithms by timing them.

    The settings from before are restored afterwards.
    """
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision, torch.backends.cudnn.benchmark
    convolutions.fp32_precision = products.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        convolutions.fp32_precision, products.fp32_precision, torch.backends.cudnn.benchmark = before


def _has_bf16(device):
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _has_tf32(device):
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _OLDEST_WITH_TF32


def _name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
