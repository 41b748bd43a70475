"""Singular value clipping by PyTorch's own operations: the backends `svd`, `eigh` and `gemm`.

Each backend clips a matrix [rows, columns] with rows ≤ columns in place. The package's docstring has the mathematics.
"""

import math

import torch

from tgan_fast.ops.clipping.sign_schedule import sign_schedule

# Lower ends of the intervals of |x| on which the `gemm` iterations converge, for matrices scaled to a norm of at most
# 1. The sign iteration has x ~ σ²/t² − 1: where |x| is smaller, σ ends within 1e-6·t of t if the largest σ is 1000·t.
# The inverse-root iteration has x down to about t/σ₁: the largest σ₁ that is clipped correctly is about 20,000·t.
_SIGN_LOWER = 1e-12
_ROOT_LOWER = 1e-5
# Largest σ₁/t for which `eigh` uses the Gram matrix. Rounding of that matrix leaves σ up to 2·2⁻⁵²·(σ₁/t)²·t too large:
# at these limits, a quarter of float32's eps, and in float64 as much as an SVD leaves.
_LARGEST_FOR_GRAM = 8192.0
_LARGEST_FOR_GRAM_FLOAT64 = 4.0
# Largest bound on σ₁/t for which `gemm` clips at t. The bound, the root of ‖W·Wᵀ‖∞, is at most m^¼ times too large for
# m rows. That is ten times for 10,000 rows, so σ₁ = 1000·t stays within this limit.
_LARGEST_FOR_GEMM = 1e4
# Columns of W that are multiplied at a time, so that they and their float64 copy stay in the cache.
_COLUMNS = 2048
# Smallest number of rows of the Gram matrix that are computed at a time, because products of fewer rows are slow.
_ROWS = 128
# Largest σ₁/t for which `eigh` may compute R·W in float32, and on a CPU the Gram matrix too, unless the weight is
# float64. The rounding is then as small as that of the result.
_LARGEST_FOR_FLOAT32 = 1.5
# Smallest columns / rows for a Gram matrix in float32, because its rounding grows with the root of rows / columns. This
# is measured, not proved: at 32 columns per row, the norm of the rounding was 0.9e-7·t² for clipped Gaussian weights
# and 1.3e-7·t² at σ₁ = 1.4·t, which moves σ by half of that.
_WIDE = 16
_BLUR = 2.0**-23  # in σ²/t²: a smaller excess may be rounding of the float32 Gram matrix, and is not clipped
# Largest σ₁²/t² for which the eigenvectors may be computed in float32. Their error is multiplied by 1 − t/σ.
_LARGEST_SQUARE_FOR_FLOAT32_VECTORS = 1.02
# Largest error of R·W in float32, relative to the norm of W: as large as the rounding of W.
_LARGEST_ERROR = 6e-8


def clip_(
    weight: torch.Tensor,
    copy: torch.Tensor | None,
    threshold: float,
    non_finite: torch.Tensor | None,
    backend: str,
) -> None:
    """Clip one weight in place; the arguments have passed the checks of `singular_value_clip_`."""
    in_memory_order = _rows_in_memory_order(weight)
    matrix = in_memory_order.flatten(1)
    # A tall matrix is clipped as its transpose, whose Gram matrix is smaller.
    _BACKENDS[backend](matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix, threshold)
    if matrix.data_ptr() != weight.data_ptr():
        in_memory_order.copy_(matrix.view(in_memory_order.shape))
    if copy is not None:
        copy.copy_(weight)
    if non_finite is not None:
        non_finite.logical_or_(~weight.isfinite().all())


def _rows_in_memory_order(weight):
    """Return the weight as [rows, …], its other dimensions permuted so that flattening copies nothing, if possible.

    The order of columns does not change the singular values.
    """
    if weight.dim() <= 2:
        return torch.atleast_2d(weight)
    return weight.permute(0, *sorted(range(1, weight.dim()), key=weight.stride, reverse=True))


