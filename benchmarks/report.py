"""Tables and pictures of the files of results: the figures of README.md, and benchmarks/README.md.

python -m benchmarks.report            # makes both texts and the pictures anew
python -m benchmarks.report --check    # only tells whether they are what the files of results say
python -m benchmarks.report --full     # only prints the full tables of all sections
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from benchmarks import harness, pictures, results, systems, table
from benchmarks.bench_data import STEP_SECONDS
from benchmarks.results import NOT_MEASURED, Goal, rounded
from benchmarks.sections import SECTIONS
from benchmarks.table import markdown_table, number, percent, seconds
from tgan_fast.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"cpu": "CPU", "cuda": "GPU"}
MINUTES = {"cpu": 5, "cuda": 8}  # for all sections together
# Section, how a case's name begins (the first such case counts), part, and how users write it in PyTorch.
SAMPLING = ("sampling", "", None, "notebook")
CLIPPING = ("singular_value_clip", "all five", "call", "svd")
RMSPROP, ADAM = (("optimizer", name, None, "torch for-loop") for name in ("rmsprop", "adam"))
FORWARD, BACKWARD = (("batch_norm_act", "image", part, "eager") for part in ("forward", "backward"))
HEADLINES = {
    "training iteration, clipping in every fifth": ("step", "", "with clipping", "notebook"),
    "sampling": SAMPLING,
    "singular value clipping of the discriminator": CLIPPING,
    "step of RMSprop": RMSPROP,
    "batch norm + ReLU, forward": FORWARD,
    "batch norm + ReLU, backward": BACKWARD,
}
MORE_HEADLINES = {
    "step of Adam": ADAM,
    "decoding a video to small frames": ("videos", "decoding MPEG-4", None, "PyAV, to_ndarray"),
    "Fréchet distance": ("metrics", "Fréchet distance, 400", None, "scipy.linalg.sqrtm"),
    "import": ("startup", "import", None, "torch alone"),
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


class Comparison(NamedTuple):
    """Rows of a headline's timings."""

    record: dict
    own: dict
    eager: dict | None
    rival: dict | None

    def others(self) -> list[dict]:
        """Return the rows of eager PyTorch and the fastest rival, which may be the same."""
        return list({row["contender"]: row for row in (self.eager, self.rival) if row is not None}.values())


def devices_in(folder: Path) -> list[Device]:
    """Return the devices with a file of results, and the kinds without one; CPUs first."""
    found = []
    for path in sorted(folder.glob("*.json")):
        for payload in list(results.sections_of(path).values())[:1]:
            name, threads = payload["environment"]["device"], payload["environment"]["threads"]
            kind, name = ("cuda", name) if threads is None else ("cpu", f"{name}, {threads} threads")
            found.append(Device(path.stem, kind, name, results.sections_of(path)))
    found += [Device("", kind, name, {}) for kind, name in KINDS.items() if all(kind != each.kind for each in found)]
    return sorted(found, key=lambda device: device.kind)


def parts_of(record: dict) -> dict[str | None, list[dict]]:
    """Return a case's rows by their parts, each part's own contender first, without second timings."""
    parts: dict[str | None, list[dict]] = {}
    for row in record["timings"]:
        if not row["contender"].endswith(harness.again("")):
            parts.setdefault(row["part"], []).append(row)
    return parts


def fastest_rival(record: dict, rows: Sequence[dict]) -> dict | None:
    """Return the fastest of a part's rows that is not the package's own."""
    rivals = [row for row in rows if row["contender"] in record["rivals"]]
    return min(rivals, key=lambda row: row["seconds"], default=None)


def comparison_of(headline: tuple, device: Device) -> Comparison | None:
    """Return what was measured of a headline; None if nothing was."""
    section, begin, part, eager = headline
    for record in device.cases(section):
        rows = parts_of(record).get(part)
        if record["case"].startswith(begin) and rows:
            row_of_eager = next((row for row in rows if row["contender"] == eager), None)
            return Comparison(record, rows[0], row_of_eager, fastest_rival(record, rows))
    return None


