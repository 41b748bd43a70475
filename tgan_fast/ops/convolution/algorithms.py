"""What a form of a convolution is, which one is used where, and the autograd function that they all share.

A convolution has three passes: y from x, dx from dy, and dw and db from x and dy. A form computes one or more of them
in its own way. "direct" is the library's convolution itself, in all passes: the plain twin of every other form.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from tgan_fast.ops.native import uses_native_ops


class Passes(NamedTuple):
    """Names of the forms that compute the three passes."""

    forward: str
    input_gradient: str
    parameter_gradients: str


DIRECT = Passes("direct", "direct", "direct")

# operation → device type → forms. To be changed here, and by what benchmarks/bench_convolutions.py says.
# cpu: measured, on two cores of an AMD EPYC with AVX-512, float32.
# cuda: not measured yet. By reasoning for an H100: three channels are no multiple of the 16 bytes that cuDNN's tensor
# core kernels load, so they are grouped into 8 or 24; a bias costs a pass of its own unless it rides along; what is
# small shall be one kernel.
TABLE = {
    "conv3d_halving": {
        "cpu": Passes("direct", "blocks", "direct"),
        "cuda": Passes("pairs", "blocks", "pairs"),
    },
    "conv3d_two_frames": {
        "cpu": Passes("product", "product", "product"),
        "cuda": Passes("product", "inner", "product"),
    },
    "conv_transpose1d_doubling": {
        "cpu": Passes("product", "product", "product"),
        "cuda": Passes("image", "image", "image"),
    },
    "conv_transpose2d_doubling": {
        "cpu": DIRECT,
        "cuda": DIRECT,
    },
    "conv_transpose2d_same": {
        "cpu": Passes("four pixels", "direct", "direct"),
        "cuda": Passes("eight pixels", "eight pixels", "eight pixels"),
    },
}


class Form(NamedTuple):
    """One way to compute a convolution; None for the passes that it leaves to "direct"."""

    forward: Callable | None = None  # (prepared, weight, bias or None) → y
    input_gradient: Callable | None = None  # (dy, x, weight) → dx
    parameter_gradients: Callable | None = None  # (dy, prepared, weight, (dw wanted, db wanted)) → dw, db
    prepare: Callable | None = None  # x → what forward and parameter_gradients read instead of it
    why_not: Callable | None = None  # (x, weight) → why it cannot compute this, or None


def direct(dims: int, stride: int, padding: int, *, transposed: bool = False) -> Form:
    """The library's convolution, with the same stride and padding in all dimensions."""
    options = [stride] * dims, [padding] * dims, [1] * dims, transposed, [0] * dims, 1
    return library(*options)


def library(*options) -> Form:
    """The library's convolution with the options of `torch.ops.aten.convolution`."""

    def forward(x, weight, bias):
        return torch.ops.aten.convolution(x, weight, bias, *options)

    def input_gradient(dy, x, weight):
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *options, [True, False, False])[0]

    def parameter_gradients(dy, x, weight, wanted):
        sizes = [dy.shape[1]]
        return torch.ops.aten.convolution_backward(dy, x, weight, sizes, *options, [False, *wanted])[1:]

    return Form(forward, input_gradient, parameter_gradients)


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
    forms: dict[str, Form],
    form: str | Passes,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The convolution in a form, differentiable once; within `native_ops` PyTorch's own, twice.

    Args:
        operation: its name in `TABLE`.
        forms: all of them, by name.
        form: "auto" for those of `TABLE`, with "direct" for what they cannot compute; or a name for all passes that
            this form has, "direct" for the others; or names for each pass.

    Raises:
        ValueError: there is no such form, or it cannot compute this.
    """
    x, weight, bias = _autocast(x, weight, bias)
    if uses_native_ops():
        if form not in ("auto", "direct", DIRECT):
            raise ValueError(f"{operation}: form {form!r} cannot be used within native_ops")
        return forms["direct"].forward(x, weight, bias)
    passes = choose(operation, forms, form, x, weight)
    return _Convolution.apply(x, weight, bias, *(forms[name] for name in passes))


def choose(operation: str, forms: dict[str, Form], form: str | Passes, x: torch.Tensor, weight: torch.Tensor) -> Passes:
    """The forms of the three passes; arguments and errors as of `convolve`."""
    if form == "auto":
        names = TABLE[operation].get(x.device.type, DIRECT)
        return Passes(*(name if why_not(forms[name], x, weight) is None else "direct" for name in names))
    names = Passes(form, form, form) if isinstance(form, str) else form
    for name in names:
        if name not in forms:
            raise ValueError(f"{operation} has no form {name!r}: choose auto, {', '.join(forms)}")
        reason = why_not(forms[name], x, weight)
        if reason is not None:
            raise ValueError(f"{operation}: form {name!r} cannot be used: {reason}")
    computed = zip(Passes._fields, names, strict=True)
    return Passes(*(name if getattr(forms[name], which) is not None else "direct" for which, name in computed))


def why_not(form: Form, x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why a form cannot compute this, or None."""
    return None if form.why_not is None else form.why_not(x, weight)


def _autocast(*tensors):
    """In the dtype of autocast, if that is on: as `torch.nn.functional`'s convolutions."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor is None else tensor.to(dtype) for tensor in tensors)


def _with_its_channel_last(x):
    """A single channel is first as well as last in memory, and libraries would take it to be first."""
    if x.shape[1] != 1 or x.stride(1) == 1:
        return x
    return x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, form, form_of_dx, form_of_parameters):
        x = _with_its_channel_last(x)
        prepared = x if form.prepare is None else form.prepare(x)
        ctx.forms = form_of_dx, form_of_parameters
        kept = prepared if form_of_parameters is form and any(ctx.needs_input_grad[1:3]) else None
        ctx.save_for_backward(x, weight, kept)
        # Autograd would let nobody write in place to a view that was made here; `data` is none.
        return form.forward(prepared, weight, bias).data

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, prepared = ctx.saved_tensors
        form_of_dx, form = ctx.forms
        dx = form_of_dx.input_gradient(dy, x, weight) if ctx.needs_input_grad[0] else None
        wanted = ctx.needs_input_grad[1:3]
        if not any(wanted):
            return dx, None, None, None, None, None
        if prepared is None:
            prepared = x if form.prepare is None else form.prepare(x)
        return dx, *form.parameter_gradients(dy, prepared, weight, wanted), None, None, None
