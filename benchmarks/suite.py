"""Sections of benchmarks, and how they are run: from the command line, by pytest, at another revision.

A section has cases; a case has contenders that first are compared with the truth, and then take turns. A case's record
is what goes into the file of results:

    case        its name
    timings     one row for each contender and part: seconds, p10, p90, method; `ratio`, how many times as long as the
                part's first contender it takes; where the case declares its work also flops, bytes, floor_seconds,
                what the ceilings allow at best, and share_of_floor; and what the section adds
    rivals      those of its contenders that are not the package's own
    left_out    contenders that could not run or compute something else, and why
    flags       why its timings are not to be trusted
    state       clocks, power and temperature while it was timed
"""

import gc
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks import compare, harness, results, table
from benchmarks.ceilings import Ceilings, Work
from benchmarks.device_state import Watch
from benchmarks.harness import Timing
from benchmarks.results import Goal, Label, rounded
from tgan_fast.cuda_graph import capture_failure, empty_cache
from tgan_fast.ops import cuda_extension
from tgan_fast.precision import Precision

SMOKE_ROUNDS = 2
# The first contender is timed twice. Where it differs more from itself, so may everything else.
LARGEST_SPREAD = 0.1


class Run:
    """One run of some sections on a device.

    Args:
        device: "cpu" or "cuda".
        smoke: only show that everything runs, in some seconds.
        own_only: leave rivals out of the timing, not out of the check.

    Attributes:
        ceilings: what the device reaches, measured in this run.
        rivals: names of a case's contenders that are not the package's own.
        watch: to be entered by what is timed otherwise than by `measure`.
    """

    def __init__(self, device: str, *, smoke: bool = False, own_only: bool = False):
        self.device, self.smoke, self.own_only = device, smoke, own_only
        self.ceilings = Ceilings(device)
        self.rivals: set[str] = set()
        self.watch = Watch(device)

    def measure(
        self,
        contenders: Mapping[str, Callable],
        input_sets: Sequence,
        rounds: int | None = None,
        *,
        rivals: Iterable[str] = (),
        **options,
    ) -> dict[str, Timing]:
        """`harness.measure` on this device, watched; `rivals` are those contenders that are not the package's own."""
        self.rivals.update(rivals)
        if self.own_only:
            contenders = {name: call for name, call in contenders.items() if name not in set(rivals)}
        with self.watch:
            return harness.measure(
                contenders, input_sets, self.device, SMOKE_ROUNDS if self.smoke else rounds, **options
            )

    def input_set_count(self, nbytes: int) -> int:
        """`harness.input_set_count` on this device; two in a smoke run."""
        return 2 if self.smoke else harness.input_set_count(nbytes, self.device)

    def row(
        self,
        label: Label,
        timing: Timing,
        work: Work | None = None,
        precision: Precision = "fp32",
        **more: Any,
    ) -> dict:
        """Of a case's timings.

        Args:
            label: whose it is.
            timing: what was measured.
            work: what a call needs at least, whatever the contender does.
            precision: of its operations.
            more: what else the row shall hold.
        """
        row = {"contender": label.contender, "part": label.part, **timing.record(), "rounds": timing.rounds}
        if work is not None:
            floor = self.ceilings.floor(work, precision)
            row |= {"flops": rounded(work.flops), "bytes": rounded(work.nbytes), "floor_seconds": rounded(floor)}
            row["share_of_floor"] = rounded(floor / timing.median)
        return row | more

    def rows(
        self,
        timings: Mapping[str, Timing],
        part: str | None = None,
        work: Work | None = None,
        precision: Precision = "fp32",
        more: Callable[[str], dict] = lambda name: {},
    ) -> list[dict]:
        """A row for each of `timings`; `more` tells what else that of a contender shall hold."""
        return [self.row(Label(name, part), timing, work, precision, **more(name)) for name, timing in timings.items()]


