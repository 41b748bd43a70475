"""Which implementations of each operation can run here, and why the others cannot."""

import importlib.util
import os

import torch

from tgan_fast.ops import cuda_extension

AVAILABLE = "available"
TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run; the message says why."""


def backends() -> dict[str, dict[str, str]]:
    """Every operation with its backends: `"available"`, or the reason why a backend cannot be used."""
    return {
        operation: {backend: backend_state(operation, backend) for backend in states}
        for operation, states in _REGISTRY.items()
    }


def require(operation: str, backend: str) -> None:
    """Raise unless `backend` of `operation` can run.

    Raises:
        ValueError: the operation has no backend of that name.
        BackendError: it has one, which cannot run here.
    """
    states = _REGISTRY[operation]
    if backend not in states:
        raise ValueError(f"{operation} has no backend {backend!r}: choose auto, {', '.join(states)}")
    state = backend_state(operation, backend)
    if state != AVAILABLE:
        raise BackendError(f"{operation}: backend {backend!r} cannot be used: {state}")


def backend_state(operation: str, backend: str) -> str:
    """`AVAILABLE`, or why the backend cannot be used."""
    state = _REGISTRY[operation][backend]
    return state() if callable(state) else state


def _triton_state():
    if not TRITON_IS_INSTALLED:
        return "Triton is not installed (on Linux it comes with PyTorch's builds for GPUs)"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "PyTorch finds no GPU"
    return AVAILABLE


def _cuda_extension_state():
    return cuda_extension.why_not() or AVAILABLE


# operation → backend → AVAILABLE, or the reason why it cannot be used, or a function that returns either
_REGISTRY = {
    "adam": {
        "triton": _triton_state,
        "torch": AVAILABLE,
    },
    "batch_norm_act": {
        "triton": _triton_state,
        "torch": AVAILABLE,
    },
    "rmsprop": {
        "triton": _triton_state,
        "torch": AVAILABLE,
    },
    "singular_value_clip": {
        "svd": AVAILABLE,
        "eigh": AVAILABLE,
        "gemm": AVAILABLE,
        "cuda": _cuda_extension_state,
    },
    "tanh_to_levels": {
        "triton": _triton_state,
        "torch": AVAILABLE,
    },
}
