"""Records, goals and numbers as text, for terminals and Markdown."""

import math
from collections.abc import Iterable, Iterator, Sequence

from benchmarks import harness
from benchmarks.result_files import NOT_MEASURED, Goal, Label

_HEADS = ("ms", "p10", "p90", "ratio", "TFLOP/s", "GB/s", "of floor", "error")
_RATES = (("flops", 1e12), ("bytes", 1e9))
MARKS = {"met": "🟢 met", "SHORT": "🔴 SHORT", NOT_MEASURED: NOT_MEASURED}


def lines_of(record: dict) -> Iterator[str]:
    """Yield a line for every timing of a case, every contender that is left out, and every flag."""
    yield record["case"]
    for label, cells in [("", _HEADS), *((str(Label.of(row)), _cells(row)) for row in record["timings"])]:
        yield f"  {label:42}{' '.join(f'{cell:>10}' for cell in cells)}".rstrip()
    for name, reason in record["left_out"].items():
        yield f"  {name:42}left out: {reason}"
    for row in record["timings"]:
        if row["method"].startswith(harness.WITHOUT_GRAPH):
            yield f"  {Label.of(row)} timed by {row['method']}"
    for flag in record["flags"]:
        yield f"  FLAG {flag}"


def goals_of(payload: dict) -> Iterator[str]:
    """Yield a section's goals."""
    for goal in payload["goals"]:
        yield str(Goal(*(goal[name] for name in Goal._fields)))


def goal_key(section: str, goal: dict) -> tuple[str, str, str]:
    """Return a goal's section, text and bound, as in a table."""
    return section, goal["text"], f"{'≤' if goal['at_most'] else '≥'} {goal['bound']:,g}"


def goal_cell(goal: dict) -> str:
    """Return a goal's measurement and verdict as a table cell."""
    return ("" if goal["measured"] is None else f"{goal['measured']:,g} ") + MARKS[goal["verdict"]]


def ceilings_text(rates: dict[str, float]) -> str:
    """Return the ceilings of a section's record as text."""
    texts = {name: f"{name} matrix product {three_digits(rate / 1e12)} TFLOP/s" for name, rate in rates.items()}
    return ", ".join((texts | {"copy": f"copy {three_digits(rates['copy'] / 1e9)} GB/s"}).values())


def error_values(row: dict) -> list[float]:
    """Return the errors of a timing: none, one, or those of several results."""
    error = row.get("error")
    values = error.values() if isinstance(error, dict) else [error]
    return [value for value in values if value is not None]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a table in Markdown, its first `left` columns aligned to the left, the others to the right."""
    align = [*["---"] * left, *["---:"] * (len(head) - left)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in (head, align, *rows))


def three_digits(value: float) -> str:
    """Return a number with three significant digits, and all of the integer part."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    value = float(f"{value:.3g}") if abs(value) < 100 else round(value)
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def seconds(*values: float) -> str:
    """Return times in the unit that fits the last one."""
    unit, size = next((each for each in (("s", 1), ("ms", 1e-3)) if abs(values[-1]) >= each[1]), ("µs", 1e-6))
    return f"{'–'.join(three_digits(value / size) for value in values)} {unit}"


def percent(share: float) -> str:
    """Return a share without decimals, unless it is small."""
    if 0 < abs(share) < 5e-4:
        return "< 0.1 %"
    return f"{100 * share:.{0 if abs(share) >= 0.0095 or share == 0 else 1}f} %"


def _cells(row):
    rates = [f"{row[key] / row['seconds'] / unit:.4g}" if row.get(key) else "" for key, unit in _RATES]
    share = percent(row["share_of_floor"]) if "share_of_floor" in row else ""
    times = [f"{1e3 * row[name]:.4f}" for name in ("seconds", "p10", "p90")]
    return [*times, f"{row['ratio']:.2f}", *rates, share, " ".join(f"{error:.0e}" for error in error_values(row))]