def readme_figures(devices: Sequence[Device]) -> dict[str, Callable[[], str]]:
    """Return what makes each figure of README.md, by its name."""
    cpus, gpus = ([device for device in devices if device.kind == kind] for kind in KINDS)
    return {
        "speed": lambda: _speed(devices, HEADLINES),
        "sampling": lambda: _on_each(devices, _sampling),
        "windows": lambda: _on_each(cpus, _windows),
        "convergence": lambda: _on_each(devices, _convergence),
        "clipping": lambda: _on_each(devices, _clipping),
        "systems": lambda: _systems(devices),
        "copy-batch-norm": lambda: _on_each(gpus, partial(_shares_of_floor, headlines=(FORWARD, BACKWARD))),
        "copy-optimizer": lambda: _on_each(gpus, partial(_shares_of_floor, headlines=(RMSPROP, ADAM))),
    }


def _on_each(devices, figure):
    """Return what `figure` says of each device."""
    found = {device.name if device.sections else f"a {device.name}": figure(device) for device in devices}
    if not any(found.values()):
        return NOT_MEASURED
    return "; ".join(f"{text or NOT_MEASURED} on {name}" for name, text in found.items())


def _speed(devices, headlines):
    """Return a table with a row for each headline and device."""
    rows = []
    for title, headline in headlines.items():
        for device in devices:
            comparison = comparison_of(headline, device)
            cells = ["", *[NOT_MEASURED] * 4] if comparison is None else _cells_of(*comparison)
            rows.append([title if device is devices[0] else "", device.name, *cells])
    head = ["", "device", "case", "eager PyTorch", "best rival", "tgan_fast", "times as fast"]
    return markdown_table(head, rows, left=3)


def _cells_of(record, own, eager, rival):
    named = [f"{seconds(row['seconds'])}, {row['contender']}" if row else NOT_MEASURED for row in (eager, rival)]
    if eager is rival is not None:
        named[1] = "the same"
    time = f"{seconds(own['seconds'])} ({table.spread(own['p10'], own['p90'])})"
    times = [number(row["seconds"] / own["seconds"]) for row in Comparison(record, own, eager, rival).others()]
    return [record["case"], *named, time, ", ".join(times) or NOT_MEASURED]


def _sampling(device):
    comparison = comparison_of(SAMPLING, device)
    if comparison is None:
        return None
    rates = [f"{row['contender']} {number(row['videos_per_second'])}" for row in comparison.others()]
    said = ", ".join([f"{comparison.record['batch_size']} at a time", *rates])
    return f"{number(comparison.own['videos_per_second'])} ({said})"


def _windows(device):
    rows = [row for record in device.cases("data") for row in record["timings"]]
    time = next((row["seconds"] for row in rows if row["contender"] == "windows of digits"), None)
    share = "" if time is None else f"{percent(time / STEP_SECONDS)} of a GPU's step of {1e3 * STEP_SECONDS:g} ms"
    return f"{seconds(time)}, {share}," if share else None


def _clipping(device):
    comparison = comparison_of(CLIPPING, device)
    if comparison is None or comparison.eager is None:
        return None
    return f"{seconds(comparison.own['seconds'])} instead of {seconds(comparison.eager['seconds'])}"


def _convergence(device):
    payload = device.sections.get("convergence fast-vs-reference")
    if payload is None:
        return None
    sooner = payload["sooner"]
    if sooner["seconds"] is None:
        return f"tgan_fast is after {seconds(payload['seconds'])} not yet where the reference is"
    fast, slow = seconds(sooner["seconds"]), seconds(sooner["reference_seconds"])
    return f"tgan_fast is after {fast} where the reference is after {slow}"


def _shares_of_floor(device, headlines):
    found = [comparison_of(headline, device) for headline in headlines]
    return ", ".join(percent(comparison.own["share_of_floor"]) for comparison in found if comparison is not None)


