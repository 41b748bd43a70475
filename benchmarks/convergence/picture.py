"""Curves of a long run: the critic's estimate and the metric over wall-clock time."""

import io
from pathlib import Path

import matplotlib.figure

from benchmarks import results
from benchmarks.convergence.runs import FAST, REFERENCE, What
from tgan_fast.files import write_atomically

_COLOURS = "#0072b2", "#d55e00"
_INCHES, _DPI = (9, 7), 120
_LARGEST_LINEAR = 20
# Names, seconds, and up to how many seconds a run is shown in them.
_UNITS = (("seconds", 1, 300), ("minutes", 60, 3 * 3600), ("hours", 3600, float("inf")))


def section_of(what: What) -> str:
    """Its name in the file of results."""
    return f"convergence {what}"


def draw(path: Path, what: What) -> Path:
    """Draw what a file of results holds into a picture beside it, and return that."""
    picture = path.with_name(f"{path.stem}-convergence-{what}.png")
    write_atomically(picture, png_of(results.sections_of(path)[section_of(what)]))
    return picture


def png_of(section: dict) -> bytes:
    """A picture of a section of a file of results: the critic's estimate and the metric over wall-clock time."""
    unit, length, _ = next(row for row in _UNITS if section["seconds"] <= row[2])
    figure = matplotlib.figure.Figure(figsize=_INCHES, layout="constrained")
    figure.suptitle(_title(section), x=0.01, ha="left", fontsize=10)
    upper, lower = figure.subplots(2, sharex=True)
    # The first point has no losses.
    _plot(upper, section, lambda point: (point["seconds"] / length, -point["loss_discriminator"]), first=1)
    _plot(lower, section, lambda point: (point["seconds"] / length, point["metric"]))
    upper.set_title("Critic's estimate: mean D(real) − mean D(generated)", loc="left", fontsize=10)
    # Without clipping it grows and grows.
    if max(map(abs, upper.dataLim.intervaly)) > _LARGEST_LINEAR:
        upper.set_yscale("symlog", linthresh=1)
        upper.yaxis.set_major_formatter("{x:g}")
    lower.set_title(_metric_title(section), loc="left", fontsize=10)
    lower.set_xlabel(f"{unit} of training, wall clock")
    lower.set_xlim(left=0)
    lower.set_ylim(bottom=0)
    lower.axhline(section["floor"], color="0.5", linestyle="--", linewidth=1)
    lower.annotate("other real clips", (0, section["floor"]), (4, 3), textcoords="offset points", color="0.4")
    reached = section["sooner"]
    if reached and reached["ratio"]:
        ends = reached["seconds"] / length, reached["reference_seconds"] / length
        lower.plot(ends, 2 * [reached["metric"]], color="0.4", linestyle=":", linewidth=1.5)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


def _title(section):
    environment, settings = section["environment"], section["settings"]
    threads = f" (threads: {environment['threads']})" if environment["threads"] else ""
    return (
        f"{section['title']}, trained on moving digits: preset {section['preset']} (width {settings['width']:g}, "
        f"batch {settings['batch_size']}), seed {settings['seed']}\n"
        f"{environment['device']}{threads}, PyTorch {environment['torch']}"
    )


def _metric_title(section):
    reached, variance = section["sooner"], f"{100 * section['explained_variance']:.0f} % of their variance"
    title = f"Fréchet distance, {section['components']} principal components of real clips ({variance})"
    return title if reached is None else f"{title}\n{quality_text(reached)}"


def _plot(axes, section, coordinates, first=0):
    """A curve for each contender, from its point `first` on, with its name at the end."""
    curves = [[coordinates(point) for point in record["points"][first:]] for record in section["contenders"]]
    highest = max(curve[-1][1] for curve in curves)
    for record, curve, colour in zip(section["contenders"], curves, _COLOURS, strict=True):
        axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.5)
        side = "bottom" if curve[-1][1] == highest else "top"
        axes.annotate(record["contender"], curve[-1], (5, 0), textcoords="offset points", color=colour, va=side)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def quality_text(reached: dict) -> str:
    """`time_to_quality` in words."""
    if reached["seconds"] is None:
        return f"{FAST} does not reach {reached['metric']:g}, what the {REFERENCE} has at its end"
    return (
        f"{FAST} reaches {reached['metric']:g} after {reached['seconds']:g} s, the {REFERENCE} after "
        f"{reached['reference_seconds']:g} s, {reached['ratio']:.3g} times as long (medians of three points)"
    )
