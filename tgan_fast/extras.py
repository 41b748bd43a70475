"""Packages that only some commands need: each comes with an extra of pyproject.toml."""

from importlib.util import find_spec

from tgan_fast.errors import InputError

_EXTRAS = {"av": "video", "h5py": "video", "onnx": "export", "onnxscript": "export"}


def require_package(name: str, purpose: str) -> None:
    """Raise an InputError that says what to install, unless the package is installed.

    Args:
        name: Import name of the package.
        purpose: First half of the error's sentence, such as "MP4 files need PyAV".
    """
    if find_spec(name) is None:
        raise InputError(f"{purpose}: {how_to_install(name)}")


def how_to_install(name: str) -> str:
    """Return how to install the package with this import name."""
    extra = f"'.[{_EXTRAS[name]}]'" if name in _EXTRAS else "."
    return f"run pip install {extra} in tgan_fast's source folder"
