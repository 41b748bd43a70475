"""The Fréchet distance against known distances, the definition by a matrix root, and torchmetrics."""

import numpy as np
import pytest
import scipy.linalg
import torch

from tgan_fast.metrics.frechet import Gaussian, Moments, frechet_distance

# More rows than columns and fewer, both sides.
SHAPES = [(400, 300, 20), (15, 300, 40), (300, 15, 40), (12, 9, 40)]


def features_of(n, d, seed):
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, d, generator=random, dtype=torch.float64)
    return mixed @ torch.randn(d, d, generator=random, dtype=torch.float64) + torch.randn(d, generator=random)


def gaussian_of(features, parts=1):
    moments = Moments()
    for part in features.tensor_split(parts):
        moments.add(part)
    return moments.gaussian()


def by_matrix_root(first, second):
    means, covariances = [x.mean(0).numpy() for x in (first, second)], [np.cov(x.numpy().T) for x in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_the_definition(n, m, d):
    first, second = features_of(n, d, 1), features_of(m, d, 2)
    got = frechet_distance(first, gaussian_of(second))
    # For covariances without full rank, a matrix root keeps half of the digits.
    assert got == pytest.approx(by_matrix_root(first, second), rel=1e-6)


def test_torchmetrics_agrees():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(torch.nn.Module):
        num_features = 20

        def forward(self, rows):
            return rows

    first, second = features_of(400, 20, 1), features_of(300, 20, 2)
    judge = FrechetInceptionDistance(feature=Features()).set_dtype(torch.float64)
    judge.update(first, real=False)
    judge.update(second, real=True)
    assert frechet_distance(first, gaussian_of(second)) == pytest.approx(judge.compute().item(), rel=1e-8)


def test_gaussians_whose_distance_is_known():
    """|μ₁ − μ₂|² + Σ (s₁ − s₂)² for independent numbers of standard deviations s."""
    n, d = 4096, 6
    standard = torch.linalg.qr(torch.randn(n, d + 1, dtype=torch.float64).index_fill(1, torch.tensor(0), 1.0)).Q[:, 1:]
    # Columns that are orthogonal to each other and to a constant: mean 0, covariance exactly 1.
    standard = standard * (n - 1) ** 0.5
    deviations, shift = torch.tensor([1.0, 2, 3, 4, 5, 0.5], dtype=torch.float64), torch.arange(6.0)
    reference = Gaussian(shift.double(), torch.eye(d, dtype=torch.float64))
    expected = (shift.square().sum() + (deviations - 1).square().sum()).item()
    assert frechet_distance(standard * deviations, reference) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "_m", "d"), SHAPES)
def test_equal_sets_have_no_distance(n, _m, d):
    features = features_of(n, d, 1)
    # Eigenvalues that are 0 up to rounding have roots as large as the root of the rounding.
    scale = features.var(0).sum().item()
    assert abs(frechet_distance(features, gaussian_of(features))) < 1e-6 * scale


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_moments_of_batches_combine_to_those_of_the_whole_also_far_from_0(parts):
    features = features_of(100, 7, 3).float() + 1000
    gaussian = gaussian_of(features, parts)
    assert gaussian.mean.dtype == gaussian.covariance.dtype == torch.float64
    torch.testing.assert_close(gaussian.mean, features.double().mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(gaussian.covariance, features.double().T.cov(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "features", [torch.rand(1, 4), torch.rand(9, 5), torch.full((9, 4), torch.nan)], ids=["one", "wide", "nan"]
)
def test_what_has_no_distance_is_refused(features):
    with pytest.raises(ValueError, match="the reference takes finite features"):
        frechet_distance(features, gaussian_of(torch.rand(9, 4)))
