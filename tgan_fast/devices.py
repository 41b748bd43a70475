"""Lookup of a device by its name, with errors that say why it cannot be used."""

import torch

from tgan_fast.errors import InputError


def resolve_device(name: str) -> torch.device:
    """Return the device of a name, after checking that it exists.

    Args:
        name: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        InputError: There is no such device; the message says why.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name} is not supported: choose auto, cpu, cuda or cuda:N")
    if device is None:
        raise InputError(f"there is no device {name!r}: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        _require_cuda(device)
    return device


def _require_cuda(device):
    if torch.version.cuda is None:
        raise InputError(
            f"device {device} cannot be used: this PyTorch ({torch.__version__}) is built without CUDA; "
            "install a CUDA build or use --device cpu"
        )
    if not torch.cuda.is_available():
        raise InputError(f"device {device} cannot be used: no GPU or no NVIDIA driver is visible; use --device cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise InputError(f"device {device} cannot be used: the GPUs here are cuda:0 to cuda:{count - 1}")
