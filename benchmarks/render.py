"""Tables and pictures from the result files, for README.md, docs and benchmarks/README.md.

python -m benchmarks.render            # writes the texts and the pictures
python -m benchmarks.render --check    # only checks that the texts match the files of results
python -m benchmarks.render --full     # only prints the full tables of all sections
"""

import io
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import tyro
from matplotlib.figure import Figure

from benchmarks import formatting, harness, result_files, score_presets
from benchmarks.device_state import FIGURES
from benchmarks.formatting import markdown_table, percent, seconds, three_digits
from benchmarks.result_files import NOT_MEASURED, Goal, rounded
from benchmarks.sections import SECTIONS
from benchmarks.spectra import SPECTRA
from tgan_fast.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"cpu": "CPU", "cuda": "GPU"}
MINUTES = {"cpu": 35, "cuda": 13}  # for all sections together
# Section, how a case's name begins (the first such case counts), part, and how users write it in PyTorch.
HEADLINES = {
    "training iteration, with singular value clipping every 5th iteration": ("step", "", "with clipping", "notebook"),
    "sampling": ("sampling", "", None, "notebook"),
    "singular value clipping of the discriminator's five weights": ("singular_value_clip", "all five", "call", "svd"),
    "RMSprop step on 15.5 million weights": ("optimizer", "rmsprop", None, "torch for-loop"),
    "batch norm + ReLU, forward": ("batch_norm_act", "image", "forward", "eager"),
    "batch norm + ReLU, backward": ("batch_norm_act", "image", "backward", "eager"),
    "Adam step on 15.5 million weights": ("optimizer", "adam", None, "torch for-loop"),
    "decoding of a video to small frames": ("videos", "decoding MPEG-4", None, "PyAV, to_ndarray"),
    "Fréchet distance": ("metrics", "Fréchet distance, 400", None, "scipy.linalg.sqrtm"),
    "import": ("startup", "import", None, "torch alone"),
}
IN_README = 6  # headlines of README.md
# Operation, its equivalent in PyTorch, and where its error stands: section, how a case's name begins, part, result.
OPERATIONS = {
    "`batch_norm_act(x, w, b, mean, var, negative_slope=0.2)`, training": (
        "`F.leaky_relu(F.batch_norm(x, mean, var, w, b, True), 0.2)`",
        ("batch_norm_act", "image", "forward", "y"),
    ),
    "`singular_value_clip_(weights, 1.0)`": (
        "for each weight: `u, s, v = torch.linalg.svd(w.flatten(1), full_matrices=False)`, "
        "`w.copy_((u * s.clamp(max=1) @ v).view_as(w))`",
        ("singular_value_clip", "all five", "call", "norm"),
    ),
    "`rmsprop_(p, g, v, learning_rate=1e-3)`": (
        "`torch.optim.RMSprop`, one step on a flat tensor",
        ("optimizer", "rmsprop", None, None),
    ),
    "`adam_(p, g, m, v, step, learning_rate=1e-3)`": (
        "`torch.optim.Adam`, one step on a flat tensor; `step` is `torch.tensor(1.0)` at first",
        ("optimizer", "adam", None, None),
    ),
}


class Device(NamedTuple):
    """Device with its results, or a kind of device that nothing was measured on."""

    stem: str  # of the file of results
    kind: str  # of `KINDS`
    name: str
    sections: dict[str, dict]

    def cases(self, section: str) -> list[dict]:
        """Return a section's records; none if it was not measured, or is a long run."""
        return self.sections.get(section, {}).get("cases", [])


def devices_in(folder: Path) -> list[Device]:
    """Return the devices with a file of results, and the kinds without one; CPUs first."""
    found = []
    for path in sorted(folder.glob("*.json")):
        sections = result_files.sections_of(path)
        environment = next(iter(sections.values()))["environment"]
        name, threads = environment["device"], environment["threads"]
        kind, name = ("cuda", name) if threads is None else ("cpu", f"{name}, {threads} threads")
        found.append(Device(path.stem, kind, name, sections))
    missing = KINDS.keys() - {device.kind for device in found}
    return sorted([*found, *(Device("", kind, KINDS[kind], {}) for kind in missing)], key=lambda device: device.kind)


def parts_of(record: dict) -> dict[str | None, list[dict]]:
    """Return a case's rows by their parts, each part's own contender first, without second timings."""
    parts: dict[str | None, list[dict]] = {}
    for row in record["timings"]:
        if not row["contender"].endswith(harness.again("")):
            parts.setdefault(row["part"], []).append(row)
    return parts


def fastest_rival(record: dict, rows: list[dict]) -> dict | None:
    """Return the row of the fastest rival among the rows of a case's part; None if all are left out."""
    rivals = [row for row in rows if row["contender"] in record["rivals"]]
    return min(rivals, key=lambda row: row["seconds"], default=None)


