"""Singular value clipping by PyTorch's own operations: the backends `svd`, `eigh` and `gemm`.

Each clips a matrix [rows, columns] with rows ≤ columns in place. The mathematics is that of the package's docstring.
"""

import math

import torch

from tgan_fast.ops.clipping.sign_schedule import sign_schedule

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


def clip_(
    weight: torch.Tensor,
    copy: torch.Tensor | None,
    threshold: float,
    non_finite: torch.Tensor | None,
    backend: str,
) -> None:
    """Clip one weight in place; arguments as in `singular_value_clip_`, whose checks they have passed."""
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