@dataclass(frozen=True)
class Section:
    """Cases that are measured in the same way.

    Attributes:
        name: in files of results and for `--only`.
        title: for people.
        cases: those of a run, the most important first; each has a name by str().
        calls: for pytest-benchmark, what makes a call without arguments, by contender; none where it makes no sense.
        measure: checks and times a case; returns its record, but for `case`, `ratio`, `flags` and `state`.
        details: what is to be said below a case's table.
        conclude: what the section's records say together, if anything; goes into the file of results.
        conclusion: what is to be said of it at the end.
        goals: of a device; without a measurement where there is no record.
    """

    name: str
    title: str
    cases: Callable[[Run], Sequence]
    measure: Callable[[Run, Any], dict]
    calls: Callable[[Run, Any], dict[str, Callable[[], Callable[[], Any]]]] = lambda run, case: {}
    details: Callable[[dict], Iterable[str]] = lambda record: ()
    conclude: Callable[[Run, list[dict]], dict] = lambda run, records: {}
    conclusion: Callable[[dict], Iterable[str]] = lambda payload: ()
    goals: Callable[[list[dict], str], list[Goal]] = lambda records, device: []


class Suite:
    """Runs cases, each once, and keeps their records.

    Args:
        run: where and how.
        path: of the file of results, written after every case; None: nothing is written.
    """

    def __init__(self, run: Run, path: Path | None = None):
        self.run, self.path = run, path
        self._records: dict[str, dict[str, dict]] = {}
        self._begin = time.perf_counter()

    def record(self, section: Section, case: Any) -> dict:
        """The record of a case, measured if it was not before.

        Raises:
            SystemExit: what the package computes is wrong; nothing is timed.
        """
        records = self._records.setdefault(section.name, {})
        if str(case) not in records:
            records[str(case)] = self._measured(section, case)
            if self.path is not None:
                results.write(section.name, self.payload(section), self.run.device, self.path)
        return records[str(case)]

    def payload(self, section: Section) -> dict:
        """What goes into the file of results of the cases so far."""
        records = list(self._records[section.name].values())
        goals = section.goals(records, self.run.device)
        return {
            "title": section.title,
            "ceilings": self.run.ceilings.record(),
            **section.conclude(self.run, records),
            "goals": [goal.record() for goal in goals],
            "cases": [_without_rounds(record) for record in records],
        }

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._begin

    def _measured(self, section, case):
        begin = time.perf_counter()
        self.run.watch.take()
        self.run.rivals.clear()
        try:
            record = section.measure(self.run, case)
        finally:
            # What a case leaves in memory is the next one's problem otherwise.
            gc.collect()
            if self.run.device == "cuda":
                empty_cache()
        timings = _with_ratios(record["timings"])
        state = self.run.watch.take()
        flags = [*state["flags"], *spread_flags(timings)]
        if capture_failure() is not None:
            flags.append(f"timed without CUDA graphs from some time on, because a capture failed: {capture_failure()}")
        return {
            "case": str(case),
            **record,
            "timings": timings,
            "rivals": [name for name in dict.fromkeys(row["contender"] for row in timings) if name in self.run.rivals],
            "flags": flags,
            "state": state["summary"],
            "wall_seconds": rounded(time.perf_counter() - begin),
        }


def spread_flags(timings: list[dict]) -> list[str]:
    """A flag for every part of which the first contender is too far from itself."""
    seconds = {Label.of(row): row["seconds"] for row in timings}
    flags = []
    for label, first in seconds.items():
        second = seconds.get(label._replace(contender=harness.again(label.contender)))
        if second is not None and abs(second - first) > LARGEST_SPREAD * min(first, second):
            percent = 100 * abs(second - first) / min(first, second)
            flags.append(f"{label} measured twice differs by {percent:.0f} %")
    return flags


def _with_ratios(rows):
    first = {}
    for row in rows:
        first.setdefault(row["part"], row["seconds"])
    return [row | {"ratio": rounded(row["seconds"] / first[row["part"]])} for row in rows]


def _without_rounds(record):
    rows = [{key: value for key, value in row.items() if key != "rounds"} for row in record["timings"]]
    return record | {"timings": rows}


