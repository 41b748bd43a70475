"""Switch to PyTorch's own operations, for what the fast ones do not support: double backward and export.

The fast convolutions and the fast batch norm can be differentiated only once, and `torch.export` does not know them. A
gradient penalty differentiates twice, and an exported network must run without this package.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_state = threading.local()


@contextmanager
def native_ops() -> Iterator[None]:
    """Use PyTorch's own convolutions and batch norm in this context: slower, but exportable and twice differentiable.

    Other threads are not affected. In this context, requesting a fast backend or algorithm by name raises an error.
    """
    before = uses_native_ops()
    _state.native = True
    try:
        yield
    finally:
        _state.native = before


def uses_native_ops() -> bool:
    """Return whether this thread is inside `native_ops`."""
    return getattr(_state, "native", False)
