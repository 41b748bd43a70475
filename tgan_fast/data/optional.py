"""Libraries that need not be installed."""

from types import ModuleType

from tgan_fast.errors import InputError


def import_h5py() -> ModuleType:
    """h5py, which reads and writes HDF5.

    Raises:
        InputError: it is not installed.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise InputError("HDF5 files need h5py: pip install h5py") from None
    return h5py
