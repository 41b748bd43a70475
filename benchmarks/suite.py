"""Benchmark sections and their command line.

A section's cases have contenders, which are compared with the truth and then timed in turns. The record of a case:

    timings     a row for each contender and part: seconds, p10, p90, method; ratio to the part's first contender; with
                declared work also flops, bytes, floor_seconds and share_of_floor; and what the section adds
    rivals      contenders that are not the package's own
    left_out    contenders that cannot run or compute something else, and the reasons
    flags       reasons not to trust the timings
    state       clocks, power and temperature of the GPU, or the shares of the CPUs that others took
"""

import gc
import multiprocessing
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks import compare, formatting, harness, result_files
from benchmarks.ceilings import Ceilings, Work
from benchmarks.device_state import CpuWatch, GpuWatch
from benchmarks.harness import Timing
from benchmarks.result_files import Goal, Label, rounded
from tgan_fast import allocator
from tgan_fast.cuda_graph import capture_failure, empty_cache
from tgan_fast.ops import cuda_extension
from tgan_fast.precision import Precision

SMOKE_ROUNDS = 2
LARGEST_SPREAD = 10  # percent, between both timings of the first contender


class Run:
    """One run on a device, "cpu" or "cuda"; `smoke` and `own_only` are those of `Options`.

    With `rivals_only`, no contender of the package's own is timed where there are rivals.
    """

    def __init__(self, device: str, *, smoke: bool = False, own_only: bool = False, rivals_only: bool = False):
        self.device, self.smoke, self.own_only, self.rivals_only = device, smoke, own_only, rivals_only
        self.ceilings = Ceilings(device)
        self.rivals: set[str] = set()  # of the case in progress
        self.watch = GpuWatch() if device == "cuda" else CpuWatch()  # also covers work that `measure` does not time

    def measure(self, contenders, input_sets, rounds=None, *, rivals=(), device=None, **options) -> dict[str, Timing]:
        """Call `harness.measure`, watched; `rivals` names contenders that are not the package's own."""
        self.rivals.update(rivals)
        if self.own_only:
            contenders = {name: call for name, call in contenders.items() if name not in set(rivals)}
        if self.rivals_only and rivals:
            contenders = {name: call for name, call in contenders.items() if name in set(rivals)}
        rounds = SMOKE_ROUNDS if self.smoke else rounds
        with self.watch:
            return harness.measure(contenders, input_sets, device or self.device, rounds, **options)

    def input_set_count(self, nbytes: int) -> int:
        """Return `harness.input_set_count` on this device; two in a smoke run."""
        return 2 if self.smoke else harness.input_set_count(nbytes, self.device)

    def row(
        self, label: Label, timing: Timing, work: Work | None = None, precision: Precision = "fp32", **more: Any
    ) -> dict:
        """Return a row of a case's timings; `work` is the least work of a call, for any contender."""
        times = {"seconds": timing.median, "p10": timing.p10, "p90": timing.p90}
        row = label._asdict() | {name: rounded(value) for name, value in times.items()} | {"method": timing.method}
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
        """Return a row for each timing; `more` gives further entries for a contender."""
        return [self.row(Label(name, part), timing, work, precision, **more(name)) for name, timing in timings.items()]


@dataclass(frozen=True)
class Section:
    """Cases that are measured in the same way."""

    name: str  # in files of results and for `--only`
    title: str  # says what is measured
    cases: Callable[[Run], Sequence]  # the most important first; str() names each
    measure: Callable[[Run, Any], dict]  # checks and times a case; returns `timings`, `left_out`, and what it adds
    # For pytest-benchmark: makers of a call without arguments, by part and contender.
    calls: Callable[[Run, Any], dict[str, Callable[[], Callable[[], Any]]]] = lambda run, case: {}
    details: Callable[[dict], Iterable[str]] = lambda record: ()  # lines below a case's table
    conclude: Callable[[Run, list[dict]], dict] = lambda run, records: {}  # entries of the file of results
    conclusion: Callable[[dict], Iterable[str]] = lambda payload: ()  # lines at the section's end
    # Goals for a device; without a measurement where there is no record.
    goals: Callable[[list[dict], str], list[Goal]] = lambda records, device: []
    # Whether rivals on a CPU are timed twice: with the default allocator, and with kept memory as the package has.
    both_ways: bool = False


