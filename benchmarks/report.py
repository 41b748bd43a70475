"""Tables and pictures of the files of results: the figures of README.md, and benchmarks/README.md.

python -m benchmarks.report            # makes both texts and the pictures anew
python -m benchmarks.report --check    # only tells whether they are what the files of results say
python -m benchmarks.report --full     # only prints the full tables of all sections
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from benchmarks import bench_data, bench_singular_value_clip, bench_step, harness, pictures, results, systems, table
from benchmarks.contenders import NOTEBOOK
from benchmarks.results import NOT_MEASURED, Goal, rounded
from benchmarks.sections import SECTIONS
from benchmarks.table import markdown_table, number, percent, seconds
from tgan_fast.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"cpu": "CPU", "cuda": "GPU"}
MINUTES = {"cpu": 5, "cuda": 8}  # for all sections together


class Device(NamedTuple):
    """Device with its results, or a kind of device that nothing was measured on."""

    stem: str  # of the file of results
    kind: str  # of `KINDS`
    name: str
    sections: dict[str, dict]

    def cases(self, section: str) -> list[dict]:
        """Return a section's records; none if it was not measured, or is a long run."""
        return self.sections.get(section, {}).get("cases", [])


class Headline(NamedTuple):
    """Case and part that README.md and a picture show."""

    title: str
    section: str
    case: str  # how its name begins; the first one counts
    part: str | None
    eager: str  # how users write it in PyTorch


class Comparison(NamedTuple):
    """Rows of timings of a headline."""

    record: dict
    own: dict
    eager: dict | None
    rival: dict | None  # the fastest

    def others(self) -> dict[str, tuple[dict, float]]:
        """Return by their names rows of eager PyTorch and the best rival, and how many times as fast we are."""
        rows = [row for row in (self.eager, self.rival) if row is not None]
        return {row["contender"]: (row, row["seconds"] / self.own["seconds"]) for row in rows}


STEP = Headline("training iteration, clipping in every fifth", "step", "", bench_step.WITH_CLIPPING, NOTEBOOK)
SAMPLING = Headline("sampling", "sampling", "", None, NOTEBOOK)
CLIPPING = Headline(
    "singular value clipping of the discriminator",
    "singular_value_clip",
    bench_singular_value_clip.FIVE,
    bench_singular_value_clip.CALL,
    "svd",
)
RMSPROP, ADAM = (
    Headline(f"step of {name}", "optimizer", name.lower(), None, "torch for-loop") for name in ("RMSprop", "Adam")
)
NORM_FORWARD, NORM_BACKWARD = (
    Headline(f"batch norm + ReLU, {part}", "batch_norm_act", "image", part, "eager") for part in ("forward", "backward")
)
HEADLINES = STEP, SAMPLING, CLIPPING, RMSPROP, NORM_FORWARD, NORM_BACKWARD


def devices_in(folder: Path) -> list[Device]:
    """Return the devices with a file of results, and the kinds without one; CPUs first."""
    found = []
    for path in sorted(folder.glob("*.json")):
        sections = results.sections_of(path)
        if sections:
            environment = next(iter(sections.values()))["environment"]
            name, threads = environment["device"], environment["threads"]
            cpu = threads is not None
            found.append(Device(path.stem, "cpu" if cpu else "cuda", name + f", {threads} threads" * cpu, sections))
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


def comparison_of(headline: Headline, device: Device) -> Comparison | None:
    """Return what was measured of a headline; None if nothing was."""
    for record in device.cases(headline.section):
        rows = parts_of(record).get(headline.part)
        if record["case"].startswith(headline.case) and rows:
            eager = next((row for row in rows if row["contender"] == headline.eager), None)
            return Comparison(record, rows[0], eager, fastest_rival(record, rows))
    return None


def readme_figures(devices: Sequence[Device]) -> dict[str, Callable[[], str]]:
    """Return what makes each figure of README.md, by its name."""
    gpus = [device for device in devices if device.kind == "cuda"]
    cpus = [device for device in devices if device.kind == "cpu"]
    return {
        "speed": partial(_speed, devices),
        "sampling": partial(_on_each, devices, _sampling),
        "windows": partial(_on_each, cpus, _windows),
        "convergence": partial(_on_each, devices, _convergence),
        "clipping": partial(_on_each, devices, _clipping),
        "systems": partial(_systems, devices),
        "copy-batch-norm": partial(_on_each, gpus, partial(_shares_of_floor, NORM_FORWARD, NORM_BACKWARD)),
        "copy-optimizer": partial(_on_each, gpus, partial(_shares_of_floor, RMSPROP, ADAM)),
    }


