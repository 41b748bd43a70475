"""Pictures of a device's results: speed-ups, the roofline, and where an iteration's time goes."""

import functools
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import matplotlib.ticker
import numpy as np
from matplotlib.transforms import Bbox

from benchmarks.report.headlines import Comparison, comparisons_of
from benchmarks.report.markdown import number, percent, seconds
from benchmarks.report.measured import Device, parts_of

# Each a strong and a light one.
_OWN, _SHORT = ("#0072b2", "#9ecae1"), ("#c8102e", "#f2a2ab")
_MARKS, _COLOURS = "os^D", ("#0072b2", "#e69f00", "#009e73", "#555555")
# Of a name from its point; the first where there is room.
_OFFSETS = [(x * side, y) for x in (7, 20, 35, 50) for y in (0, 9, -9, 18, -18, 27, -27) for side in (1, -1)]
_INCHES, _DPI = 9, 150  # the width, so that text is about as large in README.md as around it


class Picture(NamedTuple):
    """A PNG beside the file of results."""

    path: Path
    text: str  # for those who cannot see it
    draw: Callable[[], bytes] | None  # None: another program draws it


class Point(NamedTuple):
    """Of a roofline."""

    name: str
    part: str  # "" if it has none
    intensity: float  # operations a byte
    rate: float  # 10¹² operations a second


def pictures_of(device: Device, folder: Path) -> list[Picture]:
    """Those for which something was measured, and curves of long runs that are there."""
    comparisons = [comparison for comparison in comparisons_of(device) if _others(comparison)]
    drawn = (
        ("speedup", "times as fast as eager PyTorch and as the best rival", _speedup, comparisons),
        ("roofline", "operations a second against operations a byte", _roofline, list(points_of(device))),
        ("iteration", "where the time of a training iteration goes", _iteration, groups_of(device)),
    )
    pictures = [
        Picture(folder / f"{device.stem}-{name}.png", f"{device.name}: {text}", functools.partial(draw, device, data))
        for name, text, draw, data in drawn
        if data
    ]
    for path in sorted(folder.glob(f"{device.stem}-convergence-*.png")):
        what = path.stem.removeprefix(f"{device.stem}-convergence-")
        pictures.append(Picture(path, f"{device.name}: curves of long runs, {what}", None))
    return pictures


def points_of(device: Device) -> Iterator[Point]:
    """Of each part of a case that computes and moves something the fastest of the package's own ways."""
    for section in device.sections:
        for record in device.cases(section):
            for part, rows in parts_of(record).items():
                own = [row for row in rows if row["contender"] not in record["rivals"]]
                row = min(own, key=lambda row: row["seconds"], default={})
                if row.get("flops") and row.get("bytes"):
                    name = record["case"] if section == "convolutions" else f"{section}, {record['case']}"
                    yield Point(name, part or "", row["flops"] / row["bytes"], row["flops"] / row["seconds"] / 1e12)


def groups_of(device: Device) -> list[dict]:
    """Of an iteration, those that take longest first."""
    groups = next((record["groups"] for record in device.cases("breakdown") if record.get("groups")), [])
    return sorted((row for row in groups if row["seconds"]), key=lambda row: row["seconds"], reverse=True)


def _speedup(device, comparisons: Sequence[Comparison]) -> bytes:
    """For each headline a bar against the best rival, and a light one against eager PyTorch if that is another."""
    bars, places, place = [], [], 0.0
    for comparison in comparisons:
        others = _others(comparison)
        for row, colour in zip(others, _SHORT if comparison.short else _OWN, strict=False):
            bars.append((place, comparison.times(row), row["contender"], colour))
            place += 1
        places.append(place - (len(others) + 1) / 2)
        place += 0.5
    figure, axes = _figure(f"tgan_fast on {device.name}", 0.3 * place + 1.2)
    for place, times, name, colour in bars:
        axes.barh(place, times - 1, left=1, height=0.86, color=colour)
        # Beside what is slower there is room on the right, too.
        _say(axes, f"{number(times)}× {name}", (max(1, times), place), (5, 0), va="center")
    axes.set_yticks(places, [comparison.headline.title for comparison in comparisons])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, *(0.9 * times for _, times, _, _ in bars)), max(2, *(2 * times for _, times, _, _ in bars)))
    _plain(axes.xaxis, "{:g}×")
    text = "times as fast as the best rival; light: as eager PyTorch; red: a goal is missed"
    figure.supxlabel(text, fontsize="medium")
    return _png(figure)


