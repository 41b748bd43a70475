"""Lazy imports of the names of a package, so that the help of a command needs no PyTorch."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str, origins: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package.

    Args:
        package: Name of the package.
        origins: Module that defines each name, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{origins[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *origins})

    return get, names
