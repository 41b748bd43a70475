"""The generated parts of benchmarks/README.md: goals of all devices, and a chapter for each device."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import harness, systems
from benchmarks.report import case_tables, measured, plots
from benchmarks.report.markdown import number, percent, table
from benchmarks.report.measured import Device
from benchmarks.results import NOT_MEASURED, Goal, Label, rounded
from benchmarks.sections import SECTIONS
from benchmarks.suite import Section
from benchmarks.table import without_color

MARKS = {"met": "🟢 met", "SHORT": "🔴 SHORT", NOT_MEASURED: NOT_MEASURED}
ALL, MINUTES = "all", {"cpu": 5, "cuda": 8}
_ENVIRONMENT = {
    "device": "device",
    "threads": "threads",
    "torch": "PyTorch",
    "triton": "Triton",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "python": "Python",
    "commit": "commit",
    "command": "command",
}


def goals(devices: Sequence[Device]) -> str:
    """A row for each goal, a column of what was measured for each device, and for a kind that has none of them."""
    columns = [(device.name, device.kind, device.sections) for device in devices]
    columns += [(measured.KINDS[kind], kind, {}) for kind in measured.missing_kinds(devices)]
    found = [_goals_of(kind, sections) for _, kind, sections in columns]
    rows = [
        [f"`{section}`", text, bound, *(column.get((section, text, bound), "") for column in found)]
        for section, text, bound in _in_order(found)
    ]
    return table(["section", "goal", "bound", *(name for name, _, _ in columns)], rows, left=2)


def _goals_of(kind, sections):
    """What a device's column says, by section, text and bound."""
    cells = {}
    for section in SECTIONS:
        wanted = [goal.record() for goal in section.goals([], kind)]
        for goal in sections.get(section.name, {}).get("goals", wanted):
            cells[goal_key(section.name, goal)] = goal_cell(goal)
    whole = _time_goal(kind, sections).record()
    return cells | {goal_key(ALL, whole): goal_cell(whole)}


def goal_key(section: str, goal: dict) -> tuple[str, str, str]:
    """Return a goal's section, text and bound, as in a table."""
    return section, goal["text"], f"{'≤' if goal['at_most'] else '≥'} {goal['bound']:,g}"


def goal_cell(goal: dict) -> str:
    """Return what was measured for a goal and the verdict, as in a table."""
    return ("" if goal["measured"] is None else f"{goal['measured']:,g} ") + MARKS[goal["verdict"]]


def _time_goal(kind, sections):
    """Of all sections together; what is not about one of them has no cases."""
    seconds = [record["wall_seconds"] for payload in sections.values() for record in payload.get("cases", [])]
    complete = all(section.name in sections for section in SECTIONS)
    return Goal("minutes for all of it", rounded(sum(seconds) / 60) if complete else None, MINUTES[kind], at_most=True)


def _in_order(found):
    """Keys of all columns, section by section."""
    names = [*(section.name for section in SECTIONS), ALL]
    return sorted({key: None for column in found for key in column}, key=lambda key: names.index(key[0]))


def chapters(devices: Sequence[Device], folder: Path) -> str:
    """Environment, pictures and tables of each device."""
    return "\n\n".join(_chapter(device, folder) for device in devices) or NOT_MEASURED


def _chapter(device, folder):
    lines = [f"## {device.name}", table(["", ""], _environment(device), left=2)]
    lines += [f"![{picture.text}](results/{picture.path.name})" for picture in plots.pictures_of(device, folder)]
    known = {section.name: section for section in SECTIONS}
    for name in [*known, *(name for name in device.sections if name not in known)]:
        lines.append(f"### {name}")
        lines += _section(name, known.get(name), device.sections[name]) if name in device.sections else [NOT_MEASURED]
    return "\n\n".join(lines)


def _environment(device: Device) -> Iterator[list[str]]:
    """Names and values, those that differ by section."""
    for key, name in _ENVIRONMENT.items():
        values = {section: payload["environment"][key] for section, payload in device.sections.items()}
        if any(value is not None for value in values.values()):
            yield [name, _by_section(values)]
    for name in device.ceilings:
        rates = {section: payload.get("ceilings", {}).get(name) for section, payload in device.sections.items()}
        values = {section: _rate(name, rate) for section, rate in rates.items() if rate is not None}
        yield ["copy" if name == "copy" else f"matrix product in {name}", _by_section(values)]
    yield ["state", ", ".join(_state(device)) or NOT_MEASURED]
    yield ["cases with a flag", f"{sum(bool(record['flags']) for record in device.records)} of {len(device.records)}"]
    yield ["measured in", f"{number(sum(record['wall_seconds'] for record in device.records))} s"]


def _by_section(values):
    sections: dict = {}
    for section, value in values.items():
        sections.setdefault(value, []).append(section)
    if len(sections) == 1:
        return str(*sections)
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in sections.items())


def _rate(name, rate):
    return f"{rate / 1e9:,.0f} GB/s" if name == "copy" else f"{number(rate / 1e12)} TFLOP/s"


