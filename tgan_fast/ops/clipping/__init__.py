"""Singular value clipping: every singular value σ of a weight replaced by min(σ, threshold).

    W = U·diag(σ)·Vᵀ   →   W' = U·diag(min(σ, t))·Vᵀ = W − R·W,   R = U·diag(max(0, 1 − t/σ))·Uᵀ

R is a function of the small Gram matrix W·Wᵀ = U·diag(σ²)·Uᵀ, so W needs no decomposition of its own: `eigh`
decomposes the Gram matrix, `gemm` reaches R by matrix products alone, `cuda` does the same for a whole list of weights
in three kernels (csrc/), `svd` does it the textbook way. The Gram matrix squares the condition, so everything but `svd`
computes it and R in float64, whatever the dtype of W. Even so it blurs singular values near t by some 2⁻⁵²·σ₁²/t,
where σ₁ is the largest one: `eigh` takes the SVD where that would show.

W' is the point nearest to W in a convex set, the matrices with singular values of at most t. Such a projection moves no
two points apart, so an error in W, such as the rounding of a decomposition, is no larger in W'.

TGAN clips every layer of its discriminator at t = 1 (Saito et al., arXiv:1611.06624, section 3.3).
"""

import functools
import math
import warnings
from collections.abc import Iterable, Sequence

import torch

from tgan_fast.ops import cuda_extension
from tgan_fast.ops.arguments import check_tensor, check_writable, number, tensor_list
from tgan_fast.ops.clipping import cuda as cuda
from tgan_fast.ops.clipping.sign_schedule import sign_schedule
from tgan_fast.ops.dispatch import BackendError, require

# The interval of |x| on which the `gemm` iterations converge, of matrices scaled to a norm of at most 1. For the sign,
# of σ²/t² − 1: below it, a singular value at t is left within 1e-6·t where the largest is 1000·t. For the inverse
# root, of t/σ: the largest σ that is clipped right is some 20,000·t.
_SIGN_LOWER = 1e-12
_ROOT_LOWER = 1e-5
# Largest σ₁/t for which `eigh` trusts the Gram matrix. Its rounding leaves σ up to 2·2⁻⁵²·(σ₁/t)² times t too large: at
# these limits a quarter of float32's eps, and in float64 as much as an SVD leaves.
_LARGEST_FOR_GRAM = 8192.0
_LARGEST_FOR_GRAM_FLOAT64 = 4.0
# Largest bound on σ₁/t for which `gemm` clips at t. The bound, the root of ‖W·Wᵀ‖∞, is at most m^¼ times too large for
# m rows: ten times for 10,000, so that 1000·t is within.
_LARGEST_FOR_GEMM = 1e4
# Columns of W that are converted to float64 at a time, so that they stay in the cache.
_COLUMNS = 2048
# Up to this times the threshold, the rounding of R·W in float32 is as small as that of the result.
_LARGEST_FOR_FLOAT32 = 1.5


