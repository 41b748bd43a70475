"""Singular value clipping by PyTorch's own operations: the backends `svd`, `eigh` and `gemm`, and the gradient.

Each backend clips a matrix [rows, columns] with rows ≤ columns in place. The package's docstring has the mathematics.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tgan_fast.ops.clipping.sign_schedule import sign_schedule

# Smallest |σ²/t² − 1| that the sign iteration of `gemm` resolves: closer to t, σ ends within half of it, relative to t.
# That holds up to σ₁ = 1000·t; the lower end of the iteration's interval is never below _LEAST_SIGN_LOWER.
_RESOLUTION = {"exact": 1e-6, "fast": 1e-3}
_LEAST_SIGN_LOWER = 1e-12
# Largest σ₁/t for which accuracy="fast" uses float32 throughout. The error of W' grows with the square of this.
_LARGEST_FOR_FAST = 8.0
# Enough to find out, at the cost of reading G a few times, that float32 will not do.
_POWER_ITERATIONS = 4
# Largest number of rows for which `gemm` does not let the host wait for the norm of the matrix, because it takes less
# time to compute than the host needs to get ahead again.
_LARGEST_WITHOUT_WAITING = 1024
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
# Largest σ₁²/t² and number of rows for which the eigenvectors may be computed in float32. Their error is multiplied by
# 1 − t/σ, and grows with the matrix: with half of the singular values at t, to 0.96e-7 at 512 rows and 1.03e-7 at 1024.
_LARGEST_SQUARE_FOR_FLOAT32_VECTORS = 1.02
_MOST_ROWS_FOR_FLOAT32_VECTORS = 512
# Largest error of R·W in float32, relative to the norm of W: as large as the rounding of W.
_LARGEST_ERROR = 6e-8


def clip_(weight: torch.Tensor, threshold: float, non_finite: torch.Tensor | None, backend: str, accuracy: str) -> None:
    """Clip one matrix in place; the arguments have passed the checks of `singular_value_clip_`."""
    in_memory_order = weight.permute(_memory_order(weight))
    matrix = torch.atleast_2d(in_memory_order).flatten(1)
    accuracy = accuracy if weight.dtype != torch.float64 else "exact"
    with _true_float32(weight.device):
        _BACKENDS[backend](_wide(matrix), threshold, accuracy)
    if matrix.data_ptr() != weight.data_ptr():
        in_memory_order.copy_(matrix.view(in_memory_order.shape))
    if non_finite is not None:
        non_finite.logical_or_(~weight.isfinite().all())


def gradient_(weight: torch.Tensor, gradient: torch.Tensor, threshold: float, accuracy: str) -> None:
    """Turn the gradient of a loss with respect to a clipped matrix into that with respect to the matrix, in place.

    W' = M·W with M = m(S), S = G/t², m(s) = min(1, s^(-1/2)). In the eigenvectors U of S, the derivative of m(S) is the
    table D of the divided differences of m (Daleckii and Krein), so the gradient is

        M·∂W' + Z·W/t²,  Z = U·(D ∘ Uᵀ·(∂W'·Wᵀ + W·∂W'ᵀ)·U)·Uᵀ

    No divided difference exceeds 1/2, however close two singular values are.
    """
    order = _memory_order(weight)
    matrix, matrix_gradient = (torch.atleast_2d(tensor.permute(order)).flatten(1) for tensor in (weight, gradient))
    wide, wide_gradient = _wide(matrix), _wide(matrix_gradient)
    accuracy = accuracy if weight.dtype != torch.float64 else "exact"
    with _true_float32(weight.device):
        spectrum = _left_spectrum(wide, threshold, accuracy)
        if spectrum is None:
            return
        wide_gradient.copy_(_gradient_by_spectrum(wide, wide_gradient, threshold, *spectrum))
    if matrix_gradient.data_ptr() != gradient.data_ptr():
        in_order = gradient.permute(order)
        in_order.copy_(matrix_gradient.view(in_order.shape))


def _gradient_by_spectrum(wide, gradient, threshold, x, u):
    """Return the gradient, given the eigenvalues x and eigenvectors u of G/t² − I."""
    w, g = wide.to(u.dtype) / threshold, gradient.to(u.dtype)
    above, excess = x > 0, x.clamp(min=0)
    sigma = (1 + excess).sqrt()
    # D by the chain rule: of max(x, 0), where two eigenvalues on one side of 0 have 0 or 1, and then of 1/σ.
    ratios = (excess[:, None] - excess) / (x[:, None] - x)
    ratios = torch.where(above[:, None] == above, above.to(x.dtype), ratios)
    table = -ratios / (sigma[:, None] * sigma * (sigma[:, None] + sigma))
    y = u.mT @ (g @ w.mT) @ u
    z = u @ (table * (y + y.mT)) @ u.mT
    return g - (u * (1 - 1 / sigma)) @ (u.mT @ g) + z @ w


def _left_spectrum(wide, threshold, accuracy):
    """Return eigenvalues and eigenvectors of G/t² − I; None if no eigenvalue is above 0, or an entry is not finite."""
    levels = [(torch.float64, _LARGEST_FOR_GRAM if wide.dtype != torch.float64 else _LARGEST_FOR_GRAM_FLOAT64)]
    if accuracy == "fast":
        levels.insert(0, (torch.float32, _LARGEST_FOR_FAST))
    for dtype, largest in levels:
        gram = _gram(wide, dtype, threshold).to(dtype)
        longest = gram.diagonal().max().item()
        if not longest <= largest**2:
            continue
        gram.diagonal().sub_(1)
        if longest <= 1 and _is_below(gram, 0.0):
            return None
        x, u = torch.linalg.eigh(gram)
        top = x.max().item()
        if 1 + top <= largest**2:
            return (x, u) if top > 0 else None
    if not wide.isfinite().all():
        return None
    u, s, _ = torch.linalg.svd(wide.double() / threshold, full_matrices=False)
    return (s - 1) * (s + 1), u


def _wide(matrix):
    """Return the matrix, or its transpose if that has the smaller Gram matrix."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _memory_order(weight):
    """Return an order of the dimensions, the first one first, in which flattening the others copies nothing, if any.

    The order of columns does not change the singular values.
    """
    return 0, *sorted(range(1, weight.dim()), key=weight.stride, reverse=True)


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