def first_case(device: Device, section: str, begin: str, part: str | None) -> tuple[dict, list[dict]] | None:
    """Return the first record of a section whose case begins so, and the rows of its part; None if missing."""
    for record in device.cases(section):
        rows = parts_of(record).get(part)
        if rows and record["case"].startswith(begin):
            return record, rows
    return None


def rows_of(headline: str, device: Device) -> tuple | None:
    """Return the case of a headline and the rows of tgan_fast, eager PyTorch and the fastest rival; None if missing."""
    *place, eager = HEADLINES[headline]
    found = first_case(device, *place)
    if found is None:
        return None
    record, rows = found
    usual = next((row for row in rows if row["contender"] == eager), None)
    return record["case"], rows[0], usual, fastest_rival(record, rows)


def _measured(devices):
    return [device for device in devices if device.sections]


def _headlines(devices, headlines):
    """Return a table with a row for each headline and a column for each device."""
    devices = _measured(devices)
    found = {headline: [rows_of(headline, device) for device in devices] for headline in headlines}
    rows = [[headline, *(_cell(*each) if each else "" for each in cells)] for headline, cells in found.items()]
    return markdown_table(["", *(device.name for device in devices)], rows, left=1 + len(devices))


def _cell(case, own, eager, rival):
    """Return a case, its median time and spread, and its speedups over eager PyTorch and the fastest rival."""
    rivals = {row["contender"]: row["seconds"] for row in (eager, rival) if row is not None}
    ratios = [f"{three_digits(time / own['seconds'])} × {name}" for name, time in rivals.items()]
    spread = seconds(own["p10"], own["p90"])
    return f"{case}: **{seconds(own['seconds'])}** ({spread})<br>{', '.join(ratios)}".removesuffix("<br>")


def _all_batch_norms(devices):
    """Return a sentence for each device on batch norm over all shapes; the table has only the first shape."""
    sentences = []
    for device in _measured(devices):
        parts: dict[str, list[float]] = {"forward": [], "backward": []}
        for record in device.cases("batch_norm_act"):
            for part, rows in parts_of(record).items():
                rival = fastest_rival(record, rows)
                if rival is not None:
                    parts[part].append(rival["seconds"] / rows[0]["seconds"])
        if not all(parts.values()):
            continue
        ranges = [f"{three_digits(min(ratios))} to {three_digits(max(ratios))}" for ratios in parts.values()]
        count = len(parts["forward"])
        sentences.append(
            f"{device.name}: on {count} shapes, including small ones, batch norm is {ranges[0]} times as fast as the "
            f"fastest rival forward, and {ranges[1]} times backward."
        )
    return "\n".join(sentences)


def _operations(devices):
    """Return a table of operations, their equivalents in PyTorch and their errors."""
    devices = _measured(devices)
    rows = []
    for operation, (equivalent, place) in OPERATIONS.items():
        cells = (_error(device, *place) for device in devices)
        rows.append([operation, equivalent, *cells])
    head = ["operation", "equivalent in PyTorch", *(f"error against float64, {device.name}" for device in devices)]
    return markdown_table(head, rows, left=len(head))


def _error(device, section, begin, part, result):
    """Return the error of tgan_fast, and that of the fastest rival, both relative to float64."""
    found = first_case(device, section, begin, part)
    if found is None:
        return ""
    record, rows = found
    own, rival = rows[0], fastest_rival(record, rows)
    errors = [f"{row['error'][result] if result else row['error']:.1e}" for row in (own, rival) if row]
    return errors[0] if rival is None else f"{errors[0]} ({rival['contender'].split(', ')[0]}: {errors[1]})"


def _systems(devices):
    """Return a table for each device with the results of every system's narrow preset."""
    tables = []
    for device in devices:
        if score_presets.SECTION in device.sections:
            systems = device.sections[score_presets.SECTION]["systems"]
            tables.append(f"{device.name}:\n\n{_systems_of(device, systems)}")
    return "\n\n".join(tables)


def _systems_of(device, systems):
    rows = []
    for name, title in score_presets.SYSTEMS.items():
        if name in systems:
            ends = [run["curve"][-1] for run in systems[name]["runs"]]
            picture = f"../benchmarks/results/{score_presets.picture_of(device.stem, name)}"
            iterations = statistics.median_low(end["iteration"] for end in ends)
            scores = [_median_and_range([end[key] for end in ends]) for key in score_presets.SCORES]
            frames = f"![four videos, one row of frames each]({picture})"
            rows.append([title, f"`{score_presets.tiny(name)}`", f"{iterations:,}", *scores, frames])
    real = next(iter(systems.values()))["real"]
    rows.append(["real clips", "", "", *(three_digits(real[key]) for key in score_presets.SCORES), ""])
    return markdown_table(["system", "preset", "iterations", *score_presets.SCORES.values(), ""], rows, left=2)


