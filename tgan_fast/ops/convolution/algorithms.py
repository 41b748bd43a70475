"""Convolution algorithms: their interface, the table of which one runs where, and the autograd function they share.

A convolution has three directions, as in cuDNN: y from x, dx from dy, and dw and db from x and dy. An algorithm
computes one or more of them. "direct" is the convolution of PyTorch's library (cuDNN, oneDNN) in all directions, the
baseline of the others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from tgan_fast.ops.native import differentiable_once, uses_native_ops


class PerDirection(NamedTuple):
    """A value for each direction of a convolution, such as the name of an algorithm."""

    forward: Any
    input_gradient: Any
    parameter_gradients: Any


DIRECT = PerDirection("direct", "direct", "direct")

# operation → device type → algorithms. benchmarks/bench_convolutions.py says what to change here.
# cpu: measured, on two cores of an AMD EPYC with AVX-512, float32; "phases", "images" and "four gray pixels" with AVX2.
# cuda: not measured yet, chosen by reasoning for an H100: three channels are no multiple of the 16 bytes that cuDNN's
# tensor core kernels load, so they are grouped into 8 or 24; a separate bias costs one more pass over y; a small
# convolution should be a single kernel.
TABLE = {
    "conv3d_halving": {
        "cpu": PerDirection("direct", "blocks", "images"),
        "cuda": PerDirection("pairs", "blocks", "pairs"),
    },
    "conv3d_two_frames": {
        "cpu": PerDirection("product", "product", "product"),
        "cuda": PerDirection("product", "inner", "product"),
    },
    "conv_transpose1d_doubling": {
        "cpu": PerDirection("product", "product", "product"),
        "cuda": PerDirection("image", "image", "image"),
    },
    "conv_transpose2d_doubling": {
        "cpu": PerDirection("phases", "direct", "direct"),
        "cuda": DIRECT,
    },
    "conv_transpose2d_same": {
        "cpu": PerDirection("four pixels", "four gray pixels", "direct"),
        "cuda": PerDirection("eight pixels", "eight pixels", "eight pixels"),
    },
}


class Algorithm(NamedTuple):
    """One way to compute a convolution; None for the directions that it leaves to "direct"."""

    forward: Callable | None = None  # (prepared, weight, bias or None) → y
    input_gradient: Callable | None = None  # (dy, x, weight) → dx
    parameter_gradients: Callable | None = None  # (dy, prepared, weight, (dw wanted, db wanted)) → dw, db
    prepare: Callable | None = None  # x → rearranged x, read by forward and parameter_gradients
    why_not: Callable | None = None  # (x, weight) → why it cannot compute them, or None


def direct(dims: int, stride: int, padding: int, *, transposed: bool = False) -> Algorithm:
    """Return the library's convolution with the same stride and padding in all dimensions."""
    options = [stride] * dims, [padding] * dims, [1] * dims, transposed, [0] * dims, 1
    return library(*options)


def library(*options) -> Algorithm:
    """Return the library's convolution with the options of `torch.ops.aten.convolution`."""

    def forward(x, weight, bias):
        return torch.ops.aten.convolution(x, weight, bias, *options)

    def input_gradient(dy, x, weight):
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *options, [True, False, False])[0]

    def parameter_gradients(dy, x, weight, wanted):
        # Summed separately, as in ATen on a GPU, because oneDNN's own sum is slow and adds one value after another.
        dbias = sum_of_channels(dy) if wanted[1] else None
        if not wanted[0]:
            return None, dbias
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *options, mask)[1], dbias

    return Algorithm(forward, input_gradient, parameter_gradients)


