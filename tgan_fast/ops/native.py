"""Switch to PyTorch's own operations, for what the fast ones do not support: double backward and export.

The fast convolutions and the fast batch norm can be differentiated only once, and `torch.export` does not know them. A
gradient penalty differentiates twice, and an exported network must run without this package.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

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


def differentiable_once(backward: Callable) -> Callable:
    """Decorate the backward pass of a `torch.autograd.Function`: differentiating its gradients raises an error.

    The function gets the saved tensors as its second argument. Unlike PyTorch's `once_differentiable`, this also raises
    where only the saved tensors depend on what the gradients are differentiated by. There, the other's second
    derivatives silently lack a term.
    """

    @functools.wraps(backward)
    def backward_once(ctx, *upstream):
        saved = ctx.saved_tensors  # under checkpointing they may be read only once
        with torch.no_grad():
            gradients = backward(ctx, saved, *upstream)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return gradients
        given = [gradient for gradient in gradients if gradient is not None]
        sources = [tensor for tensor in (*upstream, *saved) if tensor is not None]
        protected = iter(_NotDifferentiable.apply(len(given), *given, *sources))
        return tuple(gradient if gradient is None else next(protected) for gradient in gradients)

    return backward_once


class _NotDifferentiable(torch.autograd.Function):
    """Return the first `count` tensors as results that depend on all of the tensors."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(tensor.data for tensor in tensors[:count])  # `data` is no view, so that it can change in place

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "these gradients of a fast operation cannot be differentiated again: for gradients of gradients, compute "
            "the operation within tgan_fast.ops.native_ops()"
        )
