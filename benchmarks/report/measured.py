"""What the files of results hold, device by device."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks import harness, results

KINDS = {"cpu": "CPU", "cuda": "GPU"}


class Device(NamedTuple):
    """A device with a file of results."""

    stem: str  # of the file's name
    sections: dict[str, dict]

    @property
    def environment(self) -> dict:
        """Of its first section."""
        return next(iter(self.sections.values()))["environment"]

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        """Threads are counted on CPUs only."""
        return "cuda" if self.environment["threads"] is None else "cpu"

    @property
    def name(self) -> str:
        """For people."""
        threads = self.environment["threads"]
        return self.environment["device"] + ("" if threads is None else f", {threads} threads")

    @property
    def records(self) -> list[dict]:
        """Of all cases."""
        return [record for section in self.sections for record in self.cases(section)]

    @property
    def ceilings(self) -> dict[str, float]:
        """The highest of each, since every run measures them anew."""
        found: dict[str, float] = {}
        for payload in self.sections.values():
            for name, rate in payload.get("ceilings", {}).items():
                found[name] = max(rate, found.get(name, 0.0))
        return found

    def cases(self, section: str) -> list[dict]:
        """A section's records; none if it was not measured."""
        return self.sections.get(section, {}).get("cases", [])


def devices_in(folder: Path) -> list[Device]:
    """All that have a file of results there with something in it, CPUs first."""
    found = [Device(path.stem, results.sections_of(path)) for path in sorted(folder.glob("*.json"))]
    return sorted((device for device in found if device.sections), key=lambda device: device.kind)


def missing_kinds(devices: Sequence[Device]) -> list[str]:
    """Those of `KINDS` of which no device has a file of results."""
    return [kind for kind in KINDS if all(device.kind != kind for device in devices)]


def parts_of(record: dict) -> dict[str | None, list[dict]]:
    """A case's rows by their parts, each part's own contender first; without second timings."""
    parts: dict[str | None, list[dict]] = {}
    for row in record["timings"]:
        if not row["contender"].endswith(harness.again("")):
            parts.setdefault(row["part"], []).append(row)
    return parts


def best_rival(record: dict, rows: Iterable[dict]) -> dict | None:
    """The fastest of a part's rows that is not the package's own."""
    rivals = [row for row in rows if row["contender"] in record["rivals"]]
    return min(rivals, key=lambda row: row["seconds"], default=None)