def _eigh(wide, threshold, accuracy):
    if wide.shape[0] == 1:
        _clip_row(wide, threshold)
        return
    if accuracy == "fast" and _clip_in_float32(wide, threshold):
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


def _clip_in_float32(wide, threshold):
    """Clip by float32 arithmetic, and return True; if σ₁ exceeds 8·t, keep W and return False."""
    gram = _gram(wide, torch.float32, threshold)
    if not _power_iteration(gram) <= _LARGEST_FOR_FAST**2:
        return False
    longest = gram.diagonal().max().item()
    gram.diagonal().sub_(1)
    if longest <= 1 and _is_below(gram.float(), _BLUR):
        return True
    # Around their mean, equal eigenvalues lose nothing in float32.
    mean = gram.diagonal().mean()
    gram.diagonal().sub_(mean)
    eigenvalues, u = torch.linalg.eigh(gram.float())
    eigenvalues = eigenvalues.double() + mean
    top = 1 + eigenvalues.max().item()
    if top > _LARGEST_FOR_FAST**2:
        return False
    if top > 1:
        _subtract(wide, _factors_of_shrinkage(eigenvalues, u))
    return True


def _power_iteration(gram):
    """Return a lower bound of the largest eigenvalue of a Gram matrix, close if it is far above the others.

    It is NaN if an entry is not finite.
    """
    v = gram[gram.diagonal().argmax()]
    for _ in range(_POWER_ITERATIONS):
        v = v / torch.linalg.vector_norm(v).clamp(min=torch.finfo(v.dtype).tiny)
        v = gram @ v
    return torch.linalg.vector_norm(v).item()


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
    in_float32 = (
        _is_single_on_cpu(wide)
        and len(wide) <= _MOST_ROWS_FOR_FLOAT32_VECTORS
        and longest <= _LARGEST_SQUARE_FOR_FLOAT32_VECTORS
    )
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
    if top <= 1:
        return True
    factors = _factors_of_shrinkage(eigenvalues, u)
    single = wide.dtype != torch.float64 and top <= _LARGEST_FOR_FLOAT32**2
    if single and top > _LARGEST_SQUARE_FOR_FLOAT32_VECTORS:
        # Sums of equal terms round in one direction, which a sample of the columns reveals.
        sample = wide[:, :: wide.shape[1] // 32 + 1]
        error = _product([factor.float() for factor in factors], sample) - _product(factors, sample)
        single = error.norm() <= _LARGEST_ERROR * sample.norm()
    _subtract(wide, [factor.to(torch.float32 if single else torch.float64) for factor in factors])
    return True


def _is_below(a, bound):
    """Return whether all eigenvalues of `a` are below `bound`, by a Cholesky factorization, which is far cheaper."""
    difference = -a
    difference.diagonal().add_(bound)
    return torch.linalg.cholesky_ex(difference).info.item() == 0


def _factors_of_shrinkage(eigenvalues, u):
    """Return matrices whose product, from the last to the first, is R, given the eigensystem of G/t² − I."""
    # The eigenvalues of R: 1 − t/σ = 1 − (1 + x)^(-1/2), without cancellation in float32.
    r = -torch.expm1(-0.5 * torch.log1p(eigenvalues.clamp(min=0))).to(u.dtype)
    too_large = eigenvalues > 0
    v = u[:, too_large]
    # If few singular values are too large, R = V·D·Vᵀ is cheaper as two factors.
    if 2 * v.shape[1] <= len(v):
        return [v.mT, v * r[too_large]]
    # A multiple of I set apart halves what the eigenvectors' deviation from orthogonality adds.
    middle = (r.min() + r.max()) / 2
    factor = (u * (r - middle)) @ u.mT
    factor.diagonal().add_(middle)
    return [factor]


def _subtract(wide, factors):
    for columns in wide.split(_COLUMNS, dim=1):
        columns.sub_(_product(factors, columns))


def _product(factors, columns):
    product = columns.to(factors[0].dtype)
    for factor in factors:
        product = factor @ product
    return product


def _gemm(wide, threshold, accuracy):
    capturing = wide.is_cuda and torch.cuda.is_current_stream_capturing()
    waits = not capturing and (accuracy == "fast" or wide.shape[0] > _LARGEST_WITHOUT_WAITING)
    gram, accuracy = _gram_for_gemm(wide, threshold, accuracy if waits else "exact")
    # The host knows a bound of σ₁²/t² if it waits; on the device, a larger one raises the threshold.
    bound = torch.linalg.matrix_norm(gram, ord=torch.inf)
    raised = (bound / _LARGEST_FOR_GEMM**2).clamp(min=1)
    gram = (gram / raised).to(torch.float64 if accuracy == "exact" else torch.float32)
    gram.diagonal().sub_(1)
    largest = _LARGEST_FOR_GEMM**2
    if waits:
        if not math.isfinite(bound.item()):
            return
        largest = min(max(bound.item(), 1.0), largest)
        if gram.diagonal().max().item() <= 0 and _is_below(gram, 0.0 if accuracy == "exact" else _BLUR):
            return
    positive = _positive_part(gram, max(_RESOLUTION[accuracy] / largest, _LEAST_SIGN_LOWER))
    # If nothing exceeds the threshold, max(A, 0) is 0 up to rounding; the sum of a non-finite weight is not finite.
    excess = positive.diagonal().sum()
    clips = (excess > 1e-10) & excess.isfinite()
    positive.diagonal().add_(1)
    # The Frobenius norm that scales the matrix exceeds `largest` by a factor of rows^¼ at most.
    r = -_inverse_root(positive, 0.9 / (largest * len(gram) ** 0.25) ** 0.5)
    r.diagonal().add_(1)
    for columns in wide.split(_COLUMNS, dim=1):
        columns.copy_(torch.where(clips, columns - r @ columns.to(r.dtype), columns))


def _gram_for_gemm(wide, threshold, accuracy):
    """Return G/t² in float64, and the accuracy for which it will do: "fast" only up to σ₁ = 8·t."""
    if accuracy == "fast":
        gram = _gram(wide, torch.float32, threshold)
        if torch.linalg.matrix_norm(gram, ord=torch.inf).item() <= _LARGEST_FOR_FAST**2:
            return gram, accuracy
    return _gram(wide) / threshold**2, "exact"


def _gram(wide, dtype=torch.float64, unit=1.0):
    """Return W·Wᵀ/unit² in float64, from products in `dtype`: up to four bands of rows up to the diagonal, mirrored."""
    rows = wide.shape[0]
    height = max(_ROWS, (rows + 3) // 4)
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=wide.device)
    for columns in wide.split(_COLUMNS, dim=1):
        columns = columns.to(dtype)
        if unit != 1:
            columns = columns / unit
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


def _positive_part(a, lower):
    """Return max(A, 0) = (A + |A|)/2, with |A| = A·sign(A); `lower` is the lower end of the iteration's interval."""
    # ‖A²‖ in the Frobenius norm bounds the square of the largest eigenvalue, by a factor of √m closer than ‖A‖² does.
    x = a / torch.linalg.matrix_norm(a @ a).sqrt().clamp(min=torch.finfo(a.dtype).tiny)
    for p in _schedule(lower, a.dtype):
        # Without symmetry, rounding would grow from step to step.
        x = _symmetric(x @ _factor(x @ x, p))
    return _symmetric((a + a @ x) / 2)


def _inverse_root(h, lower):
    """Return H^(-1/2) for eigenvalues of at least 1.

    With y = x² and p(x) = x·f(y) of the sign schedule, y ← y·f(y)² tends to 1, so the product of all f(y) tends to
    1/√y.
    """
    scale = torch.linalg.matrix_norm(h @ h).sqrt()
    y, product = h / scale, None
    for p in _schedule(lower, h.dtype):
        f = _factor(y, p)
        product = f if product is None else _symmetric(product @ f)
        y = _symmetric(y @ f @ f)
    return product / scale.sqrt()


def _schedule(lower, dtype):
    """Return the polynomials for |x| from `lower` on, or from the power of 2 below it: few are ever computed."""
    return sign_schedule(2.0 ** math.floor(math.log2(lower)), 1e-14 if dtype == torch.float64 else 1e-7)


def _factor(y, p):
    """Return f(y) = a + b·y + c·y² of a polynomial x·f(x²)."""
    f = torch.addmm(y, y, y, beta=p.b, alpha=p.c)
    f.diagonal().add_(p.a)
    return f


def _symmetric(a):
    return (a + a.mT) / 2


@contextmanager
def _true_float32(device) -> Iterator[None]:
    """Multiply float32 matrices in float32, even under autocast or if the process allows TF32 or bfloat16 for that."""
    products = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [product.fp32_precision for product in products]
    try:
        for product in products:
            product.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for product, precision in zip(products, before, strict=True):
            product.fp32_precision = precision


_BACKENDS = {"svd": lambda wide, threshold, _accuracy: _svd(wide, threshold), "eigh": _eigh, "gemm": _gemm}
