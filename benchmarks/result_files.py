"""Result files: one for each device, with the machine and the command beside every section."""

import functools
import json
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from tgan_fast.files import write_atomically
from tgan_fast.provenance import commit_of

SCHEMA = 2
NOT_MEASURED = "not measured yet"
FOLDER = Path(__file__).with_name("results")
_commit_of = functools.cache(commit_of)  # cached, since writing a file of results makes the tree dirty


class Label(NamedTuple):
    """Name of a row of a case's timings."""

    contender: str
    part: str | None = None  # such as "forward"

    @classmethod
    def of(cls, row: dict) -> "Label":
        """Return the label of a row."""
        return cls(row["contender"], row["part"])

    def __str__(self):
        return self.contender if self.part is None else f"{self.part} {self.contender}"


class Goal(NamedTuple):
    """Bound of a measured number."""

    text: str
    measured: float | None
    bound: float
    at_most: bool

    @property
    def verdict(self) -> str:
        """Whether the goal is met; without a measurement it is neither met nor missed."""
        if self.measured is None:
            return NOT_MEASURED
        met = self.measured <= self.bound if self.at_most else self.measured >= self.bound
        return "met" if met else "SHORT"

    def record(self) -> dict:
        """Return the goal as an entry of the file of results."""
        return {**self._asdict(), "verdict": self.verdict}

    def __str__(self):
        measured = "" if self.measured is None else f"{self.measured}: "
        return f"goal {'≤' if self.at_most else '≥'} {self.bound} {self.text}: {measured}{self.verdict}"


def describe_environment(device: str) -> dict:
    """Return the machine, the software and the command."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
        "python": platform.python_version(),
        "commit": _commit_of(Path(__file__).parents[1]),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
    }


def device_name(device: str) -> str:
    """Return the model name of the GPU or CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.M) if information.exists() else None
    return model[1] if model else platform.machine()


def file_of(device: str) -> Path:
    """Return the path of the results of this machine's device, whether it exists or not."""
    name = device_name(device) if device == "cuda" else f"cpu {device_name(device)} {torch.get_num_threads()} threads"
    return FOLDER / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def sections_of(path: Path) -> dict[str, dict]:
    """Return all sections of a file by their names, none if it does not exist; raise SystemExit at another schema."""
    if not path.exists():
        return {}
    results = json.loads(path.read_text())
    if results.get("schema") != SCHEMA:
        raise SystemExit(f"error: {path} has the schema {results.get('schema')}, not {SCHEMA}: move it away")
    return results["sections"]


def write_section(section: str, payload: dict, device: str, path: Path | None = None) -> Path:
    """Write a section and its environment into a file of results, by default the device's, and return the file."""
    path = path or file_of(device)
    sections = sections_of(path) | {section: {"environment": describe_environment(device), **payload}}
    text = json.dumps({"schema": SCHEMA, "sections": sections}, indent=1)
    # Each innermost object or list gets its own line.
    innermost = r"([\[{])\n\s*([^\[\]{}]*?)\n\s*([\]}])"
    text = re.sub(innermost, lambda match: match[1] + re.sub(r"\n\s*", " ", match[2]) + match[3], text)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, f"{text}\n".encode())
    return path


def rounded(number: float) -> float:
    """Round to four digits, more than a measurement holds."""
    return float(f"{number:.4g}")