def _others(comparison):
    """Rows of the best rival and of eager PyTorch, which may be the same."""
    rows = [row for row in (comparison.rival, comparison.eager) if row is not None]
    return list({row["contender"]: row for row in rows}.values())


def _roofline(device, points: Sequence[Point]) -> bytes:
    """Points, the copy's slope and the matrix products' roofs; each name once, at its fastest part."""
    figure, axes = _figure(f"tgan_fast on {device.name}, and what copies and matrix products reach", 6.5)
    roofs = {name: rate / 1e12 for name, rate in device.ceilings.items()}
    copy, highest = roofs.pop("copy"), max(roofs.values())
    low = min(highest / copy, *(point.intensity for point in points)) / 2
    high = max(highest / copy, *(point.intensity for point in points)) * 3
    lines = [((low, low * copy), (highest / copy, highest))]
    lines += [((roof / copy, roof), (high, roof)) for roof in roofs.values()]
    for line in lines:
        axes.plot(*zip(*line, strict=True), color="black", linewidth=1)
    _say(axes, f"copy {1e3 * copy:,.0f} GB/s", (low, low * copy), (8, -4), va="top")
    for name, roof in roofs.items():
        _say(axes, f"{name} matrix product {number(roof)} TFLOP/s", (high, roof), (0, 4), ha="right")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    parts = sorted(dict.fromkeys(point.part for point in points), key=lambda part: part == "")
    for part, mark, colour in zip(parts, itertools.cycle(_MARKS), itertools.cycle(_COLOURS), strict=False):
        places = [(point.intensity, point.rate) for point in points if point.part == part]
        label = part.replace("_", " ") or "whole"
        axes.plot(*zip(*places, strict=True), mark, color=colour, markersize=5, label=label)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(_MARKS))
    for axis in (axes.xaxis, axes.yaxis):
        _plain(axis, "{:g}")
    axes.grid(alpha=0.2)
    _name_points(axes, points, lines)
    return _png(figure)


def _name_points(axes, points, lines):
    """Each name once, at its highest point, if there is room around it."""
    figure = axes.get_figure()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is measured here shall stay where it is
    taken = [axes.transData.transform([(point.intensity, point.rate) for point in points])]
    taken += [np.linspace(*axes.transData.transform(line)) for line in lines]
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in np.concatenate(taken)]
    taken += [text.get_window_extent() for text in axes.texts]
    highest = {point.name: point for point in sorted(points, key=lambda point: point.rate)}
    for point in reversed(highest.values()):
        for offset in _OFFSETS:
            place = point.intensity, point.rate
            text = _say(axes, point.name, place, offset, ha="left" if offset[0] > 0 else "right", va="center", size=8)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                _say(axes, "", place, offset, arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6})
                taken.append(box)
                break
            text.remove()


def _iteration(device, groups: Sequence[dict]) -> bytes:
    """A bar for each group, its floor within it."""
    total = sum(row["seconds"] for row in groups)
    figure, axes = _figure(f"A training iteration on {device.name}: {seconds(total)}", 0.34 * len(groups) + 1.2)
    for place, row in enumerate(groups):
        axes.barh(place, 1e3 * row["seconds"], color=_OWN[1])
        axes.barh(place, 1e3 * row["floor_seconds"], height=0.4, color=_OWN[0])
        text = f"{percent(row['seconds'] / total)}, {seconds(row['seconds'])}"
        _say(axes, text, (1e3 * max(0, row["seconds"]), place), (5, 0), va="center")
    axes.set_yticks(range(len(groups)), [row["group"] for row in groups])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(right=1.2e3 * groups[0]["seconds"])
    axes.set_xlabel("ms (light) and what the ceilings allow at best (strong)")
    return _png(figure)


def _say(axes, text, place, points, **options):
    """Text so many points beside a place."""
    return axes.annotate(text, place, points, textcoords="offset points", **options)


def _plain(axis, form):
    """1, 2, 5, 10 … instead of powers."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: form.format(value)))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _figure(title, height):
    figure = matplotlib.figure.Figure(figsize=(_INCHES, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure) -> bytes:
    """The same for the same data: without the date and matplotlib's version."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