def _systems(devices):
    """Return a table with a row for each system and device: what the runs of its narrow preset came to."""
    keys, rows = ("inception_score", "frechet_distance"), []
    found = [(device, device.sections.get(systems.SECTION, {}).get("systems")) for device in devices]
    measured = [(device, runs) for device, runs in found if runs]
    for name, title in systems.SYSTEMS.items():
        for device, runs in measured:
            cells = [*[NOT_MEASURED] * 4, ""]
            if name in runs:
                run, picture = runs[name], f"benchmarks/results/{systems.picture_of(device.stem, name)}"
                scores = [f"{number(run[key]['mean'])} ± {run[key]['std']:.2g}" for key in keys]
                picture = f"![four videos, a row of frames each]({picture})"
                cells = [seconds(run["seconds"]), f"{run['iterations']:,}", *scores, picture]
            rows.append([title, f"`{name}`", device.name, *cells])
        if not measured:
            rows.append([title, f"`{name}`", *[NOT_MEASURED] * 5, ""])
    for device, runs in measured:
        real = [number(next(iter(runs.values()))[key]["real"]) for key in keys]
        rows.append(["real clips", "", device.name, "", "", *real, ""])
    head = ["system", "preset", "trained on", "for", "iterations", "inception score", "Fréchet distance", ""]
    return markdown_table(head, rows, left=3)


def _goals(devices):
    """Return a table with a row for each goal and a column for each device."""
    found: dict[tuple, dict[str, str]] = {}
    for device in devices:
        goals = []
        for section in SECTIONS:
            wanted = [goal.record() for goal in section.goals([], device.kind)]
            payload = device.sections.get(section.name, {"goals": wanted})
            goals += [(section.name, goal) for goal in payload["goals"]]
        records = [record for section in SECTIONS for record in device.cases(section.name)]
        complete = all(section.name in device.sections for section in SECTIONS)
        minutes = rounded(sum(record["wall_seconds"] for record in records) / 60) if complete else None
        goals.append(("all", Goal("minutes for all of it", minutes, MINUTES[device.kind], at_most=True).record()))
        for section, goal in goals:
            found.setdefault(table.goal_key(section, goal), {})[device.name] = table.goal_cell(goal)
    order = [*(section.name for section in SECTIONS), "all"]
    rows = [
        [f"`{section}`", text, bound, *(found[section, text, bound].get(device.name, "") for device in devices)]
        for section, text, bound in sorted(found, key=lambda key: order.index(key[0]))
    ]
    return markdown_table(["section", "goal", "bound", *(device.name for device in devices)], rows, left=2)


def _chapter(device, folder):
    """Return the environment and pictures of a device."""
    payloads = [device.sections[section.name] for section in SECTIONS if section.name in device.sections]
    records = [record for payload in payloads for record in payload["cases"]]
    environment, software = payloads[0]["environment"], ("torch", "triton", "cuda", "cudnn", "python")
    said = [f"{name} {environment[name]}" for name in software if environment[name]]
    said += [f"commit {commit[:10]}" for commit in {payload["environment"]["commit"]: None for payload in payloads}]
    said += [table.ceilings_text(payloads[0]["ceilings"])]
    said += [f"{sum(bool(record['flags']) for record in records)} of {len(records)} cases have a flag"]
    paths = [*_pictures(device, folder), *sorted(folder.glob(f"{device.stem}-convergence-*.png"))]
    shown = [f"![{path.stem.removeprefix(device.stem)[1:]}](results/{path.name})" for path in paths]
    return "\n\n".join([f"### {device.name}", ", ".join(said), "\n".join(shown)])


