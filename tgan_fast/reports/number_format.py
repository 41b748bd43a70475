"""Numbers as people read them."""

import math

_DIGITS = 4


def plain(value: float) -> str:
    """Four significant digits without an exponent, the integer part whole: 3.142, 0.01234, 22,435."""
    return f"{value:,.{_decimals(value, _DIGITS)}f}"


def with_deviation(mean: float, std: float) -> str:
    """As many digits as the standard deviation makes sense of: 12.30 ± 0.25; the mean alone where it is 0."""
    if std == 0:
        return plain(mean)
    decimals = _decimals(std, 2)
    return f"{mean:,.{decimals}f} ± {std:,.{decimals}f}"


def duration(seconds: float) -> str:
    """42 s, 5.3 min or 12.7 h."""
    divisor, unit = time_unit(seconds)
    return f"{seconds / divisor:,.{_decimals(seconds / divisor, 3)}f} {unit}"


def time_unit(seconds: float) -> tuple[int, str]:
    """The unit in which a time is shown: its length in seconds, and its sign."""
    return next((length, unit) for length, unit, up_to in _UNITS if seconds < up_to)


_UNITS = ((1, "s", 60), (60, "min", 3 * 3600), (3600, "h", math.inf))


def _decimals(value, digits):
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))
