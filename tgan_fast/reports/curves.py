"""Plots of losses, and of scores during training."""

from __future__ import annotations

import atexit
import functools
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tgan_fast.errors import InputError
from tgan_fast.metrics.score_kinds import SCORE_KINDS, ScoreKind
from tgan_fast.reports.number_format import format_number, time_unit
from tgan_fast.reports.recorded_run import Evaluation, Losses, best_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito is distinct for color-blind readers, on white and on black.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLES = ("-", "--", ":")
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours"}
# Axes with a larger ratio of scores are logarithmic, since distances fall by orders of magnitude.
_LARGEST_LINEAR = 20
_METADATA = {"png": {"Software": None}, "svg": {"Date": None}}


def loss_figure(name: str, losses: Sequence[Losses]) -> Figure:
    """Return a figure of both losses of a run against the iteration.

    Args:
        name: Title.
        losses: Losses in the order of iterations.
    """
    figure = _matplotlib().figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    iterations = [line.iteration for line in losses]
    for color, network in zip(_COLORS, ("discriminator", "generator"), strict=False):
        values = [getattr(line, f"loss_{network}") for line in losses]
        axes.plot(iterations, values, color=color, label=f"loss of the {network}")
    axes.set_title(name, parse_math=False)
    axes.set(xlabel="iteration", ylabel="loss")
    _number_iterations(axes)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def score_figure(runs: Mapping[str, Sequence[Evaluation]]) -> Figure:
    """Return a figure with a row for each score, against iterations and training time; the best score is marked.

    Args:
        runs: Evaluations of each run by its name, at least one.

    Raises:
        InputError: Two runs have different protocols or classifiers, so that their scores cannot be compared.
    """
    first = refuse_incomparable(runs)
    kinds = [kind for kind in SCORE_KINDS if any(best_of(lines, kind) for lines in runs.values())]
    figure = _matplotlib().figure.Figure(figsize=(10, 0.9 + 3 * len(kinds) + 0.22 * len(runs)), layout="constrained")
    figure.suptitle(f"Protocol {first.protocol}; classifier {first.classifier}", fontsize="medium", parse_math=False)
    length, unit = time_unit(max(line.seconds for lines in runs.values() for line in lines))
    rows = figure.subplots(len(kinds), 2, sharex="col", sharey="row", squeeze=False)
    for kind, (by_iteration, by_time) in zip(kinds, rows, strict=True):
        curves = _plot(by_iteration, runs, kind, lambda line: line.iteration)
        _plot(by_time, runs, kind, lambda line: line.seconds / length)
        by_iteration.set_title(f"{kind.heading} ({kind.direction})", loc="left", fontsize="medium")
        _scale(by_iteration, [line.score(kind) for lines in runs.values() for line in lines])
    rows[-1, 0].set_xlabel("iteration")
    rows[-1, 1].set_xlabel(f"{_UNITS[unit]} of training")
    _number_iterations(rows[-1, 0])
    _name_curves(figure, curves, list(runs))
    return figure


def refuse_incomparable(runs: Mapping[str, Sequence[Evaluation]]) -> Evaluation:
    """Return the first evaluation if all have the same protocol and classifier.

    Raises:
        InputError: The protocols or classifiers differ.
    """
    (name, first), *others = [(name, line) for name, lines in runs.items() for line in lines]
    for other, line in others:
        for what in ("protocol", "classifier"):
            ours, theirs = getattr(first, what), getattr(line, what)
            if ours != theirs:
                raise InputError(
                    f"the scores of {name} and {other} cannot be compared: the {what} of the first is {ours}, "
                    f"that of the second {theirs}; train both with the same --classifier and --evaluate-samples"
                )
    return first


def bytes_of(figure: Figure, file_format: Literal["png", "svg"]) -> bytes:
    """Return the file of a figure, always the same bytes for the same figure."""
    content = io.BytesIO()
    with _matplotlib().rc_context({"svg.hashsalt": "tgan_fast"}):
        figure.savefig(content, format=file_format, dpi=120, metadata=_METADATA[file_format])
    return content.getvalue()


@functools.cache
def _matplotlib():
    """Import matplotlib on first use, without its warning about a home folder that cannot be written to."""
    try:
        Path.home()
    except RuntimeError:
        # Matplotlib works with a read-only home, but not without a home.
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.setdefault("MPLCONFIGDIR", folder)
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib.figure
        import matplotlib.ticker
    finally:
        logger.setLevel(level)
    return matplotlib


def _plot(axes: Axes, runs, kind: ScoreKind, place):
    """Plot a curve for each run, and return the curves."""
    curves = []
    for number, lines in enumerate(runs.values()):
        color = _COLORS[number % len(_COLORS)]
        style = _STYLES[number // len(_COLORS) % len(_STYLES)]
        scored = [line for line in lines if line.score(kind) is not None]
        points = [place(line) for line in scored], [line.score(kind) for line in scored]
        curves += axes.plot(*points, style, color=color, marker=".", markersize=4)
        best = best_of(lines, kind)
        if best is not None:
            _mark(axes, (place(best), best.score(kind)), color, above=kind.best is max)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
    return curves


def _mark(axes, point, color, above):
    axes.plot(*point, color=color, marker="o", markersize=9, markerfacecolor="none")
    place = (0, 7) if above else (0, -16)
    axes.annotate(
        format_number(point[1]), point, place, textcoords="offset points", color=color, ha="center", fontsize=9
    )


def _scale(axes, scores):
    scores = [score for score in scores if score is not None]
    if min(scores) > 0 and max(scores) / min(scores) > _LARGEST_LINEAR:
        axes.set_yscale("log")


def _number_iterations(axes):
    axes.xaxis.set_major_locator(_matplotlib().ticker.MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _name_curves(figure, curves, names):
    """Add a legend with one name per line, since names can be long."""
    # Matplotlib leaves out labels that begin with an underscore, so the names are set afterwards.
    legend = figure.legend(curves, [str(number) for number in range(len(names))], loc="outside lower left", ncols=1)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
