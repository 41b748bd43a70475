"""Weights by the singular values that they are clipped for, at the threshold 1."""

import math
from collections.abc import Callable, Sequence

import torch

from benchmarks.contenders import CLIP_INTERVAL, LEARNING_RATE


def with_spectrum(s: torch.Tensor, columns: int) -> torch.Tensor:
    """Return a float64 matrix with singular values s and random singular vectors."""
    rows = len(s)
    u = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64)).Q
    return (u * s.double()) @ v.mT


def gaussian(rows: int, columns: int, top: float = 1.4) -> torch.Tensor:
    """Return a Gaussian matrix with singular values up to about `top`, down to 0 if it is square."""
    return torch.randn(rows, columns) * top / (rows**0.5 + columns**0.5)


def trained(rows: int, columns: int) -> torch.Tensor:
    """Return a clipped matrix, half of its singular values at 1, moved by the RMSprop steps up to the next clipping."""
    clipped = with_spectrum((2 * torch.rand(rows)).clamp(max=1), columns)
    return clipped + CLIP_INTERVAL * LEARNING_RATE * torch.randn_like(clipped).sign()


def _with(singular_values: Callable[[int], torch.Tensor]) -> Callable[[int, int], torch.Tensor]:
    return lambda rows, columns: with_spectrum(singular_values(rows), columns)


# Matrices [rows, columns], rows ≤ columns.
SPECTRA = {
    "gaussian": gaussian,
    "cluster": _with(lambda n: 1 + 1e-5 * (2 * torch.rand(n, dtype=torch.float64) - 1)),
    "all equal": _with(lambda n: torch.full((n,), 1.5)),
    "rank-deficient": _with(lambda n: torch.cat([torch.linspace(0.1, 2, n // 2), torch.zeros(n - n // 2)])),
    "rank one": _with(lambda n: torch.cat([torch.full((1,), 2.0), torch.zeros(n - 1)])),
    "training": trained,
    "top 30": _with(lambda n: torch.cat([torch.full((1,), 30.0), 1.2 * torch.rand(n - 1)])),
    "log-spaced": _with(lambda n: torch.logspace(-3, 1, n)),
}


def weight_of(spectrum: str, shape: Sequence[int]) -> torch.Tensor:
    """Return a float32 weight [*batch, rows, columns] of matrices of `SPECTRA`."""
    *batch, rows, columns = shape
    matrices = [SPECTRA[spectrum](rows, columns).float() for _ in range(math.prod(batch))]
    return torch.stack(matrices).view(*shape)