def _median_and_range(numbers):
    return f"{three_digits(statistics.median(numbers))} ({three_digits(min(numbers))}–{three_digits(max(numbers))})"


def _clipping(devices):
    """Return a table of times and errors for each transformer's weight that was clipped."""
    tables = []
    for device in devices:
        for record in device.cases("singular_value_clip"):
            if "spectra" in record:
                environment = device.sections["singular_value_clip"]["environment"]
                caption = (
                    f"{record['case']}: {device.name}, torch {environment['torch']}, Python {environment['python']}"
                )
                if len(record["spectra"]) < len(SPECTRA):
                    caption += f"; only checked on {' and '.join(record['spectra'])}, because a call takes too long"
                left_out = [f"{name} is left out: {reason}." for name, reason in record["left_out"].items()]
                tables += [f"{caption}.", _clipping_of(record), *left_out]
    return "\n\n".join(tables) or f"The weights of transformers are {NOT_MEASURED}."


def _clipping_of(record):
    parts = parts_of(record)
    trained = {row["contender"]: seconds(row["seconds"]) for row in parts.get("training", [])}
    rows = [
        [row["contender"], seconds(row["seconds"]), three_digits(row["ratio"]), trained.get(row["contender"], "")]
        + [f"{row['errors'][spectrum]:.1e}" for spectrum in record["spectra"]]
        for row in parts["gaussian"]
    ]
    head = ["contender", "time", "× auto", "time, training", *(f"error, {spectrum}" for spectrum in record["spectra"])]
    return markdown_table(head, rows)


def _goals(devices):
    """Return a table of the goals with a column for each measured device, and one of the goals of other devices."""
    found: dict[tuple, dict[str, str]] = {}
    for device in devices:
        for section in SECTIONS:
            wanted = [goal.record() for goal in section.goals([], device.kind)]
            for goal in device.sections.get(section.name, {"goals": wanted})["goals"]:
                found.setdefault(formatting.goal_key(section.name, goal), {})[device.name] = formatting.goal_cell(goal)
        complete = all(section.name in device.sections for section in SECTIONS)
        spent = sum(record["wall_seconds"] for section in SECTIONS for record in device.cases(section.name))
        minutes = rounded(spent / 60) if complete else None
        goal = Goal("minutes for all of it", minutes, MINUTES[device.kind], at_most=True).record()
        found.setdefault(formatting.goal_key("all", goal), {})[device.name] = formatting.goal_cell(goal)
    order = [*(section.name for section in SECTIONS), "all"]
    found = dict(sorted(found.items(), key=lambda item: order.index(item[0][0])))
    names = [device.name for device in _measured(devices)]
    measured, others = [], []
    for (section, text, bound), cells in found.items():
        begin = [f"`{section}`", text, bound]
        if cells.keys() & set(names):
            measured.append([*begin, *(cells.get(name, "") for name in names)])
        else:
            others.append(begin)
    table = markdown_table(["section", "goal", "bound", *names], measured, left=2)
    if others:
        kinds = " and a ".join(device.name for device in devices if not device.sections)
        table += f"\n\nGoals for a {kinds}, {NOT_MEASURED}:\n\n"
        table += markdown_table(["section", "goal", "bound"], others, left=2)
    return table


def _state(states):
    """Yield the worst state of a device while its cases were timed."""
    if states and "others" in states[0]:
        others, steal = (percent(max(state[key] for state in states)) for key in ("others", "steal"))
        yield f"other processes took up to {others} of the CPUs, the hypervisor up to {steal}"
    elif states:
        columns = [[state[name] for state in states] for name in FIGURES]
        clock, power, temperature = ((min(c[0] for c in column), max(c[-1] for c in column)) for column in columns)
        yield "SM clock {:,}–{:,} MHz".format(*clock)
        yield f"power up to {power[1]:.0f} W, temperature up to {temperature[1]} °C"


def _chapter(device, folder):
    payloads = [device.sections[section.name] for section in SECTIONS if section.name in device.sections]
    records = [record for payload in payloads for record in payload["cases"]]
    environments = [payload["environment"] for payload in payloads]
    said = []
    for name in ("torch", "triton", "cuda", "cudnn", "python"):
        versions = dict.fromkeys(str(environment[name]) for environment in environments if environment[name])
        said += [f"{name} {' and '.join(versions)}"] if versions else []
    commits = [environment["commit"] for environment in environments]
    said += [f"commit {commit[:10]}{commit[40:]}" for commit in dict.fromkeys(commits)]  # perhaps with "-dirty"
    said += [formatting.ceilings_text(payloads[0]["ceilings"])]
    said += [f"{sum(bool(record['flags']) for record in records)} of {len(records)} cases have a flag"]
    said += _state([record["state"] for record in records if record.get("state")])
    paths = [
        path
        for kind in ("iteration", "convergence", "constraints")
        for path in sorted(folder.glob(f"{device.stem}-{kind}*.png"))
    ]
    shown = [f"![{path.stem.removeprefix(device.stem)[1:]}](results/{path.name})" for path in paths]
    return "\n\n".join([f"### {device.name}", ", ".join(said), "\n".join(shown)])


