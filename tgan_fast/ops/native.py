"""Operations in PyTorch's own alone, where what is faster cannot be used.

The fast forms of convolutions and of batch norm can be differentiated once, and `torch.export` does not know them. A
gradient penalty differentiates twice, and an exported network shall run without this package.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_state = threading.local()


@contextmanager
def plain_operations() -> Iterator[None]:
    """Inside, convolutions and batch norm are PyTorch's own: slower, but exportable, and differentiable twice.

    Of this thread alone. A backend or a form that is asked for by name raises an error there.
    """
    before = plain()
    _state.plain = True
    try:
        yield
    finally:
        _state.plain = before


def plain() -> bool:
    """Whether this thread is inside of `plain_operations`."""
    return getattr(_state, "plain", False)
