"""Markdown: numbers, tables, and texts with figures that are filled in.

A figure stands between `<!-- figure: name -->` and `<!-- end -->`, in a line or on lines of its own.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

_MARKER = re.compile(r"<!-- (?:figure: ([a-z0-9-]+)|(end)) -->")


def number(value: float) -> str:
    """Three digits, or all in front of the point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    value = float(f"{value:.3g}") if abs(value) < 100 else round(value)
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def seconds(value: float) -> str:
    """In the unit that fits."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if abs(value) >= size:
            return f"{number(value / size)} {unit}"
    return f"{number(value / 1e-6)} µs"


def spread(low: float, high: float) -> str:
    """Of seconds, both in the unit that fits the larger."""
    value, unit = seconds(high).split()
    scale = {"s": 1, "ms": 1e3, "µs": 1e6}[unit]
    return f"{number(scale * low)}–{value} {unit}"


def percent(share: float) -> str:
    """Without decimals, unless it is small."""
    if 0 < abs(share) < 5e-4:
        return "< 0.1 %"
    return f"{100 * share:.{0 if abs(share) >= 0.0095 or share == 0 else 1}f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """So many columns left, the others right."""
    align = [*["---"] * left, *["---:"] * (len(head) - left)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in (head, align, *rows))


def filled(text: str, figures: Mapping[str, Callable[[], str]], name: str) -> str:
    """The text with all its figures made anew.

    Args:
        text: with figures, old ones or none between the markers.
        figures: by their names.
        name: of the text, for errors.

    Raises:
        SystemExit: a figure has no end, or nobody makes it.
    """
    pieces, position, begin = [], 0, None
    for marker in _MARKER.finditer(text):
        if (marker[1] is None) == (begin is None):
            raise SystemExit(f"error: {name}: {marker[0]} where the other marker is due: write one end for each figure")
        if begin is None:
            if marker[1] not in figures:
                raise SystemExit(f"error: {name}: no figure {marker[1]}: choose one of {', '.join(figures)}")
            pieces.append(text[position : marker.end()])
            begin = marker
        else:
            edge = "\n" if text[begin.end()] == "\n" else ""
            pieces += [edge, figures[begin[1]](), edge, marker[0]]
            begin = None
        position = marker.end()
    if begin is not None:
        raise SystemExit(f"error: {name}: {begin[0]} has no end: write <!-- end --> behind the figure")
    return "".join([*pieces, text[position:]])
