"""Formatting of numbers for readers."""

import pytest

from tgan_fast.reports.number_format import format_mean, format_number, format_seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.14159, "3.142"),
        (0.012345, "0.01235"),
        (22434.6, "22,435"),
        (0, "0"),
        (-1.5, "-1.500"),
        (1e-9, "0.000000001000"),
    ],
)
def test_four_digits_without_an_exponent(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (12.3, 0.25, "12.30 ± 0.25"),
        (11.8541, 0.0701, "11.854 ± 0.070"),
        (4321.5, 12.0, "4,322 ± 12"),
        (2.5, 0, "2.500"),
    ],
)
def test_as_many_digits_as_the_deviation_makes_sense_of(mean, std, text):
    assert format_mean(mean, std) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, "42.0 s"), (318, "5.30 min"), (3600, "60.0 min"), (45_720, "12.7 h"), (0, "0 s")]
)
def test_times_have_the_unit_that_fits(seconds, text):
    assert format_seconds(seconds) == text
