"""The registry of backends: which can run here, and why the others cannot."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping

import torch

from tgan_fast.ops import cpu_extension, cuda_extension

AVAILABLE = "available"
TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None


class BackendError(RuntimeError):
    """Error of a backend that was requested by name and cannot run; the message says why."""


def backends() -> dict[str, dict[str, str]]:
    """Return the state of each operation's backends: `"available"`, or the reason why a backend cannot be used.

    The states are for PyTorch's current GPU, or for the CPU if there is no GPU.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return {
        operation: {backend: backend_state(operation, backend, device) for backend in states}
        for operation, states in _REGISTRY.items()
    }


def require(operation: str, backend: str, devices: Iterable[torch.device]) -> None:
    """Raise unless `backend` of `operation` can run on all devices.

    Raises:
        ValueError: The operation has no backend of that name.
        BackendError: The backend cannot run on one of the devices.
    """
    states = _REGISTRY[operation]
    if not isinstance(backend, str) or backend not in states:
        raise ValueError(f"{operation} has no backend {backend!r}: choose auto, {', '.join(states)}")
    for device in devices:
        state = backend_state(operation, backend, device)
        if state != AVAILABLE:
            raise BackendError(f"{operation}: backend {backend!r} cannot be used: {state}")


def choose(operation: str, backend: str, x: torch.Tensor, why_not: Mapping[str, Callable[[], str | None]]) -> str:
    """Return the requested backend; "auto" selects the kernels for the tensor's device, or "torch" if they do not fit.

    Args:
        operation: Name in the registry.
        backend: Name of the backend, or "auto".
        x: Tensor whose device selects the kernels.
        why_not: Functions for "triton" and, if the operation has C++ kernels, for "cpu". Each returns why the kernels
            cannot take the tensors, or None; it is called only if the kernels are installed.

    Raises:
        ValueError, BackendError: As for `require`, or the requested backend cannot take the tensors.
    """
    if backend == "auto":
        kernels = "triton" if x.is_cuda else "cpu" if x.is_cpu else "torch"
        if kernels not in why_not or not _is_installed(kernels) or why_not[kernels]() is not None:
            return "torch"
        return kernels
    require(operation, backend, [x.device])
    reason = why_not[backend]() if backend in why_not else None
    if reason is not None:
        raise BackendError(f"{operation}: backend {backend!r} cannot be used: {reason}")
    return backend


def _is_installed(kernels):
    return TRITON_IS_INSTALLED if kernels == "triton" else cpu_extension.WHY_NOT_LOADED is None


def backend_state(operation: str, backend: str, device: torch.device) -> str:
    """Return `AVAILABLE`, or why the backend cannot be used on the device."""
    state = _REGISTRY[operation][backend]
    return state(device) if callable(state) else state


def _triton_state(_device):
    if not TRITON_IS_INSTALLED:
        return "Triton is not installed (on Linux it comes with PyTorch's builds for GPUs)"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "PyTorch finds no GPU"
    return AVAILABLE


def _cpu_extension_state(device):
    return cpu_extension.why_not(device) or AVAILABLE


def _cuda_extension_state(device):
    return cuda_extension.why_not(device) or AVAILABLE


# operation → backend → AVAILABLE, the reason why it cannot be used, or a function of the device that returns either
_REGISTRY: dict[str, dict[str, str | Callable[[torch.device], str]]] = {
    "adam": {
        "triton": _triton_state,
        "cpu": _cpu_extension_state,
        "torch": AVAILABLE,
    },
    "augment_videos": {
        "triton": _triton_state,
        "torch": AVAILABLE,
    },
    "batch_norm_act": {
        "triton": _triton_state,
        "cpu": _cpu_extension_state,
        "torch": AVAILABLE,
    },
    "read_windows": {
        "triton": _triton_state,
        "torch": AVAILABLE,
    },
    "rmsprop": {
        "triton": _triton_state,
        "cpu": _cpu_extension_state,
        "torch": AVAILABLE,
    },
    "singular_value_clip": {
        "svd": AVAILABLE,
        "eigh": AVAILABLE,
        "gemm": AVAILABLE,
        "cuda": _cuda_extension_state,
        "cuda-float64": _cuda_extension_state,
    },
    "tanh_to_levels": {
        "triton": _triton_state,
        "torch": AVAILABLE,
    },
}