class Suite:
    """Runner of cases that keeps their records and writes them to `path`, if there is one, after every case.

    With `keeps_memory`, `allocator.keep_memory` was called in this process.
    """

    def __init__(self, run: Run, path: Path | None = None, *, keeps_memory: bool = False):
        self.run, self.path, self.keeps_memory = run, path, keeps_memory
        self.records: dict[str, list[dict]] = defaultdict(list)  # by section

    def record(self, section: Section, case: Any) -> dict:
        """Measure a case and return its record."""
        begin = time.perf_counter()
        self.run.watch.take()
        self.run.rivals.clear()
        try:
            record = section.measure(self.run, case)
        finally:
            # Memory of this case is released, so that the next case does not find it in use.
            gc.collect()
            empty_cache()
        state, flags = self.run.watch.take()
        flags += spread_flags(record["timings"])
        if capture_failure() is not None:
            flags.append(f"timed without CUDA graphs from some time on, because a capture failed: {capture_failure()}")
        if section.both_ways and self.keeps_memory and not self.run.own_only:
            flags += self._add_rivals_as_run(section, case, record)
        first: dict[str | None, float] = {}
        for row in record["timings"]:
            row["ratio"] = rounded(row["seconds"] / first.setdefault(row["part"], row["seconds"]))
        rivals = sorted(self.run.rivals & {row["contender"] for row in record["timings"]})
        wall = rounded(time.perf_counter() - begin)
        record = {"case": str(case), **record, "rivals": rivals, "flags": flags, "state": state, "wall_seconds": wall}
        self.records[section.name].append(record)
        if self.path is not None:
            result_files.write_section(section.name, self.payload(section), self.run.device, self.path)
        return record

    def _add_rivals_as_run(self, section, case, record) -> list[str]:
        """Add to a record the timings of rivals with PyTorch's default allocator, and return their flags."""
        arguments = section.name, str(case), self.run.smoke, self.run.ceilings
        other = self._other_process.submit(measure_rivals, *arguments).result()
        as_run, rows, rivals = {Label.of(row): row for row in other["timings"]}, [], sorted(self.run.rivals)
        for row in record["timings"]:
            if row["contender"] in rivals:
                rows += filter(None, [as_run.get(Label.of(row))])
                row["contender"] = memory_kept(row["contender"])
            rows.append(row)
        record["timings"] = rows
        self.run.rivals.update(map(memory_kept, rivals))
        return [f"rivals as people run them: {flag}" for flag in other["flags"]]

    @cached_property
    def _other_process(self):
        # One process serves all cases: like a training process, it has already freed tensors of many sizes.
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def payload(self, section: Section) -> dict:
        """Return the cases so far as entries of the file of results."""
        records = self.records[section.name]
        return {
            "title": section.title,
            "ceilings": self.run.ceilings.record(),
            **section.conclude(self.run, records),
            "goals": [goal.record() for goal in section.goals(records, self.run.device)],
            "cases": records,
        }


def memory_kept(name: str) -> str:
    """Return the name of a rival in a process that keeps its memory."""
    return f"{name}, memory kept"


def measure_rivals(section_name: str, case_name: str, smoke: bool, ceilings: Ceilings) -> dict:
    """Return the record of a case on a CPU in which only rivals are timed, without kept memory."""
    from benchmarks.sections import SECTIONS

    run = Run("cpu", smoke=smoke, rivals_only=True)
    run.ceilings = ceilings
    (section,) = (each for each in SECTIONS if each.name == section_name)
    (case,) = (each for each in section.cases(run) if str(each) == case_name)
    return Suite(run).record(section, case)


def spread_flags(timings: list[dict]) -> list[str]:
    """Return a flag for every part whose first contender differs too much between its two timings."""
    seconds = {str(Label.of(row)): row["seconds"] for row in timings}
    pairs = {name: (first, seconds.get(harness.again(name), first)) for name, first in seconds.items()}
    spreads = {name: 100 * (max(pair) / min(pair) - 1) for name, pair in pairs.items()}
    return [f"{name} measured twice differs by {x:.0f} %" for name, x in spreads.items() if x > LARGEST_SPREAD]


