"""Singular value clipping: every singular value σ of a weight is replaced by min(σ, threshold).

    W = U·diag(σ)·Vᵀ   →   W' = U·diag(min(σ, t))·Vᵀ = W − R·W,   R = U·diag(max(0, 1 − t/σ))·Uᵀ

R is a function of the small Gram matrix W·Wᵀ = U·diag(σ²)·Uᵀ, so W itself need not be decomposed: `eigh` decomposes the
Gram matrix, `gemm` computes R by matrix products alone, and `cuda` does the same for a whole list of weights in four
kernels (csrc/cuda). Only `svd` decomposes W. The Gram matrix squares the condition number, so all backends but `svd`
compute it and R in float64, except with accuracy="fast"; `cuda` uses 32-bit fixed point where that is as accurate. Even
so, singular values near t change by about 2⁻⁵²·σ₁²/t, where σ₁ is the largest one; `eigh` uses the SVD where that would
matter. `eigh` also uses float32 where this adds no more than rounding: for R·W up to σ₁ = 1.5·t and, on a CPU, for the
Gram matrix of a wide weight and for the eigenvectors of G/t² − I if σ₁ is near t. A weight of one row needs only its
norm.

W' is the projection of W onto a convex set, the matrices with singular values of at most t. Such a projection does
not increase the distance between two points, so an error in W, such as the rounding of a decomposition, is no larger in
W'.

TGAN clips every layer of its discriminator at t = 1 (Saito et al., arXiv:1611.06624, section 3.3).
"""

import functools
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tgan_fast.choices import ClippingAccuracy, ClippingBackend
from tgan_fast.ops import cuda_extension
from tgan_fast.ops.arguments import tensor_list
from tgan_fast.ops.clipping import cuda, torch_impl
from tgan_fast.ops.clipping.operands import (
    Operand,
    check_weight,
    checked_operands,
    checked_threshold,
    has_memory,
    matrices_of,
    place_of,
)
from tgan_fast.ops.dispatch import BackendError, require

# Backends that are kernels of csrc/cuda.
CUDA_BACKENDS = ("cuda", "cuda-float64")


def singular_value_clip(
    weight: Tensor,
    max_singular_value: float = 1.0,
    *,
    batch_dims: int = 0,
    out_dim: int = 0,
    accuracy: ClippingAccuracy = "exact",
    backend: ClippingBackend = "auto",
) -> Tensor:
    """Return `weight` with every singular value above `max_singular_value` lowered to it; differentiable once.

    The gradient is that of the definition. It is finite where singular values coincide; the derivative of min(σ, t) at
    σ = t is taken as 1. Its computation decomposes the Gram matrix and synchronizes with the host, for every backend.

    Args:
        weight: Dense tensor in float64, float32, float16 or bfloat16. A tensor of more than 2 dimensions is clipped as
            the matrix [shape[0], -1], and one of 1 dimension as a row. If no singular value is too large, or if an
            entry is not finite, the result equals `weight` bit for bit.
        max_singular_value: Threshold t, a Python or NumPy number within the range of float32 (1.2e-38 to 3.4e38).
        batch_dims: Number of leading dimensions that count matrices, such as 1 for [experts, out, in]. A convolution
            with groups has a matrix for each: pass `weight.view(groups, out // groups, ...)`.
        out_dim: Dimension, counted after those of the batch, that is the rows of the matrix. 0 is "out" for linear
            layers and convolutions, and "in" for transposed convolutions, whose "out" is 1.
        accuracy: Precision of the backends "eigh" and "gemm". "exact" (default) has the errors listed under `backend`.
            "fast" computes in float32 if the largest singular value σ₁ is at most 8·t: the relative error is then 1e-7
            (σ₁ near t) to 4e-6 (8·t), and twice that for a matrix of equal entries, whose rounding does not average
            out. "gemm" lowers singular values within 1e-3·t above t only in part, with errors of up to 3e-5. Larger σ₁
            and float64 are always exact.
        backend: Name of an implementation, each with its own accuracy:

            "svd": `torch.linalg.svd` in the weight's dtype, float32 at least. No singular value of the result exceeds
            t by more than rounding in that dtype; the error of the result is rounding of the weight's σ₁.
            "eigh": eigenvalues of the Gram matrix, in float64 unless float32 on a CPU is as accurate; if σ₁ exceeds
            8192·t (float64: 4·t), the SVD in float64. No singular value of the result exceeds t by more than rounding
            in the weight's dtype; the error is rounding of the result to this dtype and of σ₁ to float64.
            "gemm": matrix products only, in float64. The result is accurate to 1e-6·t up to σ₁ = 1000·t. A larger
            weight is clipped at σ₁/1000 or less, and further by the next call; a float64 weight above 1e150 stays as
            it is. If the smaller side exceeds 1024, or with "fast", the host waits for the norm and leaves out what
            the norm makes unnecessary. It never waits while a CUDA graph is captured, where "fast" is "exact".
            "cuda": the kernels of csrc/cuda for float32, float16 and bfloat16 on a GPU, without synchronization and
            with the same bits every time. They compute in 32-bit fixed point, on the int8 tensor cores, up to
            σ₁ = 4·t, and in float64 beyond. They also treat singular values within 1.3e-6·t below the threshold as too
            large, clip a weight of Frobenius norm ‖W‖ > 3162·t only at ‖W‖/3162, and leave weights whose smaller side
            exceeds 1024 (512 where a block has 99 KB of shared memory) to "gemm", with its accuracy and its waiting.
            "cuda-float64": the same kernels, in float64 for every weight: more accurate if rows are equal (see
            docs/kernels.md), and slow on most GPUs.
            "auto": "eigh" on a CPU; "cuda" on a GPU, or "gemm" where "cuda" cannot be used.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        TypeError: `weight` is not a tensor, or the threshold is not a number.
        ValueError: The weight's layout, dtype or shape is not supported, it is sharded over processes, or another
            argument is out of range.
        BackendError: The requested backend cannot run here.
    """
    if not torch.compiler.is_compiling():  # a compiled function checks when it runs
        check_weight(weight, batch_dims, out_dim)
        max_singular_value = check_options(max_singular_value, accuracy, backend)
    return _clip_operator(weight, max_singular_value, batch_dims, out_dim, accuracy, backend)


