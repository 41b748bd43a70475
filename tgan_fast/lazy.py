"""Packages whose names are imported when they are first used, so that a command's help needs no PyTorch."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str, origins: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    Args:
        package: Name of the package.
        origins: Module of the package that has each name.
    """

    def get(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{origins[name]}"), name)

    return get