def _pictures(device, folder) -> dict[Path, Callable[[], bytes]]:
    """Return what draws each picture of a device for which something was measured, by its path."""
    bars, points = {}, []
    for title, headline in HEADLINES.items():
        comparison = comparison_of(headline, device)
        if comparison is not None and comparison.others():
            own = comparison.own["seconds"]
            bars[title] = [(row["contender"], row["seconds"] / own) for row in comparison.others()]
    for record in device.cases("convolutions"):
        for part, rows in parts_of(record).items():
            row = min(rows, key=lambda row: row["seconds"])
            if row.get("flops"):
                points.append((record["case"], part, row["flops"] / row["bytes"], row["flops"] / row["seconds"]))
    roofs = device.sections.get("convolutions", {}).get("ceilings")
    groups = [group for record in device.cases("breakdown")[:1] for group in record["groups"] if group["seconds"]]
    title = f"tgan_fast on {device.name}"
    draw = {
        "speedup": bars and partial(pictures.speedup, title, bars),
        "roofline": points and partial(pictures.roofline, title, points, roofs),
        "iteration": groups and partial(pictures.iteration, title, groups),
    }
    return {folder / f"{device.stem}-{name}.png": make for name, make in draw.items() if make}


def filled(text: str, figures: Mapping[str, Callable[[], str]], name: str) -> str:
    """Return a text with its figures made anew: what is between `<!-- figure: name -->` and `<!-- end -->`.

    Raises:
        SystemExit: A figure has no end, or nothing makes it.
    """

    def made(match):
        begin, figure, edge, old, end = match.groups()
        if figure not in figures or "<!-- figure" in old or not end:
            raise SystemExit(f"error: {name}: {begin} has no end, or is none of {', '.join(figures)}")
        return f"{begin}{edge}{figures[figure]()}{edge}{end}"

    return re.sub(r"(<!-- figure: (\S+) -->)(\n?)(.*?)(<!-- end -->|\Z)", made, text, flags=re.DOTALL)


def files_of(root: Path) -> dict[Path, Callable[[], bytes]]:
    """Return what makes the texts and pictures of a tree, given its files of results, by their paths."""
    folder = root / "benchmarks" / "results"
    devices = devices_in(folder)

    figures = {
        "goals": lambda: _goals(devices),
        "headlines": lambda: _speed(devices, HEADLINES | MORE_HEADLINES),
        "devices": lambda: "\n\n".join(_chapter(device, folder) for device in devices if device.sections),
    }

    def text(path, figures):
        return filled(path.read_text(), figures, str(path)).encode()

    readme, own = root / "README.md", root / "benchmarks" / "README.md"
    files = {path: draw for device in devices for path, draw in _pictures(device, folder).items()}
    return files | {readme: partial(text, readme, readme_figures(devices)), own: partial(text, own, figures)}


def write(root: Path = ROOT) -> None:
    """Make the texts and pictures anew.

    Raises:
        SystemExit: A file of results has another schema, or a text has a figure that nothing makes.
    """
    for path, make in files_of(root).items():
        write_atomically(path, make())


def refuse_stale(root: Path = ROOT) -> None:
    """Raise SystemExit if `write` would change a text or a picture is missing."""
    for path, make in files_of(root).items():
        if not path.exists() or (path.suffix == ".md" and path.read_bytes() != make()):
            raise SystemExit(f"error: {path} is older than the files of results: run python -m benchmarks.report")


def print_tables(root: Path = ROOT) -> None:
    """Print what running each section printed, of all devices."""
    for device in devices_in(root / "benchmarks" / "results"):
        for section in SECTIONS:
            if section.name in device.sections:
                payload = device.sections[section.name]
                print(f"\n=== {device.name}, {section.name}: {payload['title']}")
                for record in payload["cases"]:
                    print("", *table.lines_of(record), *section.details(record), sep="\n")
                print("", *section.conclusion(payload), *table.goals_of(payload), sep="\n")


Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def main(check: Flag = False, full: Flag = False) -> None:
    """Make README.md, benchmarks/README.md and the pictures anew from the files of results.

    Args:
        check: Only tell whether they are what the files of results say.
        full: Only print the full tables of all sections.
    """
    (print_tables if full else refuse_stale if check else write)()


if __name__ == "__main__":
    tyro.cli(main)
