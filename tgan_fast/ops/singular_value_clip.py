"""Singular value clipping: every singular value σ of a weight replaced by min(σ, threshold).

    W = U·diag(σ)·Vᵀ   →   W' = U·diag(min(σ, t))·Vᵀ = W − R·W,   R = U·diag(max(0, 1 − t/σ))·Uᵀ

R is a function of the small Gram matrix W·Wᵀ = U·diag(σ²)·Uᵀ, so W needs no decomposition of its own: `eigh`
decomposes the Gram matrix, `gemm` reaches R by matrix products alone, `cuda` does the same for a whole list of weights
in three kernels (csrc/), `svd` does it the textbook way. The Gram matrix squares the condition, so everything but `svd`
computes it and R in float64, whatever the dtype of W.

TGAN clips every layer of its discriminator at t = 1 (Saito et al., arXiv:1611.06624, section 3.3).
"""

import functools
import warnings
from collections.abc import Sequence

import torch

from tgan_fast.ops import cuda_extension
from tgan_fast.ops import singular_value_clip_cuda as cuda
from tgan_fast.ops.registry import BackendError, require
from tgan_fast.ops.sign_schedule import sign_schedule

# The interval of |x| on which the `gemm` iterations converge, of matrices scaled to a norm of at most 1. For the sign,
# of σ²/t² − 1: below it, a singular value at t is left within 1e-6·t where the largest is 1000·t. For the inverse
# root, of t/σ: the largest σ that is clipped right is some 20,000·t.
_SIGN_LOWER = 1e-12
_ROOT_LOWER = 1e-5
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
        weight: floating point; more than 2 dimensions are the matrix [shape[0], -1], one is a row. Where no singular
            value is too large, or where an entry is not finite, the result equals `weight` bit for bit.
        max_singular_value: the threshold, > 0.
        backend: "svd" (`torch.linalg.svd` in the weight's dtype, float32 at least), "eigh" (eigenvalues of the Gram
            matrix, float64), "gemm" (matrix products only, float64, no synchronisation with the host; singular values
            up to 1000 times the threshold), "cuda" (the kernels of csrc/ for float32, float16 and bfloat16 on a GPU;
            no synchronisation, the same bits every time), or "auto", the fastest that fits device and dtype.
            "cuda" takes what lies within 3e-6·t below the threshold for too large as well, clips a weight of
            ‖W‖ > 3162·t (Frobenius norm) only at ‖W‖/3162, and leaves a smaller side above 1024 to "gemm".

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        ValueError: a weight or a threshold that makes no sense.
        BackendError: the backend asked for cannot run here.
    """
    clipped = weight.detach().clone()
    singular_value_clip_([clipped], max_singular_value, backend=backend)
    return clipped


@torch.no_grad()
def singular_value_clip_(
    weights: Sequence[torch.Tensor],
    max_singular_value: float = 1.0,
    *,
    copies: Sequence[torch.Tensor | None] | None = None,
    non_finite: torch.Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Clip the singular values of several weights in place, with "cuda" all of them in one batch.

    Every weight is checked before the first is changed.

    Args:
        weights, max_singular_value, backend: as in `singular_value_clip`.
        copies: for each weight a tensor of its shape that is overwritten with the clipped values, such as the bfloat16
            weights of mixed precision; None for none.
        non_finite: int32 tensor of one element on the weights' device, set to 1 if a weight was left alone because an
            entry is not finite, and never reset.

    Raises:
        ValueError, BackendError: as `singular_value_clip`; copies or a flag that do not fit.
    """
    weights = list(weights)
    copies = [None] * len(weights) if copies is None else list(copies)
    check_weights(weights, max_singular_value, copies, non_finite)
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
    """The weight as [rows, …] with the other dimensions permuted so that flattening them copies nothing, if possible.

    The order of a matrix's columns does not matter to its singular values.
    """
    if weight.dim() == 1:
        return weight[None]
    return weight.permute(0, *sorted(range(1, weight.dim()), key=weight.stride, reverse=True))


