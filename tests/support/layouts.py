"""Check of the memory layout of a network's activations."""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Number of videos. It divides the size of every activation, and of no weight: no power of two is a multiple of it, and
# neither are 1, 3, or the size of a latent.
VIDEOS = 7


@contextlib.contextmanager
def watched(network):
    """Check inside the block that every activation and gradient between the layers of `network` is channels-last.

    Yields:
        List that collects the shapes of activations and gradients that are copied into another layout.
    """
    handles = [module.register_forward_hook(_check) for module in network.modules() if not list(module.children())]
    try:
        with _Transposes() as transposes:
            yield transposes.seen
    finally:
        for handle in handles:
            handle.remove()


def _check(module, inputs, output):
    for tensor in (*inputs, output):
        if isinstance(tensor, torch.Tensor):
            _check_channels(module, tensor)
    if output.requires_grad:
        output.register_hook(lambda gradient: _check_channels(module, gradient))


def _check_channels(module, tensor):
    if tensor.dim() > 2 and tensor.shape[1] > 1:
        assert tensor.stride(1) == 1, f"{module}: {list(tensor.shape)} has the strides {tensor.stride()}"


class _Transposes(TorchDispatchMode):
    def __enter__(self):
        self.seen = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        if function.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
            results = result if isinstance(result, tuple) else (result,)
            for tensor in (*tensors, *(tensor for tensor in results if tensor is not None)):
                _check_channels(function, tensor)
        elif isinstance(result, torch.Tensor):
            self._compare(tensors, result)
        return result

    def _compare(self, tensors, result):
        for tensor in tensors:
            same = tensor.shape == result.shape and tensor.numel() % VIDEOS == 0
            if same and _innermost(tensor) != _innermost(result):
                self.seen.append(tuple(result.shape))
                return


def _innermost(tensor):
    """Return the dimension with the smallest stride."""
    steps = [(tensor.stride(dim), dim) for dim in range(tensor.dim()) if tensor.shape[dim] > 1 and tensor.stride(dim)]
    return min(steps)[1]
