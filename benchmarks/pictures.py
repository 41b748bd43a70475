"""Pictures of a device's results: speed-ups, the roofline, and where an iteration's time goes."""

import io
from collections.abc import Iterable

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.table import number, percent, seconds

STRONG, LIGHT = "#0072b2", "#9ecae1"


def speedup(title: str, rows: dict[str, list[tuple[str, float]]]) -> bytes:
    """Draw a group of bars for each row: contenders, and how many times as fast as they the package is."""
    figure, axes = _bars(title, rows, 0.8, "times as fast as the best rival; light: as eager PyTorch")
    for place, bars in enumerate(rows.values()):
        for index, (name, times) in enumerate(bars):
            height = place + 0.4 * (index - (len(bars) - 1) / 2)
            axes.barh(height, times - 1, 0.36, left=1, color=STRONG if index == len(bars) - 1 else LIGHT)
            # Beside what is slower there is room on the right, too.
            _say(axes, f"{number(times)}× {name}", (max(1, times), height))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.margins(x=0.3)
    _write_plain_numbers(axes.xaxis)
    return _png(figure)


def roofline(title: str, points: Iterable[tuple[str, str, float, float]], roofs: dict[str, float]) -> bytes:
    """Draw points below the roofs that a copy and matrix products allow.

    Args:
        title: Title of the picture.
        points: Names, parts, FLOP a byte, and FLOP a second.
        roofs: Bytes a second of a `copy`, and FLOP a second of a matrix product in each precision.
    """
    figure, axes = _figure(title, 7)
    points = sorted(points, key=lambda point: point[2])
    low, high, copy = points[0][2] / 2, points[-1][2] * 2, roofs["copy"]
    for name, roof in roofs.items():
        if name != "copy":
            axes.plot([low, roof / copy, high], [low * copy / 1e12, roof / 1e12, roof / 1e12], "black", linewidth=1)
            _say(axes, f"{name} matrix product {number(roof / 1e12)} TFLOP/s", (roof / copy, roof / 1e12), (0, 8))
    _say(axes, f"copy {number(copy / 1e9)} GB/s", (low, low * copy / 1e12), (8, -8))
    for part, mark in zip(dict.fromkeys(part for _, part, _, _ in points), "os^D", strict=False):
        places = [(intensity, rate / 1e12) for _, each, intensity, rate in points if each == part]
        axes.plot(*zip(*places, strict=True), mark, markersize=5, label=part.replace("_", " "))
    # Neighbors have their names at different ends, so that they do not meet.
    for index, (name, intensity) in enumerate({name: intensity for name, _, intensity, _ in points}.items()):
        axes.axvline(intensity, color="0.9", linewidth=0.6, zorder=0)
        place = {"y": 1 - index % 2, "ha": "center", "va": "bottom", "transform": axes.get_xaxis_transform()}
        axes.text(intensity, s=f" {name}", rotation=90, size=7, **place)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    _write_plain_numbers(axes.xaxis)
    _write_plain_numbers(axes.yaxis)
    return _png(figure)


def iteration(title: str, groups: list[dict]) -> bytes:
    """Draw a bar for each group of an iteration, the longest first, its floor within it."""
    groups = sorted(groups, key=lambda group: group["seconds"], reverse=True)
    total = sum(group["seconds"] for group in groups)
    names, label = [group["group"] for group in groups], "ms (light) and what the ceilings allow at best (strong)"
    figure, axes = _bars(f"{title}: {seconds(total)} an iteration", names, 0.34, label)
    for place, group in enumerate(groups):
        axes.barh(place, 1e3 * group["seconds"], color=LIGHT)
        axes.barh(place, 1e3 * group["floor_seconds"], height=0.4, color=STRONG)
        text = f"{percent(group['seconds'] / total)}, {seconds(group['seconds'])}"
        _say(axes, text, (max(0, 1e3 * group["seconds"]), place))
    axes.margins(x=0.15)
    return _png(figure)


def _bars(title, names, height, label):
    """Return a figure and axes for horizontal bars, the first at the top."""
    figure, axes = _figure(title, height * len(names) + 1.2)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel=label)
    axes.invert_yaxis()
    return figure, axes


def _say(axes, text, place, points=(5, 0)):
    """Write text so many points beside a place."""
    axes.annotate(text, place, points, textcoords="offset points", va="center")


def _write_plain_numbers(axis):
    """Write 1, 2, 5, 10 … instead of powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _figure(title, height):
    # So wide that text is about as large as around it in README.md.
    figure = Figure(figsize=(9, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure):
    """Return the same for the same data: without the date and matplotlib's version."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
