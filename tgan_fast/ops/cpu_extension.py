"""The CPU extension: whether it can be used, and the threads that it shares with PyTorch."""

import ctypes
import functools
from types import ModuleType

import torch

from tgan_fast.ops.extensions import load, why_not_loaded

# Checked at import, in a millisecond, so that torch.compile need not trace the check.
WHY_NOT_LOADED = why_not_loaded("CPU")
_OPENMP = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")


@functools.cache
def extension() -> ModuleType:
    """Load the module and give it PyTorch's OpenMP runtime; without OpenMP in PyTorch, the kernels use one thread.

    Raises:
        ImportError: The extension was not built, or was built for another Python.
    """
    module = load("CPU")
    # Looking up a symbol in a library also searches the libraries that it is linked with.
    pytorch = ctypes.CDLL(torch._C.__file__)
    if all(hasattr(pytorch, name) for name in _OPENMP):
        module.use_openmp(*(ctypes.cast(getattr(pytorch, name), ctypes.c_void_p).value for name in _OPENMP))
    return module


def why_not(device: torch.device) -> str | None:
    """Return why the kernels cannot be used on the device, and the remedy; None if they can."""
    if WHY_NOT_LOADED:
        return WHY_NOT_LOADED
    return None if device.type == "cpu" else f"the CPU extension runs on a CPU, not on {device}"


def why_not_tensor(x: torch.Tensor) -> str | None:
    """Return why the kernels cannot read the memory of a CPU tensor, or None if they can."""
    if type(x).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"it takes plain tensors, not a {type(x).__name__}"
    if torch.compiler.is_compiling():
        return None
    if x.is_neg():
        return "it takes no tensor with the negative bit set: call .resolve_neg() first"
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "it cannot be used within torch.func's transforms or forward-mode differentiation"
    return None if torch._C._get_tracing_state() is None else "torch.jit cannot trace it"