def sum_of_channels(dy: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a bias, the sum of each channel of dy [N, C, …]."""
    return dy.sum((0, *range(2, dy.dim())))


def check_shapes(
    operation: str, x: torch.Tensor, weight: torch.Tensor, kernel: list, *, transposed: bool = False
) -> None:
    """Raise a ValueError unless x is [N, C, …] and weight [out, C, *kernel], or transposed [C, out, *kernel]."""
    if x.dim() != len(kernel) + 2:
        raise ValueError(f"{operation} takes x of {len(kernel) + 2} dimensions and got {list(x.shape)}")
    shape = list(weight.shape)
    if shape[2:] != kernel or shape[0 if transposed else 1] != x.shape[1]:
        expected = f"[{x.shape[1]}, out, " if transposed else f"[out, {x.shape[1]}, "
        raise ValueError(f"{operation} takes weights {expected}{str(kernel)[1:]} and got {shape}")


def convolve(
    operation: str,
    algorithms: dict[str, Algorithm],
    algorithm: str | PerDirection,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return the convolution, differentiable once; inside `native_ops` use PyTorch's own, differentiable twice.

    Args:
        operation: Name of the operation in `TABLE`.
        algorithms: Algorithms of the operation by name.
        algorithm: Name of the algorithm for the directions that it has, with "direct" for the others; or a name for
            each direction; or "auto" for the entry of `TABLE`, with "direct" if the entry cannot compute these tensors.
        x, weight, bias: Tensors of the convolution; bias may be None.

    Raises:
        ValueError: The operation has no such algorithm, or it cannot compute these tensors.
    """
    x, weight, bias = _autocast(x, weight, bias)
    if uses_native_ops():
        if algorithm not in ("auto", "direct", DIRECT):
            raise ValueError(f"{operation}: algorithm {algorithm!r} cannot be used within native_ops")
        direct = algorithms["direct"].forward
        assert direct is not None
        return direct(x, weight, bias)
    chosen = choose(operation, algorithms, algorithm, x, weight)
    return _Convolution.apply(x, weight, bias, *(algorithms[name] for name in chosen))


def choose(
    operation: str,
    algorithms: dict[str, Algorithm],
    algorithm: str | PerDirection,
    x: torch.Tensor,
    weight: torch.Tensor,
) -> PerDirection:
    """Return the names of the algorithms for the three directions; arguments and errors as for `convolve`."""
    if algorithm == "auto":
        names = TABLE[operation].get(x.device.type, DIRECT)
        return PerDirection(*(name if why_not(algorithms[name], x, weight) is None else "direct" for name in names))
    names = PerDirection(*[algorithm] * 3) if isinstance(algorithm, str) else algorithm
    for name in names:
        if name not in algorithms:
            raise ValueError(f"{operation} has no algorithm {name!r}: choose auto, {', '.join(algorithms)}")
        reason = why_not(algorithms[name], x, weight)
        if reason is not None:
            raise ValueError(f"{operation}: algorithm {name!r} cannot be used: {reason}")
    directions = zip(PerDirection._fields, names, strict=True)
    return PerDirection(*(name if getattr(algorithms[name], field) else "direct" for field, name in directions))


def why_not(algorithm: Algorithm, x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Return why an algorithm cannot compute the convolution of these tensors, or None."""
    return None if algorithm.why_not is None else algorithm.why_not(x, weight)


def _autocast(*tensors):
    """Return the tensors in the dtype of autocast if it is on, as `torch.nn.functional`'s convolutions do."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor is None else tensor.to(dtype) for tensor in tensors)


def _with_its_channel_last(x):
    """Return x, with a stride of 1 for a single channel, which libraries would otherwise take for channels-first."""
    if x.shape[1] != 1 or x.stride(1) == 1:
        return x
    return x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, algorithm, dx_algorithm, parameters_algorithm):
        x = _with_its_channel_last(x)
        prepared = x if algorithm.prepare is None else algorithm.prepare(x)
        ctx.algorithms = dx_algorithm, parameters_algorithm
        kept = prepared if parameters_algorithm is algorithm and any(ctx.needs_input_grad[1:3]) else None
        ctx.save_for_backward(x, weight, kept)
        # Autograd forbids in-place operations on a view that a custom function returns; `data` is not a view.
        return algorithm.forward(prepared, weight, bias).data

    @staticmethod
    @differentiable_once
    def backward(ctx, saved, dy):
        x, weight, prepared = saved
        dx_algorithm, algorithm = ctx.algorithms
        dx = dx_algorithm.input_gradient(dy, x, weight) if ctx.needs_input_grad[0] else None
        wanted = ctx.needs_input_grad[1:3]
        if not any(wanted):
            return dx, None, None, None, None, None
        if prepared is None:
            prepared = x if algorithm.prepare is None else algorithm.prepare(x)
        return dx, *algorithm.parameter_gradients(dy, prepared, weight, wanted), None, None, None