def iteration_picture(name: str, groups: list[dict]) -> bytes:
    """Draw a bar for each group of a device's iteration, the longest at the top, its floor within it."""
    total = sum(group["seconds"] for group in groups)
    # If the profiler slows operations down, the remainder for gaps is negative.
    groups = sorted((group for group in groups if group["seconds"] > 0), key=lambda group: group["seconds"])
    # So wide that text is about as large as around it in README.md.
    figure = Figure(figsize=(9, 0.34 * len(groups) + 1.2), dpi=150, layout="constrained")
    title = f"tgan_fast on {name}: {seconds(total)} an iteration"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("ms (light) and what the ceilings allow at best (strong)")
    names = [group["group"] for group in groups]
    axes.barh(names, [1e3 * group["seconds"] for group in groups], color="#9ecae1")
    axes.barh(names, [1e3 * group["floor_seconds"] for group in groups], height=0.4, color="#0072b2")
    for place, group in enumerate(groups):
        text = f"  {percent(group['seconds'] / total)}, {seconds(group['seconds'])}"
        axes.text(max(0, 1e3 * group["seconds"]), place, text, va="center")
    axes.margins(x=0.2)
    content = io.BytesIO()
    # Without the version of matplotlib the same data give the same file.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def filled(text: str, figures: dict[str, Callable[[], str]], name: str) -> str:
    """Return a text with its figures replaced, each from `<!-- figure: … -->` to `<!-- end -->`."""
    for figure, make in figures.items():
        before, begin, rest = text.partition(f"<!-- figure: {figure} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise SystemExit(f"error: {name} has no figure {figure} with an end")
        text = f"{before}{begin}{make()}\n{end}{after}"
    return text


def figures_of(folder: Path) -> dict[str, dict[str, Callable[[], str]]]:
    """Return, for each text, functions that make its figures from a folder's files of results."""
    devices = devices_in(folder)
    return {
        "README.md": {
            "speed": lambda: f"{_headlines(devices, list(HEADLINES)[:IN_README])}\n\n{_all_batch_norms(devices)}",
            "operations": lambda: _operations(devices),
        },
        "docs/variants.md": {"systems": lambda: _systems(devices)},
        "benchmarks/README.md": {
            "goals": lambda: _goals(devices),
            "headlines": lambda: _headlines(devices, HEADLINES),
            "clipping": lambda: _clipping(devices),
            "devices": lambda: "\n\n".join(_chapter(device, folder) for device in _measured(devices)),
        },
    }


def texts_of(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the paths of a tree's texts, and the texts with figures from its files of results."""
    for name, makers in figures_of(root / "benchmarks" / "results").items():
        yield root / name, filled((root / name).read_text(), makers, name)


def write_texts(root: Path = ROOT) -> None:
    """Write the texts and pictures."""
    folder = root / "benchmarks" / "results"
    for device in devices_in(folder):
        for record in device.cases("breakdown")[:1]:
            picture = iteration_picture(device.name, record["groups"])
            write_atomically(folder / f"{device.stem}-iteration.png", picture)
    for path, text in texts_of(root):
        write_atomically(path, text.encode())


def refuse_stale(root: Path = ROOT) -> None:
    """Raise SystemExit if `write_texts` would change a text."""
    for path, text in texts_of(root):
        if path.read_text() != text:
            raise SystemExit(f"error: {path} is older than the files of results: run python -m benchmarks.render")


def print_tables(root: Path = ROOT) -> None:
    """Print the full tables of all sections of all devices."""
    for device in devices_in(root / "benchmarks" / "results"):
        for section in SECTIONS:
            if section.name in device.sections:
                payload = device.sections[section.name]
                print(f"\n=== {device.name}, {section.name}: {payload['title']}")
                for record in payload["cases"]:
                    print("", *formatting.lines_of(record), *section.details(record), sep="\n")
                print("", *section.conclusion(payload), *formatting.goals_of(payload), sep="\n")


def main(check: bool = False, full: bool = False) -> None:
    """Write the tables of README.md, docs and benchmarks/README.md, and the pictures, from the files of results.

    Args:
        check: Only check that the texts match the files of results.
        full: Only print the full tables of all sections.
    """
    (print_tables if full else refuse_stale if check else write_texts)()


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,))
