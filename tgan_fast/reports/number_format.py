"""Formatting of numbers for readers."""

import math

_DIGITS = 4


def format_number(value: float) -> str:
    """Return four significant digits without an exponent, and all of the integer part: 3.142, 0.01234, 22,435."""
    return f"{value:,.{_decimals(value, _DIGITS)}f}"


def format_mean(mean: float, std: float) -> str:
    """Return a mean with two digits of its standard deviation, 12.30 ± 0.25; the mean alone if the deviation is 0."""
    if std == 0:
        return format_number(mean)
    decimals = _decimals(std, 2)
    return f"{mean:,.{decimals}f} ± {std:,.{decimals}f}"


def format_seconds(seconds: float) -> str:
    """Return a time as in 42.0 s, 5.30 min or 12.7 h."""
    divisor, unit = time_unit(seconds)
    return f"{seconds / divisor:,.{_decimals(seconds / divisor, 3)}f} {unit}"


def time_unit(seconds: float) -> tuple[int, str]:
    """Return the unit that a time is shown in: its length in seconds, and its symbol."""
    return next((length, unit) for length, unit, up_to in _UNITS if seconds < up_to)


_UNITS = ((1, "s", 60), (60, "min", 3 * 3600), (3600, "h", math.inf))


def _decimals(value, digits):
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))