@torch.no_grad()
def singular_value_clip(
    weight: torch.Tensor, max_singular_value: float = 1.0, *, backend: str = "auto"
) -> torch.Tensor:
    """Return `weight` with every singular value above `max_singular_value` lowered to it.

    Args:
        weight: Dense tensor in float64, float32, float16 or bfloat16; more than 2 dimensions are the matrix
            [shape[0], -1], one is a row. Where no singular value is too large, or where an entry is not finite, the
            result equals `weight` bit for bit.
        max_singular_value: Threshold t, a Python or NumPy number within the range of float32 (1.2e-38 to 3.4e38).
        backend: Name of an implementation, each with its own accuracy:

            "svd": `torch.linalg.svd` in the weight's dtype, float32 at least. No singular value of the result exceeds
            t by more than rounding in that dtype; the error of the result is rounding of the weight's largest one, σ₁.
            "eigh": eigenvalues of the Gram matrix in float64; where σ₁ exceeds 8192·t (float64: 4·t), the SVD in
            float64. No singular value of the result exceeds t by more than rounding in the weight's dtype; the error
            is that of rounding the result to this dtype and σ₁ in float64.
            "gemm": matrix products only, in float64, without synchronization with the host. The result is right to
            1e-6·t up to σ₁ = 1000·t. A larger weight is clipped at σ₁/1000 or less, and further by the next call; one
            above 1e150 (float64) stays as it is.
            "cuda": the kernels of csrc/ for float32, float16 and bfloat16 on a GPU, without synchronization, the same
            bits every time. They take what lies within 3e-6·t below the threshold for too large as well, clip a weight
            of ‖W‖ > 3162·t (Frobenius norm) only at ‖W‖/3162, and leave a smaller side above 1024 to "gemm".
            "auto": "eigh" on a CPU, "cuda" or else "gemm" on a GPU.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        TypeError: `weight` is not a tensor, or the threshold not a number.
        ValueError: The weight's layout, dtype or shape does not fit, or the threshold is out of range.
        BackendError: The backend asked for cannot run here.
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
    backend: str = "auto",
) -> None:
    """Clip the singular values of several weights in place, with "cuda" all of them in one batch.

    Every weight is checked before the first is changed.

    Args:
        weights: List of weights, each as in `singular_value_clip`; one tensor is a list of one, that is one matrix.
            Elements must not share memory as those of an expanded tensor do.
        max_singular_value, backend: Threshold and implementation, as in `singular_value_clip`.
        copies: List with a floating-point tensor for each weight, of its shape, that is overwritten with the clipped
            values, such as the bfloat16 weights of mixed precision; None for none. One tensor is a list of one.
        non_finite: int32 tensor of one element on the weights' device, set to 1 if a weight was left alone because an
            entry is not finite, and never reset.

    Raises:
        TypeError, ValueError, BackendError: As `singular_value_clip`; copies or a flag that do not fit.
    """
    weights, copies, max_singular_value = checked_weights(weights, max_singular_value, copies, non_finite)
    chosen = choose(weights, backend)
    # A batch for each GPU.
    for device in {weight.device for weight, name in zip(weights, chosen, strict=True) if name == "cuda"}:
        batch = [i for i, weight in enumerate(weights) if chosen[i] == "cuda" and weight.device == device]
        cuda.launch(
            [weights[i] for i in batch],
            max_singular_value,
            copies=[copies[i] for i in batch],
            non_finite=non_finite,
        )
    for weight, copy, name in zip(weights, copies, chosen, strict=True):
        if name != "cuda":
            _clip_by_torch(weight, copy, max_singular_value, non_finite, name)


def _clip_by_torch(weight, copy, threshold, non_finite, backend):
    in_memory_order = _rows_in_memory_order(weight)
    matrix = in_memory_order.flatten(1)
    # Of the two Gram matrices, the smaller one: a tall matrix is clipped as its transpose.
    _BACKENDS[backend](matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix, threshold)
    if matrix.data_ptr() != weight.data_ptr():
        in_memory_order.copy_(matrix.view(in_memory_order.shape))
    if copy is not None:
        copy.copy_(weight)
    if non_finite is not None:
        non_finite.logical_or_(~weight.isfinite().all())


def _rows_in_memory_order(weight):
    """Return the weight as [rows, …], its other dimensions permuted so that flattening copies nothing, if possible.

    The order of a matrix's columns does not matter to its singular values.
    """
    if weight.dim() == 1:
        return weight[None]
    return weight.permute(0, *sorted(range(1, weight.dim()), key=weight.stride, reverse=True))


def _svd(wide, threshold, least_dtype=torch.float32):
    largest = wide.abs().max().item()
    if not math.isfinite(largest):
        return
    # Where a singular value is infinite, LAPACK gives no vectors, or wrong ones.
    scale = 2.0**-64 if largest > 1e30 else 1.0
    matrix = wide.to(torch.promote_types(wide.dtype, least_dtype)) * scale
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / scale
    if s[0] > threshold:
        wide.copy_((u * s.clamp(max=threshold)) @ vh)


def _eigh(wide, threshold):
    gram = _gram(wide) / threshold**2
    if not gram.isfinite().all():
        # An entry of the weight is not finite, or only its square.
        _svd(wide, threshold, torch.float64)
        return
    squared, u = torch.linalg.eigh(gram)
    if squared[-1] <= 1:
        return
    if squared[-1] > (_LARGEST_FOR_GRAM_FLOAT64 if wide.dtype == torch.float64 else _LARGEST_FOR_GRAM) ** 2:
        _svd(wide, threshold, torch.float64)
        return
    r = (u * (1 - squared.clamp(min=1).rsqrt())) @ u.mT
    single = wide.dtype != torch.float64 and squared[-1] <= _LARGEST_FOR_FLOAT32**2
    r = r.float() if single else r
    for columns in wide.split(_COLUMNS, dim=1):
        columns.sub_(r @ columns.to(r.dtype))


def _gemm(wide, threshold):
    gram = _gram(wide)
    threshold = (torch.linalg.matrix_norm(gram, ord=torch.inf).sqrt() / _LARGEST_FOR_GEMM).clamp(min=threshold)
    gram = gram / threshold.square()
    identity = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    at_least_one = _max_with_identity(gram, identity)
    r = identity - _inverse_root(at_least_one, identity)
    # Where nothing exceeds the threshold, max(G, I) is I to rounding; a non-finite weight compares as false.
    excess = (at_least_one - identity).diagonal().sum()
    clips = (excess > 1e-10) & excess.isfinite()
    for columns in wide.split(_COLUMNS, dim=1):
        columns.copy_(torch.where(clips, columns - r @ columns.double(), columns))


def _gram(wide):
    """Return W·Wᵀ in float64, computed in four bands of rows that end at the diagonal and mirrored."""
    rows = wide.shape[0]
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=wide.device)
    bands = [slice(i, i + (rows + 3) // 4) for i in range(0, rows, (rows + 3) // 4)]
    for columns in wide.split(_COLUMNS, dim=1):
        columns = columns.double()
        for band in bands:
            gram[band, : band.stop].addmm_(columns[band], columns[: band.stop].mT)
    return gram.tril() + gram.tril(-1).mT


def _max_with_identity(gram, identity):
    """Return max(G, I) = (G + I + |G − I|) / 2, with |A| = A·sign(A)."""
    a = gram - identity
    # ‖A²‖ in the Frobenius norm bounds the largest eigenvalue squared, a factor of √m closer than ‖A‖² does.
    x = a / torch.linalg.matrix_norm(a @ a).sqrt().clamp(min=torch.finfo(a.dtype).tiny)
    for p in sign_schedule(_SIGN_LOWER):
        y = x @ x
        x = x @ (p.a * identity + p.b * y + p.c * (y @ y))
    return _symmetric((gram + identity + a @ x) / 2)


def _inverse_root(h, identity):
    """Return H^(-1/2) for eigenvalues of at least 1.

    With y = x² and p(x) = x·f(y) of the sign schedule, y ← y·f(y)² tends to 1, so the product of all f(y) to 1/√y.
    """
    scale = torch.linalg.matrix_norm(h @ h).sqrt()
    y, product = h / scale, identity
    for p in sign_schedule(_ROOT_LOWER):
        f = p.a * identity + p.b * y + p.c * (y @ y)
        product = _symmetric(product @ f)
        y = _symmetric(y @ f @ f)
    return product / scale.sqrt()


def _symmetric(a):
    return (a + a.mT) / 2


_BACKENDS = {"svd": _svd, "eigh": _eigh, "gemm": _gemm}


def choose(weights: Sequence[torch.Tensor], backend: str) -> list[str]:
    """Return the backend of each weight: the one asked for, but "gemm" where a weight is too large for "cuda".

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
    # An eigendecomposition waits for the host on a GPU; matrix products do not.
    if weight.dtype not in cuda.DTYPES or not cuda.has_memory(weight):
        return "gemm"
    if reason := cuda_extension.why_not(weight.device):
        _warn_of_gemm(weight.device, reason)
        return "gemm"
    rows = weight.shape[0] if weight.dim() > 1 else 1
    largest_side = cuda_extension.prepare(weight.device.index).largest_side
    return "cuda" if min(rows, weight.numel() // rows) <= largest_side else "gemm"


@functools.cache
def _warn_of_gemm(device, reason):
    """Warn, once per GPU, that "auto" takes the slow backend there."""
    message = f"singular value clipping on {device} uses the backend 'gemm', many times slower than 'cuda': {reason}"
    warnings.warn(message, stacklevel=2)


def checked_weights(weights, threshold, copies, non_finite) -> tuple[list[torch.Tensor], list, float]:
    """Return weights and copies as lists of one length, and the threshold as a float.

    Raises:
        TypeError, ValueError: As `singular_value_clip_`.
    """
    weights = tensor_list("weights", weights)
    copies = [None] * len(weights) if copies is None else tensor_list("copies", copies)
    range_of_float32 = torch.finfo(torch.float32)
    threshold = number("max_singular_value", threshold, range_of_float32.tiny, range_of_float32.max)
    if len(copies) != len(weights):
        raise ValueError(f"{len(weights)} weights, but {len(copies)} copies")
    if non_finite is not None:
        _check_flag(non_finite)
    for weight, copy in zip(weights, copies, strict=True):
        check_tensor("a weight", weight)
        check_writable("a weight", weight)
        if weight.dim() == 0 or weight.numel() == 0:
            raise ValueError(f"singular value clipping needs a matrix and got the shape {list(weight.shape)}")
        if copy is not None:
            check_tensor("a copy", copy, float8=True)
            if copy.shape != weight.shape or copy.device != weight.device:
                raise ValueError(
                    f"a copy of {list(copy.shape)} on {copy.device} does not fit the weight of {list(weight.shape)} on "
                    f"{weight.device}"
                )
            check_writable("a copy", copy)
        if non_finite is not None and non_finite.device != weight.device:
            raise ValueError(f"non_finite is on {non_finite.device}, and a weight on {weight.device}")
    return weights, copies, threshold


def _check_flag(non_finite):
    if not isinstance(non_finite, torch.Tensor):
        raise TypeError(f"non_finite must be one int32 tensor, not {type(non_finite).__name__}")
    if non_finite.dtype != torch.int32 or non_finite.numel() != 1:
        raise ValueError(f"non_finite must be one int32, and is {list(non_finite.shape)} of {non_finite.dtype}")
