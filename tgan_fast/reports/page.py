"""One self-contained HTML page about a run, which any browser opens without a network."""

import base64
from collections.abc import Mapping
from typing import Any

import jinja2

from tgan_fast.errors import InputError, printable
from tgan_fast.metrics.score_kinds import SCORE_KINDS
from tgan_fast.reports.curves import bytes_of, loss_figure, score_figure
from tgan_fast.reports.number_format import format_mean, format_number, format_seconds
from tgan_fast.reports.recorded_run import RecordedRun, best_of, last_of

_NOTHING = "–"


def page_of(run: RecordedRun, defaults: Mapping[str, Any]) -> str:
    """Return a page with samples, curves, scores with their protocols, settings and versions.

    Args:
        run: Run to describe.
        defaults: Default of each setting; other values are marked.

    Raises:
        InputError: The samples cannot be read.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("tgan_fast.reports", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return templates.get_template("page.html").render(
        name=run.name,
        path=printable(str(run.path)),
        iterations=f"{run.iterations:,}",
        steps=f"{run.config['steps']:,}" if isinstance(run.config.get("steps"), int) else "?",
        time=format_seconds(run.seconds),
        device=run.starts[-1].get("device") if run.starts else None,
        samples=_data("image/gif", _read(run.samples)) if run.samples else None,
        samples_iteration=f"{int(run.samples.stem):,}" if run.samples else None,
        losses=_svg(loss_figure(run.name, run.losses)) if run.losses else None,
        curves=_svg(score_figure({run.name: run.comparable})) if run.evaluations else None,
        scores_in_training=_scores_in_training(run),
        best=run.has_best,
        left_out=run.left_out,
        scores=list(_scores(run)),
        notices=list(dict.fromkeys(notice for record in run.scores for notice in record.notices)),
        settings=_settings(run.config, defaults),
        starts=_start_rows(run.starts),
    )


def _read(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _data(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _svg(figure):
    # Inline SVGs of two pictures could use the same identifiers, so each is an image.
    return _data("image/svg+xml", bytes_of(figure, "svg"))


def _scores_in_training(run):
    rows = []
    for kind in SCORE_KINDS:
        lines = [best_of(run.comparable, kind), last_of(run.comparable, kind)]
        if all(lines):
            cells = [text for line in lines for text in (format_number(line.score(kind)), f"{line.iteration:,}")]
            rows.append({"title": kind.heading, "direction": kind.direction, "cells": cells})
    return rows


def _scores(run):
    """Yield a row for each score of each evaluated checkpoint, the newest first."""
    for record in reversed(run.scores):
        protocol = f"{record.protocol}, {record.runs} × {record.samples:,} videos, {record.precision}"
        for kind in SCORE_KINDS:
            score = record.score(kind)
            if score is not None:
                yield {
                    "checkpoint": record.checkpoint,
                    "weights": record.weights,
                    "protocol": protocol,
                    "title": kind.heading,
                    "value": format_mean(score.mean, score.std),
                    "real": _NOTHING if score.real is None else format_number(score.real),
                    "of": _compared_with(score),
                    "classifier": record.classifier or _NOTHING,
                }


def _compared_with(score):
    clips = [] if score.real_clips is None else [f"{score.real_clips:,} real clips"]
    return ", ".join([*filter(None, [score.layer]), *clips]) or _NOTHING


def _settings(config, defaults):
    return [
        {"name": name, "value": _text(value), "marked": name not in defaults or value != defaults[name]}
        for name, value in config.items()
    ]


def _start_rows(starts):
    """Return a row for each recorded value, with a column for each start of the run."""
    names = dict.fromkeys(name for start in starts for name in start)
    return [[name, *(_text(start.get(name)) for start in starts)] for name in names]


def _text(value):
    return _NOTHING if value is None else str(value)