def _svd(wide, threshold, least_dtype=torch.float32):
    largest = wide.abs().max().item()
    if not math.isfinite(largest):
        return
    # If a singular value is infinite, LAPACK returns no vectors or wrong ones.
    scale = 2.0**-64 if largest > 1e30 else 1.0
    matrix = wide.to(torch.promote_types(wide.dtype, least_dtype)) * scale
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / scale
    if s[0] > threshold:
        wide.copy_((u * s.clamp(max=threshold)) @ vh)


def _eigh(wide, threshold):
    if wide.shape[0] == 1:
        _clip_row(wide, threshold)
        return
    gram = _gram_of_float32(wide, threshold)
    if gram is not None and _clip_by_gram(wide, gram, _LARGEST_FOR_FLOAT32, _BLUR):
        return
    largest = _LARGEST_FOR_GRAM_FLOAT64 if wide.dtype == torch.float64 else _LARGEST_FOR_GRAM
    if not _clip_by_gram(wide, _gram(wide) / threshold**2, largest):
        _svd(wide, threshold, torch.float64)


def _clip_row(row, threshold):
    in_float64 = row.double()
    norm = torch.linalg.vector_norm(in_float64).item()
    if not math.isfinite(norm):
        _svd(row, threshold, torch.float64)
    elif norm > threshold:
        torch.mul(in_float64, threshold / norm, out=row)


def _clip_by_gram(wide, gram, largest, blur=0.0):
    """Clip by the Gram matrix G/t², which is overwritten, and return True.

    If σ₁ exceeds `largest`·t, keep W and return False.

    Args:
        blur: Expected error of the Gram matrix; a weight whose eigenvalues stay below 1 + `blur` is left alone.
    """
    # The norm of a row is a lower bound for σ₁. It is not finite if an entry or its square is not.
    longest = gram.diagonal().max().item()
    if not longest <= largest**2:
        return False
    gram.diagonal().sub_(1)
    if longest <= 1 and _is_below(gram, blur):
        return True
    # From here on the eigenvalues are those of G/t² − I, because float32 rounds those near the threshold least.
    in_float32 = _is_single_on_cpu(wide) and longest <= _LARGEST_SQUARE_FOR_FLOAT32_VECTORS
    eigenvalues, u = torch.linalg.eigh(gram.float() if in_float32 else gram)
    if in_float32:
        # Rayleigh quotients are better, because every float32 eigenvalue has the error of the largest one.
        v = u.double()
        eigenvalues = (((gram @ v) * v).sum(0) / v.square().sum(0)).float()
    top = 1 + eigenvalues.max().item()
    if in_float32 and top > _LARGEST_SQUARE_FOR_FLOAT32_VECTORS:
        eigenvalues, u = torch.linalg.eigh(gram)
        top = 1 + eigenvalues.max().item()
    if top > largest**2:
        return False
    if top > 1:
        _subtract(wide, eigenvalues, u, top)
    return True


def _is_below(a, bound):
    """Return whether all eigenvalues of `a` are below `bound`, by a Cholesky factorization, which is far cheaper."""
    difference = -a
    difference.diagonal().add_(bound)
    return torch.linalg.cholesky_ex(difference).info.item() == 0