@torch.no_grad()
def singular_value_clip_(
    weights: Tensor | Iterable[Tensor],
    max_singular_value: float | Sequence[float] = 1.0,
    *,
    batch_dims: int = 0,
    out_dim: int = 0,
    accuracy: ClippingAccuracy = "exact",
    copies: Tensor | Iterable[Tensor | None] | None = None,
    non_finite: Tensor | None = None,
    backend: ClippingBackend = "auto",
) -> None:
    """Clip the singular values of several weights in place; "cuda" clips all of them in one batch.

    Every weight is checked before the first is changed.

    Args:
        weights: List of weights as in `singular_value_clip`, or a single weight. The elements of a weight must not
            share memory, as those of an expanded tensor do. Nor must two weights, unless they are equal: a weight that
            is listed several times is clipped at the smallest of its thresholds.
        max_singular_value: Threshold as in `singular_value_clip`, or a list or tuple with one for each weight.
        batch_dims, out_dim, accuracy, backend: Arguments of `singular_value_clip`, the same for all weights.
        copies: List with an entry for each weight: a floating-point tensor of its shape that is overwritten with the
            clipped values, such as the bfloat16 weights of mixed precision, or None. A tensor is a list of one; None
            for no copies.
        non_finite: int32 tensor of one element on the weights' device: set to 1 if a weight is left alone because an
            entry is not finite, and never reset. None to report nothing.

    Raises:
        TypeError, ValueError, BackendError: As for `singular_value_clip`, or `copies` or `non_finite` do not fit, or
            two different weights share elements.
    """
    if torch.compiler.is_compiling():
        _clip_in_place_operator(
            *_listed(weights, max_singular_value, copies), non_finite, batch_dims, out_dim, accuracy, backend
        )
        return
    operands = checked_operands(weights, max_singular_value, copies, non_finite, batch_dims, out_dim)
    clip_operands(operands, non_finite, accuracy, backend)


def clip_operands(operands: Sequence[Operand], non_finite: Tensor | None, accuracy: str, backend: str) -> None:
    """Clip matrices that `checked_operands` returned; the other arguments are those of `singular_value_clip_`."""
    _check_accuracy(accuracy)
    chosen = choose_backends([operand.weight for operand in operands], backend)
    by_kernels = [operand for operand, name in zip(operands, chosen, strict=True) if name in CUDA_BACKENDS]
    for device in {operand.weight.device for operand in by_kernels}:  # one batch per GPU
        weights, copies, thresholds = zip(*(each for each in by_kernels if each.weight.device == device), strict=True)
        float64_only = backend == "cuda-float64"
        cuda.launch(weights, thresholds, copies=copies, non_finite=non_finite, float64_only=float64_only)
    clipped = set()
    for operand, name in zip(operands, chosen, strict=True):
        if name in CUDA_BACKENDS:
            continue
        if place_of(operand.weight) not in clipped:  # clipping twice could change the last bits after the first copy
            torch_impl.clip_(operand.weight, operand.threshold, non_finite, name, accuracy)
            clipped.add(place_of(operand.weight))
        if operand.copy is not None:
            operand.copy.copy_(operand.weight)


def check_options(threshold: float, accuracy: str, backend: str) -> float:
    """Return the threshold as a float, or raise as `singular_value_clip` does for these three of its arguments."""
    _check_accuracy(accuracy)
    if backend != "auto":
        require("singular_value_clip", backend, ())
    return checked_threshold(threshold)


def _check_accuracy(accuracy):
    if accuracy not in ("exact", "fast"):
        raise ValueError(f"accuracy must be 'exact' or 'fast', not {accuracy!r}")


