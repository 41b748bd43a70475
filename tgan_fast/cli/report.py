"""Make one HTML page of a training run: `python -m tgan_fast report --help`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from tgan_fast.cli.options import parse
from tgan_fast.cli.outputs import check_folder, writing
from tgan_fast.errors import InputError, printable
from tgan_fast.files import write_atomically
from tgan_fast.reports.page import page_of
from tgan_fast.reports.recorded_run import open_run
from tgan_fast.training.config import TrainingConfig, in_current_words


@dataclass
class ReportCommand:
    """Write one self-contained HTML page with a run's samples, curves, scores, settings and versions."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    out: Path | None = None
    """File to write; by default report.html in the run folder."""


def main(arguments: Sequence[str]) -> None:
    command = parse(ReportCommand, arguments, prog="python -m tgan_fast report")
    recorded, out = open_run(command.run), command.out or command.run / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"cannot write {out}: its name must end in .html")
    check_folder(out)
    recorded = replace(recorded, config=in_current_words(recorded.config))
    page = page_of(recorded, TrainingConfig().model_dump())
    with writing(out):
        write_atomically(out, page.encode("utf-8", "backslashreplace"))
    print(f"{len(page) / 1e6:.1f} MB: {printable(str(out))}")