def _on_each(devices, figure):
    """Return what `figure` says of each device."""
    found = {device.name if device.sections else f"a {device.name}": figure(device) for device in devices}
    if not any(found.values()):
        return NOT_MEASURED
    return "; ".join(f"{text or NOT_MEASURED} on {name}" for name, text in found.items())


def _speed(devices):
    """Return a table with a row for each headline and device."""
    head, rows = ["", "device", "case", "eager PyTorch", "best rival", "tgan_fast", "times as fast"], []
    for headline in HEADLINES:
        for device in devices:
            comparison = comparison_of(headline, device)
            cells = ["", *[NOT_MEASURED] * 4] if comparison is None else _cells_of(comparison)
            rows.append([headline.title if device is devices[0] else "", device.name, *cells])
    return markdown_table(head, rows, left=3)


def _cells_of(comparison):
    own, eager, rival = comparison.own, comparison.eager, comparison.rival
    named = [
        NOT_MEASURED if row is None else f"{seconds(row['seconds'])}, {row['contender']}" for row in (eager, rival)
    ]
    if rival is not None and rival is eager:
        named[1] = "the same"
    time = f"{seconds(own['seconds'])} ({table.spread(own['p10'], own['p90'])})"
    times = ", ".join(number(times) for _, times in comparison.others().values())
    return [comparison.record["case"], *named, time, times or NOT_MEASURED]


def _sampling(device):
    comparison = comparison_of(SAMPLING, device)
    if comparison is None:
        return None
    others = comparison.others().items()
    rates = ", ".join(f"{name} {number(row['videos_per_second'])}" for name, (row, _) in others)
    return f"{number(comparison.own['videos_per_second'])} ({comparison.record['batch_size']} at a time, {rates})"


def _windows(device):
    for row in (row for record in device.cases("data") for row in record["timings"]):
        if row["contender"] == "windows of digits":
            share = percent(row["seconds"] / bench_data.STEP_SECONDS)
            return f"{seconds(row['seconds'])}, {share} of a GPU's step of {1e3 * bench_data.STEP_SECONDS:g} ms,"
    return None


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


def _shares_of_floor(*arguments):
    """Return the shares of what the ceilings allow; arguments are headlines and, last, the device."""
    *headlines, device = arguments
    found = [comparison_of(headline, device) for headline in headlines]
    return ", ".join(percent(each.own["share_of_floor"]) for each in found if each is not None)


def _systems(devices):
    """Return a table with a row for each system and device: what the runs of its narrow preset came to."""
    head = ["system", "preset", "trained on", "for", "iterations", "inception score", "Fréchet distance", ""]
    keys, rows = ("inception_score", "frechet_distance"), []
    measured = [
        (each, each.sections[systems.SECTION]["systems"]) for each in devices if systems.SECTION in each.sections
    ]
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
        run = next(iter(runs.values()))
        rows.append(["real clips", "", device.name, "", "", *(number(run[key]["real"]) for key in keys), ""])
    return markdown_table(head, rows, left=3)


def goals_table(devices: Sequence[Device]) -> str:
    """Return a table with a row for each goal and a column for each device."""
    found: dict[tuple, dict[str, str]] = {}
    for device in devices:
        for section in SECTIONS:
            wanted = [goal.record() for goal in section.goals([], device.kind)]
            for goal in device.sections.get(section.name, {}).get("goals", wanted):
                found.setdefault(table.goal_key(section.name, goal), {})[device.name] = table.goal_cell(goal)
        records = [record for section in SECTIONS for record in device.cases(section.name)]
        complete = all(section.name in device.sections for section in SECTIONS)
        minutes = rounded(sum(record["wall_seconds"] for record in records) / 60) if complete else None
        whole = Goal("minutes for all of it", minutes, MINUTES[device.kind], at_most=True).record()
        found.setdefault(table.goal_key("all", whole), {})[device.name] = table.goal_cell(whole)
    order = [*(section.name for section in SECTIONS), "all"]
    rows = [
        [f"`{section}`", text, bound, *(found[section, text, bound].get(device.name, "") for device in devices)]
        for section, text, bound in sorted(found, key=lambda key: order.index(key[0]))
    ]
    return markdown_table(["section", "goal", "bound", *(device.name for device in devices)], rows, left=2)


