"""Singular value clipping: every singular value σ of a weight is replaced by min(σ, threshold).

    W = U·diag(σ)·Vᵀ   →   W' = U·diag(min(σ, t))·Vᵀ = W − R·W,   R = U·diag(max(0, 1 − t/σ))·Uᵀ

R is a function of the small Gram matrix W·Wᵀ = U·diag(σ²)·Uᵀ, so W itself need not be decomposed: `eigh` decomposes the
Gram matrix, `gemm` computes R by matrix products alone, and `cuda` does the same for a whole list of weights in three
kernels (csrc/cuda). Only `svd` decomposes W. The Gram matrix squares the condition number, so all backends but `svd`
compute it and R in float64, whatever the dtype of W. Even so, singular values near t change by about 2⁻⁵²·σ₁²/t, where
σ₁ is the largest one; `eigh` uses the SVD where that would matter. On a CPU `eigh` uses float32 where this adds no more
than rounding: for the Gram matrix of a wide weight up to σ₁ = 1.5·t, and for the eigenvectors of G/t² − I if σ₁ is near
t. A weight of one row needs only its norm.

W' is the projection of W onto a convex set, the matrices with singular values of at most t. Such a projection does
not increase the distance between two points, so an error in W, such as the rounding of a decomposition, is no larger in
W'.

TGAN clips every layer of its discriminator at t = 1 (Saito et al., arXiv:1611.06624, section 3.3).
"""

import functools
import warnings
from collections.abc import Iterable, Sequence

import torch

from tgan_fast.choices import ClippingBackend
from tgan_fast.ops import cuda_extension
from tgan_fast.ops.arguments import check_tensor, check_writable, number, tensor_list
from tgan_fast.ops.clipping import cuda, torch_impl
from tgan_fast.ops.dispatch import BackendError, require

_SMALLEST_THRESHOLD, _LARGEST_THRESHOLD = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@torch.no_grad()
def singular_value_clip(
    weight: torch.Tensor, max_singular_value: float = 1.0, *, backend: ClippingBackend = "auto"
) -> torch.Tensor:
    """Return `weight` with every singular value above `max_singular_value` lowered to it.

    Args:
        weight: Dense tensor in float64, float32, float16 or bfloat16. A tensor of more than 2 dimensions is clipped as
            the matrix [shape[0], -1], and one of 1 dimension as a row. If no singular value is too large, or if an
            entry is not finite, the result equals `weight` bit for bit.
        max_singular_value: Threshold t, a Python or NumPy number within the range of float32 (1.2e-38 to 3.4e38).
        backend: Name of an implementation, each with its own accuracy:

            "svd": `torch.linalg.svd` in the weight's dtype, float32 at least. No singular value of the result exceeds
            t by more than rounding in that dtype; the error of the result is rounding of the weight's largest one, σ₁.
            "eigh": eigenvalues of the Gram matrix, in float64 unless float32 on a CPU is as accurate; if σ₁ exceeds
            8192·t (float64: 4·t), the SVD in float64. No singular value of the result exceeds t by more than rounding
            in the weight's dtype; the error is rounding of the result to this dtype and of σ₁ to float64.
            "gemm": matrix products only, in float64, without synchronization with the host. The result is accurate to
            1e-6·t up to σ₁ = 1000·t. A larger weight is clipped at σ₁/1000 or less, and further by the next call; a
            float64 weight above 1e150 stays as it is.
            "cuda": the kernels of csrc/cuda for float32, float16 and bfloat16 on a GPU, without synchronization and
            with the same bits every time. They also treat singular values within 3e-6·t below the threshold as too
            large, clip a weight of Frobenius norm ‖W‖ > 3162·t only at ‖W‖/3162, and leave weights whose smaller side
            exceeds 1024 to "gemm".
            "auto": "eigh" on a CPU; "cuda" on a GPU, or "gemm" where "cuda" cannot be used.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        TypeError: `weight` is not a tensor, or the threshold is not a number.
        ValueError: The weight's layout, dtype or shape is not supported, or the threshold is out of range.
        BackendError: The requested backend cannot run here.
    """
    check_tensor("a weight", weight)
    clipped = weight.detach().clone()
    singular_value_clip_([clipped], max_singular_value, backend=backend)
    return clipped