def _svd(wide, threshold):
    if not wide.isfinite().all():
        return
    u, s, vh = torch.linalg.svd(wide.to(torch.promote_types(wide.dtype, torch.float32)), full_matrices=False)
    if s[0] > threshold:
        wide.copy_((u * s.clamp(max=threshold)) @ vh)


def _eigh(wide, threshold):
    gram = _gram(wide) / threshold**2
    if not gram.isfinite().all():
        return
    squared, u = torch.linalg.eigh(gram)
    if squared[-1] <= 1:
        return
    r = (u * (1 - squared.clamp(min=1).rsqrt())) @ u.mT
    single = wide.dtype != torch.float64 and squared[-1] <= _LARGEST_FOR_FLOAT32**2
    r = r.float() if single else r
    for part in wide.split(_COLUMNS, dim=1):
        part.sub_(r @ part.to(r.dtype))


def _gemm(wide, threshold):
    gram = _gram(wide) / threshold**2
    identity = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    at_least_one = _max_with_identity(gram, identity)
    r = identity - _inverse_root(at_least_one, identity)
    # Where nothing exceeds the threshold, max(G, I) is I to rounding; a non-finite weight compares as false.
    excess = (at_least_one - identity).diagonal().sum()
    clips = (excess > 1e-10) & excess.isfinite()
    for part in wide.split(_COLUMNS, dim=1):
        part.copy_(torch.where(clips, part - r @ part.double(), part))


def _gram(wide):
    """W·Wᵀ in float64, in four bands of rows that end at the diagonal: the rest is their mirror image."""
    rows = wide.shape[0]
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=wide.device)
    bands = [slice(i, i + (rows + 3) // 4) for i in range(0, rows, (rows + 3) // 4)]
    for part in wide.split(_COLUMNS, dim=1):
        part = part.double()
        for band in bands:
            gram[band, : band.stop].addmm_(part[band], part[: band.stop].mT)
    return gram.tril() + gram.tril(-1).mT


def _max_with_identity(gram, identity):
    """max(G, I) = (G + I + |G − I|) / 2, with |A| = A·sign(A)."""
    a = gram - identity
    # ‖A²‖ in the Frobenius norm bounds the largest eigenvalue squared, a factor of √m closer than ‖A‖² does.
    x = a / torch.linalg.matrix_norm(a @ a).sqrt().clamp(min=torch.finfo(a.dtype).tiny)
    for p in sign_schedule(_SIGN_LOWER):
        y = x @ x
        x = x @ (p.a * identity + p.b * y + p.c * (y @ y))
    return _symmetric((gram + identity + a @ x) / 2)


def _inverse_root(h, identity):
    """H^(-1/2) for eigenvalues of at least 1.

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
    """The backend of each weight: the one asked for, but "gemm" for those too large for "cuda".

    Raises:
        ValueError, BackendError: it cannot be had for these weights.
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


def check_weights(weights, threshold, copies, non_finite) -> None:
    """Raise a ValueError for what makes no sense."""
    if not 0 < threshold < float("inf"):
        raise ValueError(f"max_singular_value must be a positive number, and is {threshold}")
    if len(copies) != len(weights):
        raise ValueError(f"{len(weights)} weights, but {len(copies)} copies")
    for weight, copy in zip(weights, copies, strict=True):
        if not weight.is_floating_point():
            raise ValueError(f"singular value clipping needs a floating-point tensor and got {weight.dtype}")
        if weight.dim() == 0 or weight.numel() == 0:
            raise ValueError(f"singular value clipping needs a matrix and got the shape {list(weight.shape)}")
        if copy is not None and (copy.shape != weight.shape or copy.device != weight.device):
            raise ValueError(
                f"a copy of {list(copy.shape)} on {copy.device} does not fit the weight of {list(weight.shape)} on "
                f"{weight.device}"
            )
        if non_finite is not None and non_finite.device != weight.device:
            raise ValueError(f"non_finite is on {non_finite.device}, and a weight on {weight.device}")
    if non_finite is not None and (non_finite.dtype != torch.int32 or non_finite.numel() != 1):
        raise ValueError(f"non_finite must be one int32, and is {list(non_finite.shape)} of {non_finite.dtype}")