def chosen(sections: Iterable[Section], run: Run, only: Sequence[str] = ()) -> Iterator[tuple[Section, list]]:
    """The sections and those of their cases in whose names, together, one of the texts of `only` is; all without it."""
    for section in sections:
        names = {str(case): case for case in section.cases(run)}
        cases = [case for name, case in names.items() if not only or any(t in f"{section.name} {name}" for t in only)]
        if cases:
            yield section, cases


def run_sections(sections: Iterable[Section], suite: Suite, only: Sequence[str] = ()) -> list[str]:
    """Run and print; returns what failed. A case that fails leaves the others alone."""
    failed = []
    for section, cases in chosen(sections, suite.run, only):
        print(f"\n=== {section.name}: {section.title}")
        done = False
        for case in cases:
            try:
                record = suite.record(section, case)
            except (Exception, SystemExit) as error:
                if not isinstance(error, SystemExit):
                    traceback.print_exc()
                failed.append(f"{section.name}, {case}: {harness.first_line(error).removeprefix('error: ')}")
                print(f"FAILED {failed[-1]}", flush=True)
                continue
            done = True
            print("", *table.lines_of(record), *section.details(record), sep="\n", flush=True)
        if done:
            payload = suite.payload(section)
            print("", *section.conclusion(payload), *table.goals_of(payload), sep="\n")
            print(f"({sum(case['wall_seconds'] for case in payload['cases']):.0f} s)", flush=True)
    return failed


@dataclass
class Options:
    """Run benchmarks, print their tables, and write what was measured to benchmarks/results."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto: on a GPU if there is one."""
    smoke: bool = False
    """Only show that everything runs, with small tensors, and write nothing."""
    only: tuple[str, ...] = ()
    """Run only cases that have one of these texts in "section case", and write nothing."""
    own_only: bool = False
    """Time what the package does and no rivals, and write nothing."""
    out: Path | None = None
    """Write to this file, whatever is run."""
    compare: str | None = None
    """A git revision: run what the package does at it and in this working tree in turns, and compare."""


def resolve_device(device: str) -> str:
    """ "cpu" or "cuda".

    Raises:
        SystemExit: there is no GPU, and one was asked for.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: PyTorch sees no GPU here: choose --device cpu")
    return "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")


def refuse_without_extension(device: str) -> None:
    """Raise SystemExit on a GPU without the CUDA extension: a slow backend would be timed under the package's name."""
    reason = cuda_extension.why_not(torch.device(device)) if device == "cuda" else None
    if reason is not None:
        raise SystemExit(f"error: these would not be tgan_fast's own figures: {reason}")


def say_what_is_stale() -> None:
    """What is left to do when one section of the device's file of results is new."""
    print("python -m benchmarks.report brings it into the tables and pictures")


def main(*sections: Section, finish: Callable[[], None] = say_what_is_stale) -> None:
    """The command line of some sections.

    Args:
        sections: to choose from.
        finish: called when the device's file of results has been written.
    """
    options = tyro.cli(Options)
    device = resolve_device(options.device)
    if options.compare is not None:
        compare.main(options.compare, device, options.only, options.smoke)
        return
    refuse_without_extension(device)
    run = Run(device, smoke=options.smoke, own_only=options.own_only)
    if not list(chosen(sections, run, options.only)):
        names = ", ".join(section.name for section in sections)
        raise SystemExit(f"error: no case has {' or '.join(options.only)} in its name; there are the sections {names}")
    whole = not (options.smoke or options.only or options.own_only)
    path = options.out or (results.file_of(device) if whole else None)
    suite = Suite(run, path)
    print(f"{results.device_name(device)}, torch {torch.__version__}")
    if whole:
        run.ceilings.measure(harness.precisions_for(device))
        print(run.ceilings)
    failed = run_sections(sections, suite, options.only)
    print(f"\n{suite.seconds:.0f} s in all")
    if path is not None:
        print(f"written to {path}")
    if whole and options.out is None:
        finish()
    if failed:
        raise SystemExit("\n".join(["error: some cases failed:", *failed]))