@torch.no_grad()
def singular_value_clip_(
    weights: torch.Tensor | Iterable[torch.Tensor],
    max_singular_value: float = 1.0,
    *,
    copies: torch.Tensor | Iterable[torch.Tensor | None] | None = None,
    non_finite: torch.Tensor | None = None,
    backend: ClippingBackend = "auto",
) -> None:
    """Clip the singular values of several weights in place; "cuda" clips all of them in one batch.

    Every weight is checked before the first is changed.

    Args:
        weights: List of weights as in `singular_value_clip`, or a single weight. The elements of a weight must not
            share memory, as those of an expanded tensor do.
        max_singular_value, backend: Threshold and implementation, as in `singular_value_clip`.
        copies: List with an entry for each weight: a floating-point tensor of its shape that is overwritten with the
            clipped values, such as the bfloat16 weights of mixed precision, or None. A tensor is a list of one; None
            for no copies.
        non_finite: int32 tensor of one element on the weights' device: set to 1 if a weight is left alone because an
            entry is not finite, and never reset. None to report nothing.

    Raises:
        TypeError, ValueError, BackendError: As for `singular_value_clip`, or `copies` or `non_finite` do not fit.
    """
    weights, copies, max_singular_value = checked_weights(weights, max_singular_value, copies, non_finite)
    chosen = choose_backends(weights, backend)
    # One batch per GPU.
    for device in {weight.device for weight, name in zip(weights, chosen, strict=True) if name == "cuda"}:
        batch = [i for i, weight in enumerate(weights) if chosen[i] == "cuda" and weight.device == device]
        cuda.launch(
            [weights[i] for i in batch],
            [max_singular_value] * len(batch),
            copies=[copies[i] for i in batch],
            non_finite=non_finite,
        )
    for weight, copy, name in zip(weights, copies, chosen, strict=True):
        if name != "cuda":
            torch_impl.clip_(weight, copy, max_singular_value, non_finite, name)


def choose_backends(weights: Sequence[torch.Tensor], backend: str) -> list[str]:
    """Return the backend for each weight: the requested one, but "gemm" if the weight is too large for "cuda".

    Raises:
        ValueError, BackendError: The backend does not exist, or cannot clip these weights.
    """
    if backend == "auto":
        return [_fastest(weight) for weight in weights]
    require("singular_value_clip", backend, {weight.device for weight in weights})
    if backend != "cuda":
        return [backend] * len(weights)
    for weight in weights:
        if weight.dtype not in cuda.DTYPES:
            raise BackendError(f"backend 'cuda' clips float32, float16 and bfloat16, not {weight.dtype}: use 'gemm'")
        if not cuda.has_memory(weight):
            raise BackendError(f"backend 'cuda' clips plain tensors, not a {type(weight).__name__}: use 'gemm'")
    return [_fastest(weight) for weight in weights]


def _fastest(weight):
    if not weight.is_cuda:
        return "eigh"
    # On a GPU an eigendecomposition synchronizes with the host; matrix products do not.
    if weight.dtype not in cuda.DTYPES or not cuda.has_memory(weight):
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


def checked_weights(weights, threshold, copies, non_finite) -> tuple[list[torch.Tensor], list, float]:
    """Return weights and copies as lists of equal length, and the threshold as a float.

    Raises:
        TypeError, ValueError: As for `singular_value_clip_`.
    """
    weights = tensor_list("weights", weights)
    copies = [None] * len(weights) if copies is None else tensor_list("copies", copies)
    threshold = number("max_singular_value", threshold, _SMALLEST_THRESHOLD, _LARGEST_THRESHOLD)
    if len(copies) != len(weights):
        raise ValueError(f"copies must have one entry per weight: {len(weights)} weights, but {len(copies)} copies")
    if non_finite is not None:
        _check_flag(non_finite)
    for weight, copy in zip(weights, copies, strict=True):
        check_tensor("a weight", weight)
        check_writable("a weight", weight)
        if weight.dim() == 0 or weight.numel() == 0:
            raise ValueError(f"singular value clipping needs a matrix with elements, not {list(weight.shape)}")
        if copy is not None:
            check_tensor("a copy", copy, float8=True)
            if copy.shape != weight.shape or copy.device != weight.device:
                raise ValueError(
                    f"a copy of {list(copy.shape)} on {copy.device} does not fit the weight of {list(weight.shape)} on "
                    f"{weight.device}"
                )
            check_writable("a copy", copy)
        if non_finite is not None and non_finite.device != weight.device:
            raise ValueError(f"non_finite is on {non_finite.device}, but a weight is on {weight.device}")
    return weights, copies, threshold


def _check_flag(non_finite):
    if not isinstance(non_finite, torch.Tensor):
        raise TypeError(f"non_finite must be one int32 tensor, not {type(non_finite).__name__}")
    if non_finite.dtype != torch.int32 or non_finite.numel() != 1:
        raise ValueError(f"non_finite must be one int32, and is {list(non_finite.shape)} of {non_finite.dtype}")