def _state(device) -> Iterator[str]:
    """The worst of all cases."""
    states = [record["state"] for record in device.records if record["state"] is not None]
    if states and device.kind == "cuda":
        yield from _gpu_state(states)
    elif states:
        others, steal = (max(state[key] for state in states) for key in ("others", "steal"))
        yield f"other processes took up to {percent(others)} of the CPUs"
        yield f"the hypervisor up to {percent(steal)}"


def _gpu_state(states):
    ranges = ("SM clock", "sm_clock_mhz", "sm_clock_limit_mhz", "MHz"), ("power", "power_w", "power_limit_w", "W")
    for name, key, limit, unit in ranges:
        low, high = min(state[key]["min"] for state in states), max(state[key]["max"] for state in states)
        most = next((f" of {number(state[limit])}" for state in states if state[limit] is not None), "")
        yield f"{name} {number(low)}–{number(high)}{most} {unit}"
    memory = {state["memory_clock_mhz"]["median"] for state in states}
    yield f"memory clock {'–'.join(number(clock) for clock in sorted({min(memory), max(memory)}))} MHz"
    yield f"at most {max(state['highest_temperature_c'] for state in states)} °C"
    reasons = dict.fromkeys(name for state in states for name in state["throttle_reasons"])
    yield f"reasons for a lower clock: {', '.join(reasons) or 'none'}"


def _section(name: str, section: Section | None, payload: dict) -> Iterator[str]:
    """Paragraphs and tables; long runs are no section, and have curves instead of cases."""
    if name == systems.SECTION:
        yield "The table is in [README.md](../README.md#the-family)."
        return
    if "cases" not in payload:
        yield from _curves(payload)
        return
    yield payload["title"][0].upper() + payload["title"][1:] + "."
    yield from case_tables.tables_of(payload["cases"])
    if name == "breakdown":
        yield from _groups(payload["cases"])
    remarks = list(_remarks(payload["cases"]))
    if remarks:
        yield "\n".join(f"- {remark}" for remark in remarks)
    lines = list(_lines(section, payload))
    if lines:
        yield "\n".join(["<details><summary>details</summary>", "", "```text", *lines, "```", "", "</details>"])


def _lines(section, payload) -> Iterator[str]:
    """What a section says of its cases when it is run, without colours."""
    for record in payload["cases"]:
        details = [*(section.details(record) if section else ()), *_methods(record)]
        yield from [record["case"], *map(without_color, details)] if details else []
    yield from map(without_color, section.conclusion(payload) if section else ())


def _groups(records) -> Iterator[str]:
    """Where an iteration's time goes."""
    for record in records:
        total = sum(row["seconds"] for row in record["groups"])
        head = [f"{record['case']}: group", "ms", "of all", "floor, ms", "of floor"]
        yield table(head, (_group(row, total) for row in record["groups"]))


def _group(row, total):
    times, floor = row["seconds"], row["floor_seconds"]
    shares = percent(times / total), percent(floor / times) if floor and times > 0 else ""
    return [row["group"], number(1e3 * times), shares[0], number(1e3 * floor), shares[1]]


def _remarks(records) -> Iterator[str]:
    """What is wrong with timings, and who is left out of which cases, and why."""
    left_out: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record["flags"]:
            yield f"† {record['case']}: {'; '.join(record['flags'])}"
        for name, reason in record["left_out"].items():
            left_out.setdefault((name, reason), []).append(record["case"])
    for (name, reason), cases in left_out.items():
        where = "" if len(cases) == len(records) else f" ({'; '.join(cases)})"
        yield f"{name} left out: {reason}{where}"


def _methods(record) -> Iterator[str]:
    """How rows were timed that are unlike the others."""
    names: dict[str, list[str]] = {}
    for rows in measured.parts_of(record).values():
        for row in rows:
            if row["method"].startswith(harness.WITHOUT_GRAPH):
                names.setdefault(row["method"], []).append(str(Label.of(row)))
    yield from (f"  timed by {method}: {', '.join(of)}" for method, of in names.items())


def _curves(payload) -> Iterator[str]:
    """Of contenders that train for the same time: where they are at its end."""
    rows = [_end_of(record) for record in payload["contenders"]]
    yield f"Preset `{payload['preset']}`, {number(payload['seconds'])} s of training each."
    head = ["contender", "iterations", "iterations/s", "loss of the discriminator", "Fréchet distance"]
    yield table(head, [*rows, ["other real clips", "", "", "", f"{payload['floor']:.4g}"]])


def _end_of(record):
    """The first point, before all training, has neither seconds nor losses."""
    last = record["points"][-1]
    rate = number(last["iteration"] / last["seconds"]) if last["seconds"] else ""
    loss = "" if last["loss_discriminator"] is None else f"{last['loss_discriminator']:.4g}"
    return [record["contender"], f"{last['iteration']:,}", rate, loss, f"{last['metric']:.4g}"]
