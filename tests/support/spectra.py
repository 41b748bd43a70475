"""Matrices whose singular values break shortcuts of clipping, and their clipping by a float64 SVD."""

import torch

from benchmarks import spectra
from benchmarks.spectra import gaussian as gaussian

ROWS, COLUMNS = 70, 160
TGAN = [(64, 192), (128, 4096), (256, 8192), (512, 16384), (1, 8192)]  # its discriminator's weights


def with_spectrum(s, columns=COLUMNS):
    return spectra.with_spectrum(s, columns)


def cluster(width):
    return 1 + width * torch.randn(ROWS, dtype=torch.float64)


def topped(top, rows=ROWS):
    s = 1.2 * torch.rand(rows, dtype=torch.float64)
    s[0] = top
    return s


def trained():
    """Return a clipped matrix moved by five RMSprop steps of the usual learning rate."""
    weight = clipped_by_svd(with_spectrum(2 * torch.rand(ROWS)), 1.0)
    for _ in range(5):
        weight += 5e-5 * torch.randn_like(weight).sign()
    return torch.linalg.svdvals(weight)


SPECTRA = {
    "gaussian": lambda: torch.linalg.svdvals(0.1 * torch.randn(ROWS, COLUMNS, dtype=torch.float64)),
    "cluster-1e-3": lambda: cluster(1e-3),
    "cluster-1e-5": lambda: cluster(1e-5),
    "cluster-1e-6": lambda: cluster(1e-6),
    "cluster-1e-7": lambda: cluster(1e-7),
    "all-1.5e-6-above": lambda: torch.full((ROWS,), 1 + 1.5e-6, dtype=torch.float64),
    "all-one": lambda: torch.ones(ROWS),
    "all-equal": lambda: torch.full((ROWS,), 1.5),
    "rank-deficient": lambda: torch.cat([torch.linspace(0.1, 2, ROWS // 2), torch.zeros(ROWS - ROWS // 2)]),
    "rank-one": lambda: torch.cat([torch.full((1,), 2.0), torch.zeros(ROWS - 1)]),
    "trained": trained,
    "top-30": lambda: topped(30),
    "top-100": lambda: topped(100),
    "top-1000": lambda: topped(1000),
    "ten-up-to-1600": lambda: torch.cat([torch.logspace(2, 3.2, 10), 1.2 * torch.rand(ROWS - 10)]),
    "geometric-1000": lambda: torch.logspace(-3, 3, ROWS),
}


def clipped_by_svd(weight, threshold):
    matrix = weight.double().cpu().reshape(weight.shape[0], -1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return ((u * s.clamp(max=threshold)) @ vh).reshape(weight.shape)


def exactly_clipped(weight, threshold):
    """Return what `clipped_by_svd` does, computed with 80 digits: for small matrices."""
    import mpmath

    with mpmath.workdps(80):
        u, s, vh = mpmath.svd_r(mpmath.matrix(weight.double().tolist()))
        clipped = u * mpmath.diag([min(value, threshold) for value in s]) * vh
        return torch.tensor(clipped.tolist(), dtype=torch.float64)


def relative_error(got, expected):
    return ((got.double().cpu() - expected).norm() / expected.norm()).item()
