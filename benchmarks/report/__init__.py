"""What stands in README.md and benchmarks/README.md of measurements, and the pictures beside the files of results."""

from pathlib import Path
from typing import NamedTuple

from benchmarks.report import chapters, plots
from benchmarks.report.figures import readme_figures
from benchmarks.report.markdown import filled
from benchmarks.report.measured import devices_in
from tgan_fast.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
REMEDY = "run python -m benchmarks.report"


class Report(NamedTuple):
    """What belongs into a tree."""

    texts: dict[Path, str]
    pictures: list[plots.Picture]


def report_of(root: Path = ROOT) -> Report:
    """Of the files of results in `root`/benchmarks/results.

    Raises:
        SystemExit: a file of results has another schema, or a text has a figure that nobody makes.
    """
    folder = root / "benchmarks" / "results"
    devices = devices_in(folder)
    figures = {
        root / "README.md": readme_figures(devices),
        root / "benchmarks" / "README.md": {
            "goals": lambda: chapters.goals(devices),
            "devices": lambda: chapters.chapters(devices, folder),
        },
    }
    texts = {path: filled(path.read_text(), of_path, str(path)) for path, of_path in figures.items()}
    return Report(texts, [picture for device in devices for picture in plots.pictures_of(device, folder)])


def write(root: Path = ROOT) -> None:
    """Make the texts and pictures anew.

    Raises:
        SystemExit: as for `report_of`.
    """
    report = report_of(root)
    for picture in report.pictures:
        if picture.draw is not None:
            write_atomically(picture.path, picture.draw())
    for path, text in report.texts.items():
        write_atomically(path, text.encode())


def refuse_stale(root: Path = ROOT) -> None:
    """Raise unless `write` would leave the texts as they are and no picture is missing.

    Raises:
        SystemExit: says which file it is; or as for `report_of`.
    """
    report = report_of(root)
    for path, text in report.texts.items():
        if path.read_text() != text:
            raise SystemExit(f"error: {path} says something else than the files of results: {REMEDY}")
    for picture in report.pictures:
        if not picture.path.exists():
            raise SystemExit(f"error: {picture.path} is missing: {REMEDY}")
