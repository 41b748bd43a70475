"""Records as lines of text."""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import harness
from benchmarks.results import Goal, Label


def lines_of(record: dict) -> Iterator[str]:
    """A case: a line for every timing, who is left out and why, and what is wrong with the timings."""
    columns = [(head, width, cell) for head, width, cell in _COLUMNS if any(map(_holds(cell), record["timings"]))]
    case = record["case"]
    if len(case) > 44:  # a line of its own
        yield case
        case = ""
    yield f"{case:44}" + "".join(f"{head:>{width}}" for head, width, _ in columns)
    for row in record["timings"]:
        yield (
            f"  {str(Label.of(row))[:41]:42}"
            + "".join(f"{cell(row) or '':>{width}}" for _, width, cell in columns).rstrip()
        )
    for name, reason in record["left_out"].items():
        yield f"  {name:42}left out: {reason}"
    for row in record["timings"]:
        if row["method"].startswith(harness.WITHOUT_GRAPH):
            yield f"  {Label.of(row)} timed by {row['method']}"
    for flag in record["flags"]:
        yield f"  {red('FLAG')} {flag}"


def goals_of(payload: dict) -> Iterator[str]:
    """A section's goals."""
    for goal in payload["goals"]:
        text = str(Goal(*(goal[name] for name in Goal._fields)))
        yield red(text) if goal["verdict"] == "SHORT" else text


def errors_of(row: dict) -> list[float]:
    """Of a timing: none, one, or those of several results."""
    error = row.get("error")
    values = error.values() if isinstance(error, dict) else [error]
    return [value for value in values if value is not None]


def red(text: str) -> str:
    """On a terminal."""
    return f"\x1b[31m{text}\x1b[0m" if sys.stdout.isatty() else text


def without_color(text: str) -> str:
    """Return the text without what `red` adds on a terminal, for files."""
    return re.sub(r"\x1b\[\d+m", "", text)


def _milliseconds(key: str) -> Callable[[dict], str]:
    return lambda row: f"{1e3 * row[key]:.4f}"


def _rate(key: str, unit: float) -> Callable[[dict], str | None]:
    return lambda row: f"{row[key] / row['seconds'] / unit:.4g}" if row.get(key) else None


def _share(row):
    return f"{100 * row['share_of_floor']:.0f} %" if "share_of_floor" in row else None


def _errors(row):
    return " ".join(f"{error:.0e}" for error in errors_of(row)) or None


def _holds(cell: Callable[[dict], Any]) -> Callable[[dict], bool]:
    return lambda row: cell(row) is not None


# Head, width, and what a row has there, None for nothing; columns without anything are left out.
_COLUMNS = (
    ("ms", 12, _milliseconds("seconds")),
    ("p10", 11, _milliseconds("p10")),
    ("p90", 11, _milliseconds("p90")),
    ("ratio", 8, lambda row: f"{row['ratio']:.2f}"),
    ("TFLOP/s", 9, _rate("flops", 1e12)),
    ("GB/s", 9, _rate("bytes", 1e9)),
    ("of floor", 10, _share),
    ("error", 26, _errors),
)
