"""Tables of cases: what every contender takes, and more of the package's own."""

from collections.abc import Iterator, Sequence

from benchmarks.report.markdown import number, percent, table
from benchmarks.report.measured import best_rival, parts_of
from benchmarks.table import errors_of


def tables_of(records: Sequence[dict]) -> Iterator[str]:
    """Of a section's records: cases share a table where their contenders are the same, or some of them."""
    for shared in _by_contenders(records):
        yield _table(shared)


def _by_contenders(records) -> list[list[dict]]:
    """Cases share a table if whoever takes part in one takes part in the other, too."""
    groups: list[tuple[set[str], list[dict]]] = []
    for record in records:
        names = _contenders(record)
        group = next((group for group in groups if names <= group[0] or names >= group[0]), None)
        if group is None:
            group = set(), []
            groups.append(group)
        group[0].update(names)
        group[1].append(record)
    return [shared for _, shared in groups]


def _contenders(record) -> set[str]:
    return {row["contender"] for rows in parts_of(record).values() for row in rows}


def _table(records) -> str:
    """A row for each case and part: each contender's milliseconds, more of the first one, and the best rival."""
    found = [(record, *part) for record in records for part in parts_of(record).items()]
    first, *others = dict.fromkeys(row["contender"] for _, _, rows in found for row in rows)
    rows, last = [], None
    for record, part, timings in found:
        times, own = {row["contender"]: row["seconds"] for row in timings}, timings[0]
        compared = len(times) > 1 and (record["rivals"] or "share_of_floor" in own)
        rows.append(
            {
                "case": "" if record is last else record["case"] + " †" * bool(record["flags"]),
                "part": part or "",
                first: _milliseconds(times, first, compared),
                **_of_first(own if own["contender"] == first else None),
                **{name: _milliseconds(times, name, compared) for name in others},
                "best rival / own": _against(record, timings),
            }
        )
        last = record
    head = [name for name in rows[0] if any(row[name] for row in rows)]
    return table(head, ([row[name] for name in head] for row in rows), left=1 + ("part" in head))


def _of_first(row):
    """More than its milliseconds; nothing where it takes no part."""
    if row is None:
        return {"p10–p90": "", "of floor": "", "error": ""}
    return {
        "p10–p90": f"{number(1e3 * row['p10'])}–{number(1e3 * row['p90'])}",
        "of floor": percent(row["share_of_floor"]) if "share_of_floor" in row else "",
        "error": _error(row),
    }


def _milliseconds(times, name, compared):
    """Of those that compute the same the shortest stands out."""
    if name not in times:
        return ""
    text = number(1e3 * times[name])
    return f"**{text}**" if compared and times[name] == min(times.values()) else text


def _error(row):
    errors = errors_of(row)
    return f"{max(errors):.0e}" if errors else ""


def _against(record, timings):
    rival = best_rival(record, timings)
    return "" if rival is None else f"{number(rival['seconds'] / timings[0]['seconds'])} ({rival['contender']})"