def choose_backends(weights: Sequence[Tensor], backend: str) -> list[str]:
    """Return the backend for each weight: the requested one, but "gemm" if the weight is too large for the kernels.

    Raises:
        ValueError, BackendError: The backend does not exist, or cannot clip these weights.
    """
    if backend == "auto":
        return [_fastest(weight) for weight in weights]
    require("singular_value_clip", backend, {weight.device for weight in weights})
    if backend not in CUDA_BACKENDS:
        return [backend] * len(weights)
    for weight in weights:
        if weight.dtype not in cuda.DTYPES:
            raise BackendError(
                f"backend {backend!r} clips float32, float16 and bfloat16, not {weight.dtype}: use 'gemm'"
            )
        if not has_memory(weight):
            raise BackendError(f"backend {backend!r} clips plain tensors, not a {type(weight).__name__}: use 'gemm'")
    return [backend if _fastest(weight) == "cuda" else "gemm" for weight in weights]


def _fastest(weight):
    if not weight.is_cuda:
        return "eigh"
    # On a GPU an eigendecomposition synchronizes with the host; matrix products do not.
    if weight.dtype not in cuda.DTYPES or not has_memory(weight):
        return "gemm"
    if reason := cuda_extension.why_not(weight.device):
        _warn_of_gemm(weight.device, reason)
        return "gemm"
    rows = weight.shape[0] if weight.dim() > 1 else 1
    largest_side = cuda_extension.prepare_gpu(weight.device.index).largest_side
    return "cuda" if min(rows, weight.numel() // rows) <= largest_side else "gemm"


@functools.cache
def _warn_of_gemm(device, reason):
    """Warn, once per GPU, that "auto" uses the slow backend there."""
    message = f"singular value clipping on {device} uses the backend 'gemm', many times slower than 'cuda': {reason}"
    warnings.warn(message, stacklevel=2)


# Operators for torch.compile and autograd.


def _clipped(weight: Tensor, threshold: float, batch_dims: int, out_dim: int, accuracy: str, backend: str) -> Tensor:
    clipped = weight.detach().clone()
    operands = checked_operands(clipped, threshold, None, None, batch_dims, out_dim)
    clip_operands(operands, None, accuracy, backend)
    return clipped


def _gradient(
    gradient: Tensor, weight: Tensor, threshold: float, batch_dims: int, out_dim: int, accuracy: str
) -> Tensor:
    """Return the gradient with respect to a weight, given that with respect to the clipped weight."""
    result = gradient.to(weight.dtype, copy=True)
    matrices, gradients = (matrices_of(tensor, batch_dims, out_dim) for tensor in (weight, result))
    for matrix, matrix_gradient in zip(matrices, gradients, strict=True):
        torch_impl.gradient_(matrix, matrix_gradient, threshold, accuracy)
    return result


def _clip_in_place(
    weights: list[Tensor],
    thresholds: list[float],
    copies: list[Tensor],
    copied: list[int],
    non_finite: Tensor | None,
    batch_dims: int,
    out_dim: int,
    accuracy: str,
    backend: str,
) -> None:
    by_index = dict(zip(copied, copies, strict=True))
    all_copies = [by_index.get(i) for i in range(len(weights))]
    operands = checked_operands(weights, thresholds, all_copies, non_finite, batch_dims, out_dim)
    clip_operands(operands, non_finite, accuracy, backend)


def _listed(weights, thresholds, copies):
    """Return what an operator's schema can hold: lists of weights, thresholds, copies, and the copied weights' indices.

    A list of an operator that changes its tensors has no place for None.
    """
    weights = tensor_list("weights", weights)
    copies = [None] * len(weights) if copies is None else tensor_list("copies", copies)
    thresholds = list(thresholds) if isinstance(thresholds, list | tuple) else [thresholds] * len(weights)
    copied = [i for i, copy in enumerate(copies) if copy is not None]
    return weights, thresholds, [copies[i] for i in copied], copied


_clip_operator = torch.library.custom_op("tgan_fast::singular_value_clip", _clipped, mutates_args=())
_gradient_operator = torch.library.custom_op("tgan_fast::singular_value_clip_gradient", _gradient, mutates_args=())
_clip_in_place_operator = torch.library.custom_op(
    "tgan_fast::singular_value_clip_", _clip_in_place, mutates_args=("weights", "copies", "non_finite")
)


@_clip_operator.register_fake
def _(weight, *_options):
    return torch.empty_like(weight)


@_gradient_operator.register_fake
def _(gradient, weight, *_options):
    return torch.empty_like(gradient, dtype=weight.dtype)


def _keep_for_gradient(ctx, inputs, output):
    weight, *options, _ = inputs
    ctx.save_for_backward(weight)
    ctx.options = options


def _backward(ctx, gradient):
    return _gradient_operator(gradient, *ctx.saved_tensors, *ctx.options), *(None,) * 5


_clip_operator.register_autograd(_backward, setup_context=_keep_for_gradient)