def chosen(sections: Iterable[Section], run: Run, only: Sequence[str] = ()) -> Iterator[tuple[Section, list]]:
    """Yield sections and their cases: all, or those with one of the texts of `only` in "section case"."""
    for section in sections:
        cases = [case for case in section.cases(run) if not only or any(t in f"{section.name} {case}" for t in only)]
        if cases:
            yield section, cases


def run_sections(sections: Iterable[Section], suite: Suite, only: Sequence[str] = ()) -> list[str]:
    """Run and print sections, and return the failed cases, which do not stop the others."""
    failed = []
    for section, cases in chosen(sections, suite.run, only):
        print(f"\n=== {section.name}: {section.title}")
        for case in cases:
            try:
                record = suite.record(section, case)
                print("", *formatting.lines_of(record), *section.details(record), sep="\n", flush=True)
            except (Exception, SystemExit) as error:
                if not isinstance(error, SystemExit):
                    traceback.print_exc()
                failed.append(f"{section.name}, {case}: {harness.short_reason(error).removeprefix('error: ')}")
                print(f"FAILED {failed[-1]}", flush=True)
        if suite.records[section.name]:
            payload = suite.payload(section)
            print("", *section.conclusion(payload), *formatting.goals_of(payload), sep="\n")
            print(f"({sum(record['wall_seconds'] for record in payload['cases']):.0f} s)", flush=True)
    return failed


@dataclass
class Options:
    """Run benchmarks, print their tables, and write the measurements to benchmarks/results."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto: a GPU if there is one."""
    smoke: bool = False
    """Check that everything runs, with small tensors; write nothing."""
    only: tuple[str, ...] = ()
    """Run only cases with one of these texts in "section case"; write nothing."""
    own_only: bool = False
    """Time only the package and no rivals; write nothing."""
    out: Path | None = None
    """File of results to write, for any selection of cases."""
    compare: str | None = None
    """Git revision to compare with: the package at the revision and in this working tree take turns."""


def choose_device(device: str) -> str:
    """Return "cpu" or "cuda"; raise SystemExit if a GPU is requested and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: PyTorch sees no GPU here: choose --device cpu")
    return "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")


def refuse_without_extension(device: str) -> None:
    """Raise SystemExit on a GPU without the CUDA extension: a slow backend would be timed under the package's name."""
    reason = cuda_extension.why_not(torch.device(device)) if device == "cuda" else None
    if reason is not None:
        raise SystemExit(f"error: these would not be tgan_fast's own figures: {reason}")


def say_what_is_stale() -> None:
    """Print the command that updates the tables and pictures with new results."""
    print("run python -m benchmarks.render to update the tables and pictures")


def main(*sections: Section, finish: Callable[[], None] = say_what_is_stale) -> None:
    """Run the command line of some sections; call `finish` when the device's file of results is written."""
    options = tyro.cli(Options)
    device = choose_device(options.device)
    if options.compare is not None:
        compare.main(options.compare, device, options.only, options.smoke)
        return
    refuse_without_extension(device)
    # The package's commands keep memory, so this comes before any measurement.
    keeps_memory = device == "cpu" and allocator.keep_memory()
    run = Run(device, smoke=options.smoke, own_only=options.own_only)
    if not list(chosen(sections, run, options.only)):
        names = ", ".join(section.name for section in sections)
        raise SystemExit(f"error: no case has {' or '.join(options.only)} in its name; there are the sections {names}")
    whole = not (options.smoke or options.only or options.own_only)
    path = options.out or (result_files.file_of(device) if whole else None)
    print(f"{result_files.device_name(device)}, torch {torch.__version__}")
    if whole:
        for name in ("copy", *harness.precisions_for(device)):
            run.ceilings.rate(name)
        print(formatting.ceilings_text(run.ceilings.record()))
    failed = run_sections(sections, Suite(run, path, keeps_memory=keeps_memory), options.only)
    if path is not None:
        print(f"\nwritten to {path}")
    if whole and options.out is None:
        finish()
    if failed:
        raise SystemExit("\n".join(["error: some cases failed:", *failed]))