def _subtract(wide, eigenvalues, u, top):
    """Subtract R·W from W, given the eigenvalues and eigenvectors of G/t² − I; `top` is σ₁²/t²."""
    too_large = eigenvalues > 0
    v = u[:, too_large]
    # t/σ − 1 = (1 + x)^(-1/2) − 1, without cancellation in float32.
    scaled = v * torch.expm1(-0.5 * torch.log1p(eigenvalues[too_large]))
    # If few singular values are too large, −R = V·D·Vᵀ is cheaper as two factors.
    factors = [v.mT, scaled] if 2 * v.shape[1] <= len(v) else [scaled @ v.mT]
    single = wide.dtype != torch.float64 and top <= _LARGEST_FOR_FLOAT32**2
    if single and top > _LARGEST_SQUARE_FOR_FLOAT32_VECTORS:
        # Sums of equal terms round in one direction, which a sample of the columns reveals.
        sample = wide[:, :: wide.shape[1] // 32 + 1]
        error = _product([factor.float() for factor in factors], sample) - _product(factors, sample)
        single = error.norm() <= _LARGEST_ERROR * sample.norm()
    factors = [factor.to(torch.float32 if single else torch.float64) for factor in factors]
    for columns in wide.split(_COLUMNS, dim=1):
        columns.add_(_product(factors, columns))


def _product(factors, columns):
    product = columns.to(factors[0].dtype)
    for factor in factors:
        product = factor @ product
    return product


def _gemm(wide, threshold):
    gram = _gram(wide)
    threshold = (torch.linalg.matrix_norm(gram, ord=torch.inf).sqrt() / _LARGEST_FOR_GEMM).clamp(min=threshold)
    gram = gram / threshold.square()
    identity = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    at_least_one = _max_with_identity(gram, identity)
    r = identity - _inverse_root(at_least_one, identity)
    # If nothing exceeds the threshold, max(G, I) is I up to rounding; for a non-finite weight the comparison is false.
    excess = (at_least_one - identity).diagonal().sum()
    clips = (excess > 1e-10) & excess.isfinite()
    for columns in wide.split(_COLUMNS, dim=1):
        columns.copy_(torch.where(clips, columns - r @ columns.double(), columns))


def _gram(wide, dtype=torch.float64):
    """Return W·Wᵀ in float64, from products in `dtype`: up to four bands of rows up to the diagonal, then mirrored."""
    rows = wide.shape[0]
    height = max(_ROWS, (rows + 3) // 4)
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=wide.device)
    for columns in wide.split(_COLUMNS, dim=1):
        columns = columns.to(dtype)
        for start in range(0, rows, height):
            band = slice(start, start + height)
            gram[band, : band.stop].add_(columns[band] @ columns[: band.stop].mT)
    return gram.tril() + gram.tril(-1).mT if rows > height else gram


def _gram_of_float32(wide, threshold):
    """Return W·Wᵀ/t² from products in float32, with a float64 diagonal; None if the rounding could matter.

    Independent rounding errors average out. Those of equal terms do not, and no useful bound holds for both. The
    diagonal is therefore computed both ways and compared, which also reveals overflow, underflow and products in less
    than float32.
    """
    if not _is_single_on_cpu(wide) or wide.shape[1] < _WIDE * wide.shape[0]:
        return None
    parts = wide.split(_COLUMNS, dim=1)
    squares = sum(torch.linalg.vector_norm(part, dim=1, dtype=torch.float64).square() for part in parts)
    if not squares.max().item() <= (_LARGEST_FOR_FLOAT32 * threshold) ** 2:
        return None
    gram = _gram(wide, torch.float32)
    error = gram.diagonal() - squares
    if (error.abs() > 3e-7 * squares).any() or error.sum().abs() > 3e-8 * squares.sum():
        return None
    gram.diagonal().copy_(squares)
    return gram.div_(threshold**2)


def _is_single_on_cpu(wide):
    return wide.dtype != torch.float64 and wide.device.type == "cpu"


def _max_with_identity(gram, identity):
    """Return max(G, I) = (G + I + |G − I|) / 2, with |A| = A·sign(A)."""
    a = gram - identity
    # ‖A²‖ in the Frobenius norm bounds the square of the largest eigenvalue, by a factor of √m closer than ‖A‖² does.
    x = a / torch.linalg.matrix_norm(a @ a).sqrt().clamp(min=torch.finfo(a.dtype).tiny)
    for p in sign_schedule(_SIGN_LOWER):
        y = x @ x
        x = x @ (p.a * identity + p.b * y + p.c * (y @ y))
    return _symmetric((gram + identity + a @ x) / 2)


def _inverse_root(h, identity):
    """Return H^(-1/2) for eigenvalues of at least 1.

    With y = x² and p(x) = x·f(y) of the sign schedule, y ← y·f(y)² tends to 1, so the product of all f(y) tends to
    1/√y.
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
