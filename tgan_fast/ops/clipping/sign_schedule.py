"""Odd quintic polynomials whose composition is sign(x): the coefficients behind the `gemm` and `cuda` backends.

Each polynomial p(x) = a·x + b·x³ + c·x⁵ has the smallest possible deviation E from 1 on the interval that its
predecessor leaves; it maps [lower, upper] into [1 − E, 1 + E]. This greedy choice is optimal among compositions of
polynomials of one degree: Amsel, Persson, Musco and Gower, "The Polar Express" (arXiv:2505.16932).

If `lower` is tiny, so is 1 − E, and p maps some values in the middle of the interval almost to 0, where rounding errors
are large beside them. As in the authors' code, p is therefore made for an interval that begins at a fixed fraction of
its upper end or above. Below that fraction, p increases from 0.
"""

import functools
import math
from typing import NamedTuple

# On an interval of at most this length, a last Newton–Schulz polynomial, whose error is cubic, reaches 1 to float64
# rounding.
_NEARLY_ONE = 1e-5
# Every polynomial is made for an interval a little longer than its predecessor leaves, because the next polynomials
# would move a value that rounding pushes past the upper end far away.
_CUSHION = 1.001
# Smallest ratio of lower to upper end of the interval that a polynomial is made for. 1 − E is then at least 0.3, and a
# schedule has at most one more polynomial.
_FLOOR = 1 / 20
# p(1) = 1, p'(1) = p''(1) = 0
_NEWTON_SCHULZ = (15 / 8, -10 / 8, 3 / 8)


class SignPolynomial(NamedTuple):
    """Polynomial p(x) = a·x + b·x³ + c·x⁵, for lower ≤ |x| ≤ upper."""

    lower: float
    upper: float
    a: float
    b: float
    c: float

    @property
    def deviation(self) -> float:
        """Largest |p(x) − sign(x)| on the interval."""
        return 1.0 - self(self.lower)

    def __call__(self, x: float) -> float:
        return x * (self.a + self.b * x**2 + self.c * x**4)


@functools.cache
def sign_schedule(lower: float, deviation: float = 1e-14) -> tuple[SignPolynomial, ...]:
    """Return the polynomials, in order, that map lower ≤ |x| ≤ 1 to sign(x), up to `deviation`.

    Where |x| < lower, the composition lies between 0 and sign(x). Without its first polynomials it maps the shorter
    interval of the first remaining one.
    """
    if not 0 < lower < 1:
        raise ValueError(f"lower must lie between 0 and 1, and is {lower}")
    schedule: list[SignPolynomial] = []
    upper = 1.0
    while 1.0 - lower > deviation:
        if upper - lower <= _NEARLY_ONE:
            return (*schedule, SignPolynomial(lower, upper, *_NEWTON_SCHULZ))
        floor = max(lower, _FLOOR * upper)
        polynomial = SignPolynomial(lower, upper, *_closest_to_one(floor, _CUSHION * upper))
        schedule.append(polynomial)
        lower, upper = polynomial(lower), 2.0 - polynomial(floor)
    return tuple(schedule)


def _closest_to_one(lower, upper):
    """Return the odd quintic that deviates by −E, +E, −E, +E at lower, q, r and upper, by Remez exchange."""
    q, r = (3 * lower + upper) / 4, (lower + 3 * upper) / 4
    for _ in range(100):
        a, b, c, _ = _solve([[x, x**3, x**5, s, 1.0] for x, s in ((lower, 1), (q, -1), (r, 1), (upper, -1))])
        # Interior extrema: roots of p'(x) = a + 3·b·x² + 5·c·x⁴.
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        new_q, new_r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
        moved = abs(new_q - q) + abs(new_r - r)
        q, r = new_q, new_r
        if moved < 1e-14:
            break
    return a, b, c


def _solve(rows):
    """Return the solution of a small augmented system, by Gaussian elimination with partial pivoting."""
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(n):
            if k != i:
                rows[k] = [x - rows[k][i] * y for x, y in zip(rows[k], rows[i], strict=True)]
    return [row[n] for row in rows]
