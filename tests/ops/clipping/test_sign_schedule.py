"""The composed polynomials are sign(x)."""

import numpy as np
import pytest

from tgan_fast.ops.clipping.sign_schedule import sign_schedule


def composed(x, polynomials):
    for p in polynomials:
        x = x * (p.a + p.b * x**2 + p.c * x**4)
    return x


@pytest.mark.parametrize("lower", [1e-12, 1e-5, 1e-2, 0.5, 0.99, 0.999999])
def test_values_above_lower_reach_one_and_below_it_stay_between_zero_and_one(lower):
    polynomials = sign_schedule(lower)
    above = composed(np.geomspace(lower, 1, 100_001), polynomials)
    assert np.abs(above - 1).max() < 1e-14
    below = composed(np.geomspace(1e-3 * lower, lower, 10_001), polynomials)
    assert below.min() > 0
    assert below.max() < 1 + 1e-14
    x = np.linspace(0, 1, 101)
    np.testing.assert_allclose(composed(-x, polynomials), -composed(x, polynomials), rtol=1e-14)


def test_without_its_first_polynomials_it_serves_a_shorter_interval():
    """The CUDA kernels skip the polynomials that a matrix of small norm does not need."""
    polynomials = sign_schedule(1e-15, 1e-8)
    for first, p in enumerate(polynomials):
        assert np.abs(composed(np.geomspace(p.lower, p.upper, 10_001), polynomials[first:]) - 1).max() < 1.0001e-8


@pytest.mark.parametrize("deviation", [1e-3, 1e-8, 1e-14])
def test_the_last_deviation_is_what_is_asked_for_and_what_it_says(deviation):
    polynomials = sign_schedule(1e-6, deviation)
    assert polynomials[-1].deviation <= deviation
    actual = np.abs(composed(np.geomspace(1e-6, 1, 100_001), polynomials) - 1).max()
    assert actual <= 1.001 * polynomials[-1].deviation + 1e-15
    assert polynomials[:-1] == () or polynomials[-2].deviation > deviation


def test_the_number_of_polynomials_grows_with_the_logarithm_of_lower():
    """A quintic multiplies small values by at most 4.26 in the long run, so this many are needed at least."""
    for lower in (1e-3, 1e-6, 1e-12):
        assert len(sign_schedule(lower)) <= np.log(1 / lower) / np.log(4.25) + 5


def test_no_polynomial_maps_a_large_value_near_zero():
    """Rounding errors would be large beside such a value."""
    for p in sign_schedule(1e-15):
        x = np.geomspace(p.lower, p.upper, 10_001)
        assert (composed(x, [p]) >= np.minimum(x, 0.3)).all()


@pytest.mark.parametrize("lower", [0.0, 1.0, -1.0, float("nan")])
def test_lower_must_lie_between_zero_and_one(lower):
    with pytest.raises(ValueError, match="between 0 and 1"):
        sign_schedule(lower)
