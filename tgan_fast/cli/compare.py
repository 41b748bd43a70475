"""Compare the scores of runs during training: `python -m tgan_fast compare --help`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from tgan_fast.cli.options import parse
from tgan_fast.cli.outputs import check_folder, writing
from tgan_fast.errors import InputError, printable
from tgan_fast.files import write_atomically
from tgan_fast.metrics.score_kinds import SCORE_KINDS
from tgan_fast.reports.curves import bytes_of, refuse_incomparable, score_figure
from tgan_fast.reports.number_format import format_number, format_seconds
from tgan_fast.reports.recorded_run import RecordedRun, best_of, last_of, open_run
from tgan_fast.training.config import TrainingConfig, in_current_words

# Settings of what is recorded and how often; they do not change the training.
_OF_RECORDS = {
    *("log_interval", "sample_interval", "checkpoint_interval", "keep_checkpoints"),
    *("evaluate_every", "evaluate_samples", "classifier", "best_metric"),
}
# More settings would not fit beside a name in the picture; the table lists them all.
_MOST_IN_NAMES = 2


@dataclass
class CompareCommand:
    """Plot the scores of runs during training in one picture, and print a table of them."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folders, all evaluated with the same protocol and classifier."""
    out: Path = Path("compare.png")
    """File to write: .png or .svg."""


def main(arguments: Sequence[str]) -> None:
    command = parse(CompareCommand, arguments, prog="python -m tgan_fast compare")
    _check(command)
    runs = _open(command.runs)
    for recorded in runs.values():
        if not recorded.evaluations:
            raise InputError(
                f"{recorded.path} has no evaluations to compare: train with --evaluate-every N --classifier FILE"
            )
    evaluations = {name: recorded.comparable for name, recorded in runs.items()}
    first = refuse_incomparable(evaluations)
    settings = differing_settings(runs)
    names = _with_settings(list(runs), settings)
    figure = score_figure(dict(zip(names, evaluations.values(), strict=True)))
    with writing(command.out):
        write_atomically(command.out, bytes_of(figure, command.out.suffix.lower()[1:]))
    print(f"protocol {first.protocol}; classifier {first.classifier}\n")
    _print_aligned([*_rows(runs), *([name, *map(str, values)] for name, values in settings.items())])
    for name, recorded in runs.items():
        if recorded.left_out:
            print(f"\n{name}: {recorded.left_out}")
    print(f"\ncurves: {printable(str(command.out))}")


def differing_settings(runs: Mapping[str, RecordedRun]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ, with each run's value; settings not recorded have their defaults."""
    defaults = TrainingConfig().model_dump()
    configs = [defaults | in_current_words(recorded.config) for recorded in runs.values()]
    names = dict.fromkeys(name for config in configs for name in config if name not in _OF_RECORDS)
    values = {name: [config.get(name) for config in configs] for name in names}
    return {name: of_runs for name, of_runs in values.items() if len(set(of_runs)) > 1}


def _check(command):
    if not command.runs:
        raise InputError("name at least one run folder to compare")
    if command.out.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"cannot write {command.out}: its name must end in .png or .svg")
    check_folder(command.out)


def _open(paths: Sequence[Path]) -> dict[str, RecordedRun]:
    """Return the runs by their folders' names, or by the paths given where two folders have the same name."""
    runs = [open_run(path) for path in paths]
    folders = [path.resolve() for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise InputError(f"{path} is given twice: name each run once")
    names = [recorded.name for recorded in runs]
    return {
        name if names.count(name) == 1 else printable(str(recorded.path)): recorded
        for name, recorded in zip(names, runs, strict=True)
    }


def _with_settings(names: list[str], settings: Mapping[str, list[Any]]) -> list[str]:
    """Return the names, followed by the settings that differ if these are few."""
    if not 1 <= len(settings) <= _MOST_IN_NAMES:
        return names
    return [
        f"{name} ({', '.join(f'{setting} {values[number]}' for setting, values in settings.items())})"
        for number, name in enumerate(names)
    ]


def _rows(runs: Mapping[str, RecordedRun]) -> list[list[str]]:
    """Return the rows of the table, which has one column per run."""
    rows = [
        ["", *runs],
        ["iterations", *(f"{recorded.iterations:,}" for recorded in runs.values())],
        ["training time", *(format_seconds(recorded.seconds) for recorded in runs.values())],
    ]
    for kind in SCORE_KINDS:
        bests = [best_of(recorded.comparable, kind) for recorded in runs.values()]
        lasts = [last_of(recorded.comparable, kind) for recorded in runs.values()]
        if any(bests):
            rows.append(
                [f"{kind.heading}, best", *((line and format_number(line.score(kind))) or "–" for line in bests)]
            )
            rows.append(["  at iteration", *((line and f"{line.iteration:,}") or "–" for line in bests)])
            rows.append(["  last", *((line and format_number(line.score(kind))) or "–" for line in lasts)])
    return rows


def _print_aligned(rows: list[list[str]]) -> None:
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    for name, *values in rows:
        cells = (value.rjust(width) for value, width in zip(values, widths, strict=True))
        print("  ".join([name.ljust(first), *cells]))
