"""The figures of README.md: each is made of the results of all devices."""

from collections.abc import Callable, Sequence

from benchmarks import bench_data, systems
from benchmarks.report.headlines import (
    ADAM,
    CLIPPING,
    HEADLINES,
    NORM_BACKWARD,
    NORM_FORWARD,
    RMSPROP,
    SAMPLING,
    Comparison,
    Headline,
    comparison_of,
)
from benchmarks.report.markdown import number, percent, seconds, spread, table
from benchmarks.report.measured import KINDS, Device, missing_kinds
from benchmarks.results import NOT_MEASURED


def readme_figures(devices: Sequence[Device]) -> dict[str, Callable[[], str]]:
    """What makes each, by its name."""
    return {
        "speed": lambda: _speed(devices),
        "sampling": lambda: _on_each(devices, _sampling),
        "windows": lambda: _on_each(devices, _windows, kinds=("cpu",)),
        "convergence": lambda: _on_each(devices, _convergence),
        "clipping": lambda: _on_each(devices, _clipping),
        "systems": lambda: _systems(devices),
        "copy-batch-norm": lambda: _shares_of_copy(devices, NORM_FORWARD, NORM_BACKWARD),
        "copy-optimizer": lambda: _shares_of_copy(devices, RMSPROP, ADAM),
    }


def _on_each(devices, figure, kinds=tuple(KINDS)) -> str:
    """What `figure` says of each device, and that it says nothing of the others."""
    found = [(device.name, figure(device)) for device in devices if device.kind in kinds]
    found += [(f"a {KINDS[kind]}", None) for kind in missing_kinds(devices) if kind in kinds]
    if all(text is None for _, text in found):
        return NOT_MEASURED
    return "; ".join(f"{NOT_MEASURED if text is None else text} on {name}" for name, text in found)


def _speed(devices):
    """A row for each headline and device."""
    rows = []
    for headline in HEADLINES:
        found = [(device.name, comparison_of(headline, device)) for device in devices]
        found += [(KINDS[kind], None) for kind in missing_kinds(devices)]
        for name, comparison in found:
            cells = ["", *[NOT_MEASURED] * 4] if comparison is None else _cells_of(comparison)
            rows.append([headline.title if name == found[0][0] else "", name, *cells])
    return table(["", "device", "case", "eager PyTorch", "best rival", "tgan_fast", "times as fast"], rows, left=3)


def _cells_of(comparison: Comparison) -> list[str]:
    own, eager, rival = comparison.own, comparison.eager, comparison.rival
    others = {row["contender"]: row for row in (eager, rival) if row is not None}
    return [
        comparison.record["case"],
        _cell(eager),
        "the same" if rival is not None and rival is eager else _cell(rival),
        f"{seconds(own['seconds'])} ({spread(own['p10'], own['p90'])})",
        ", ".join(number(comparison.times(row)) for row in others.values()) or NOT_MEASURED,
    ]


def _cell(row):
    return NOT_MEASURED if row is None else f"{seconds(row['seconds'])}, {row['contender']}"


def _sampling(device: Device) -> str | None:
    comparison = comparison_of(SAMPLING, device)
    if comparison is None:
        return None
    rows = comparison.own, comparison.eager, comparison.rival
    own, *others = {row["contender"]: row["videos_per_second"] for row in rows if row is not None}.items()
    said = [f"{comparison.record['batch_size']} at a time", *(f"{name} {number(rate)}" for name, rate in others)]
    return f"{number(own[1])} ({', '.join(said)})"


def _windows(device: Device) -> str | None:
    step = bench_data.STEP_SECONDS
    for record in device.cases("data"):
        for row in record["timings"]:
            if row["contender"] == "windows of digits":
                share = percent(row["seconds"] / step)
                return f"{seconds(row['seconds'])}, {share} of a GPU's step of {1e3 * step:g} ms,"
    return None


def _clipping(device: Device) -> str | None:
    comparison = comparison_of(CLIPPING, device)
    if comparison is None or comparison.eager is None:
        return None
    return f"{seconds(comparison.own['seconds'])} instead of {seconds(comparison.eager['seconds'])}"


def _convergence(device: Device) -> str | None:
    payload = device.sections.get("convergence fast-vs-reference")
    if payload is None:
        return None
    sooner = payload["sooner"]
    if sooner["seconds"] is None:
        return f"tgan_fast is after {seconds(payload['seconds'])} not yet where the reference is"
    fast, slow = seconds(sooner["seconds"]), seconds(sooner["reference_seconds"])
    return f"tgan_fast is after {fast} where the reference is after {slow}"


def _systems(devices: Sequence[Device]) -> str:
    """A row for each system: its preset, and what every device's runs of its narrow one came to."""
    head = ["system", "preset", "trained on", "for", "iterations", "inception score", "Fréchet distance", ""]
    measured = [device for device in devices if systems.SECTION in device.sections]
    rows = []
    for name, title in systems.SYSTEMS.items():
        for device in measured:
            run = device.sections[systems.SECTION]["systems"].get(name)
            rows.append([title, f"`{name}`", device.name, *_cells_of_run(run, name, device)])
        if not measured:
            rows.append([title, f"`{name}`", *[NOT_MEASURED] * 5, ""])
    rows += [["real clips", "", device.name, "", "", *_scores_of_real_clips(device), ""] for device in measured]
    return table(head, rows, left=3)


def _scores_of_real_clips(device):
    run = next(iter(device.sections[systems.SECTION]["systems"].values()))
    return [number(run[key]["real"]) for key in ("inception_score", "frechet_distance")]


def _cells_of_run(run, name, device):
    if run is None:
        return [*[NOT_MEASURED] * 4, ""]
    scores = (run[key] for key in ("inception_score", "frechet_distance"))
    picture = f"benchmarks/results/{systems.picture_of(device.stem, name)}"
    return [
        seconds(run["seconds"]),
        f"{run['iterations']:,}",
        *(f"{number(score['mean'])} ± {score['std']:.2g}" for score in scores),
        f"![four videos, a row of frames each]({picture})",
    ]


def _shares_of_copy(devices: Sequence[Device], *headlines: Headline) -> str:
    """Of GPUs."""
    return "; ".join(_shares(device, headlines) for device in devices if device.kind == "cuda") or NOT_MEASURED


def _shares(device, headlines):
    found = [comparison_of(headline, device) for headline in headlines]
    cells = [NOT_MEASURED if found_one is None else percent(found_one.own["share_of_floor"]) for found_one in found]
    return f"{', '.join(cells)} ({device.name})"