def _chapter(device, folder) -> Iterator[str]:
    """Yield paragraphs: the environment, pictures, and a table with a row for each part of a section."""
    yield f"### {device.name}"
    yield _environment(device)
    paths = [*_pictures(device, folder), *sorted(folder.glob(f"{device.stem}-convergence-*.png"))]
    yield "\n".join(f"![{path.stem.removeprefix(device.stem)[1:]}](results/{path.name})" for path in paths)
    head = ["section", "first case", "ms", "p10–p90", "of floor", "error", "best rival", "times as fast", "all cases"]
    rows = [row for section in SECTIONS for row in _rows_of(section.name, device.cases(section.name))]
    yield markdown_table(head, rows, left=2)


def _environment(device):
    payloads = [device.sections[section.name] for section in SECTIONS if section.name in device.sections]
    environment, records = payloads[0]["environment"], [record for payload in payloads for record in payload["cases"]]
    commits = dict.fromkeys(payload["environment"]["commit"][:10] for payload in payloads)
    versions = [
        f"{name} {environment[name]}" for name in ("torch", "triton", "cuda", "cudnn", "python") if environment[name]
    ]
    flagged = sum(bool(record["flags"]) for record in records)
    return (
        f"{', '.join(versions)}; commits {', '.join(commits)}; {table.ceilings_text(payloads[0]['ceilings'])}; "
        f"{flagged} of {len(records)} cases have a flag (†)."
    )


def _rows_of(section, records) -> Iterator[list[str]]:
    """Yield a row for each part with a rival or a floor: its first case, if possible with rivals."""
    parts: dict[str | None, list[tuple[dict, dict, dict | None]]] = {}
    for record in records:
        for part, rows in parts_of(record).items():
            parts.setdefault(part, []).append((record, rows[0], fastest_rival(record, rows)))
    for part, cases in parts.items():
        record, own, rival = next((case for case in cases if case[2]), cases[0])
        times = [rival["seconds"] / own["seconds"] for _, own, rival in cases if rival]
        if not times and "share_of_floor" not in own:
            continue
        yield [
            f"`{section}`" if part is None else f"`{section}`, {part.replace('_', ' ')}",
            record["case"] + " †" * bool(record["flags"]),
            number(1e3 * own["seconds"]),
            f"{number(1e3 * own['p10'])}–{number(1e3 * own['p90'])}",
            percent(own["share_of_floor"]) if "share_of_floor" in own else "",
            f"{max(table.errors_of(own)):.0e}" if table.errors_of(own) else "",
            f"{rival['contender']}" if rival else "",
            f"{number(rival['seconds'] / own['seconds'])}" if rival else "",
            f"{number(min(times))}–{number(max(times))}" if len(times) > 1 else "",
        ]


def _pictures(device, folder) -> dict[Path, Callable[[], bytes]]:
    """Return what draws each picture of a device for which something was measured, by its path."""
    title, found = f"tgan_fast on {device.name}", {}
    comparisons = {each.title: comparison_of(each, device) for each in HEADLINES}
    bars = {
        name: [(other, times) for other, (_, times) in each.others().items()]
        for name, each in comparisons.items()
        if each is not None and each.others()
    }
    if bars:
        found["speedup"] = partial(pictures.speedup, title, bars)
    points = []
    for record in device.cases("convolutions"):
        for part, rows in parts_of(record).items():
            row = min(rows, key=lambda row: row["seconds"])
            if row.get("flops"):
                points.append((record["case"], part, row["flops"] / row["bytes"], row["flops"] / row["seconds"]))
    if points:
        roofs = device.sections["convolutions"]["ceilings"]
        found["roofline"] = partial(pictures.roofline, title, points, roofs)
    groups = [group for record in device.cases("breakdown")[:1] for group in record["groups"] if group["seconds"]]
    if groups:
        found["iteration"] = partial(pictures.iteration, title, groups)
    return {folder / f"{device.stem}-{name}.png": draw for name, draw in found.items()}


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
    chapters = ["\n\n".join(_chapter(device, folder)) for device in devices if device.sections]
    own = {"goals": partial(goals_table, devices), "devices": lambda: "\n\n".join(chapters) or NOT_MEASURED}
    figures = {root / "README.md": readme_figures(devices), root / "benchmarks" / "README.md": own}
    return {
        path: lambda path=path, made=made: filled(path.read_text(), made, str(path)).encode()
        for path, made in figures.items()
    } | {path: draw for device in devices for path, draw in _pictures(device, folder).items()}


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
            raise SystemExit(
                f"error: {path} does not say what the files of results say: run python -m benchmarks.report"
            )


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


def main(
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    full: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Make README.md, benchmarks/README.md and the pictures anew from the files of results.

    Args:
        check: Only tell whether they are what the files of results say.
        full: Only print the full tables of all sections.
    """
    (print_tables if full else refuse_stale if check else write)()


if __name__ == "__main__":
    tyro.cli(main)
