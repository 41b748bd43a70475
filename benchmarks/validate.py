"""Everything there is to know about tgan_fast on a machine: whether all is right there, and how fast it is.

    make gpu                                             on the GPU, in ten minutes
    python -m benchmarks.validate --minutes 30 --out runs/validation
    python -m benchmarks.validate --device cpu --minutes 3

Parts run in the order of their worth, each in a process of its own with a time limit of its own, so that a crash, a
hang or an illegal access costs that part alone: short checks against float64, the tests that need a GPU, the package's
own figures and a minute of training, rivals, and more training for as long as there is time. On a CPU the same parts
run in small, to show that they do.

The folder of results gets `validation.md`, a page for people; `validation.json`, the same for programs; `own.json` and
`rivals.json`, files of results as in benchmarks/results; a log of each part; and the run folder of the training.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from benchmarks import results, table
from benchmarks.checks import CHECKS
from benchmarks.results import NOT_MEASURED, Goal
from benchmarks.sections import SECTIONS
from benchmarks.suite import resolve_device
from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically
from tgan_fast.reports.recorded_run import read_stats

ROOT = Path(__file__).resolve().parent.parent
SHORTEST = 5  # seconds; a part that would get less is not begun
SECONDS_TO_SAVE = 30  # of a training that is stopped
SECONDS_TO_DUMP = 3  # of a process that hangs, to say where
WHY = 3  # lines of a log that say why
MOST_FAILURES = 8  # of a part, on the page
PRINTED = 60  # lines
# Tests that run at the same time on a GPU: each process takes half a gigabyte of its memory.
MOST_PROCESSES = 8

PASSED, FAILED, CRASHED, TIMED_OUT, CUT, NOT_REACHED = (
    "passed", "FAILED", "CRASHED", "TIMED OUT", "cut off", "not reached"
)  # fmt: skip
BAD = (FAILED, CRASHED, TIMED_OUT)


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: of the part, and of its log.
        command: arguments of Python.
        seconds: its time limit.
        trains: it goes on until its time limit, when SIGTERM makes it save and end.
        file: that it writes, in the folder of results: JSON of a check, JUnit's XML of tests, or a file of results.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    trains: bool = False
    file: str | None = None


@dataclass
class Outcome:
    """What became of a part.

    Attributes:
        verdict: one of the constants above.
        seconds: that it took.
        text: what it found, in a line.
        why: lines about what is wrong.
    """

    part: str
    verdict: str = NOT_REACHED
    seconds: float = 0.0
    text: str = ""
    why: list[str] = field(default_factory=list)


def parts_for(device: str, out: Path) -> list[Part]:
    """All parts, the most worthy first."""
    on_gpu = device == "cuda"

    def check(name):
        seconds = 120 if on_gpu else 60
        command = ("-m", "benchmarks.checks", name, "--device", device, "--out", str(out / f"{name}.json"))
        return Part(f"check {name}", command, seconds, file=f"{name}.json")

    def tests(name, selection, seconds, alone=False):
        command = ["-m", "pytest", "-q", "--maxfail", "60", "--durations", "15", "-p", "no:cacheprovider"]
        command += ["--junitxml", str(out / f"{name}.xml"), *selection]
        if on_gpu and not alone and importlib.util.find_spec("xdist"):
            command += ["-n", str(max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2)))]
        return Part(name, tuple(command), seconds, file=f"{name}.xml")

    def figures(section, seconds, *only, rivals=False):
        file = "rivals.json" if rivals else "own.json"
        command = ["-m", f"benchmarks.{section}", "--device", device, "--out", str(out / file)]
        command += ["--only", *only] if only and on_gpu else []
        command += [] if rivals else ["--own-only"]
        command += [] if on_gpu else ["--smoke"]
        name = f"time {section.removeprefix('bench_').replace('_', ' ')}{' and rivals' if rivals else ''}"
        return Part(name, tuple(command), seconds, file=file)

    def training(name, seconds, *options):
        command = ("-m", "tgan_fast.train", "--out", str(out / "run"), *options)
        return Part(name, command, seconds, trains=True)

    if on_gpu:
        suites = [
            tests("quick tests", ("-m", "gpu and not slow and not alone"), 300),
            tests("slow tests", ("-m", "gpu and slow and not alone"), 240),
            tests("tests alone", ("-m", "gpu and alone"), 180, alone=True),
        ]
    else:
        suites = [tests("quick tests", ("tests/ops/test_registry.py", "tests/test_precision.py"), 60)]
    preset = "paper" if on_gpu else "tiny"
    rivals = [
        figures("bench_step", 400, "step batch 32", rivals=True),
        figures("bench_singular_value_clip", 120, rivals=True),
        figures("bench_batch_norm_act", 240, rivals=True),
        figures("bench_optimizer", 90, rivals=True),
        figures("bench_sampling", 120, rivals=True),
    ]
    return [
        *map(check, CHECKS),
        *suites,
        figures("bench_step", 90, "step batch 32"),
        figures("breakdown", 90),
        figures("bench_singular_value_clip", 90),
        figures("bench_batch_norm_act", 120),
        figures("bench_convolutions", 180),
        figures("bench_optimizer", 60),
        figures("bench_sampling", 60),
        training("training", 60 if on_gpu else 10, "--preset", preset, "--device", device),
        *(rivals if on_gpu else rivals[:1]),
        *([figures("bench_data", 120), figures("bench_startup", 180)] if on_gpu else []),
        training("more training", 3600 if on_gpu else 10, "--resume", str(out / "run")),
    ]


def run_all(parts: Sequence[Part], out: Path, seconds: float) -> list[Outcome]:
    """Run parts one after the other until the time is over; what was found so far is on the page after each."""
    end = time.monotonic() + seconds
    outcomes = [Outcome(part.name) for part in parts]
    for index, part in enumerate(parts):
        left = end - time.monotonic() - (SECONDS_TO_SAVE if part.trains else 0)
        if left < min(SHORTEST, part.seconds):
            continue
        print(f"{index + 1}/{len(parts)} {part.name} …", end=" ", flush=True)
        outcomes[index] = outcome = run(part, out, min(left, part.seconds))
        print(f"{outcome.verdict}, {outcome.seconds:.0f} s", flush=True)
        write(out, outcomes, seconds)
    return outcomes


def run(part: Part, out: Path, seconds: float) -> Outcome:
    """Run one part, for so many seconds at most."""
    log = log_of(out, part.name)
    log.parent.mkdir(exist_ok=True)
    caches = {"TRITON_CACHE_DIR": str(out / "triton"), **os.environ}
    environment = {**caches, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    begin = time.monotonic()
    with log.open("w") as lines:
        # In a session of its own, which can be ended as a whole.
        process = subprocess.Popen(
            [sys.executable, *part.command], cwd=ROOT, env=environment, stdout=lines, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = wait(process, part, seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    taken = time.monotonic() - begin
    if code is None:
        verdict = TIMED_OUT if seconds == part.seconds else CUT
    else:
        verdict = PASSED if code == 0 else CRASHED if code < 0 else FAILED
    try:
        text, why = found_in(part, out)
    except (OSError, ValueError, LookupError, TypeError, ET.ParseError, InputError, SystemExit) as error:
        # A process that was ended may leave half a file.
        text, why = "", [f"what it wrote cannot be read: {error}"]
    if verdict in BAD and not why:
        why = last_lines(log)
    if verdict == CRASHED:
        why.insert(0, f"ended by {signal.Signals(-code).name}")
    if verdict == TIMED_OUT:
        why.insert(0, f"not done after {seconds:.0f} s")
    return Outcome(part.name, verdict, round(taken, 1), text, why)


def wait(process: subprocess.Popen, part: Part, seconds: float) -> int | None:
    """The exit code; None of a process that did not end, which was told to write where it is into its log."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM if part.trains else signal.SIGABRT)
    try:
        code = process.wait(SECONDS_TO_SAVE if part.trains else SECONDS_TO_DUMP)
    except subprocess.TimeoutExpired:
        return None
    return code if part.trains else None


def log_of(out: Path, name: str) -> Path:
    """Where the output of a part is."""
    return out / "logs" / f"{name.replace(' ', '-')}.log"


def last_lines(log: Path) -> list[str]:
    """The last lines of a log that say something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return [line[:200] for line in lines if line][-WHY:]


def found_in(part: Part, out: Path) -> tuple[str, list[str]]:
    """What a part found, in a line, and lines about what is wrong."""
    if part.trains:
        return trained(out / "run"), []
    file = None if part.file is None else out / part.file
    if file is None or not file.exists():
        return "", []
    if file.suffix == ".xml":
        return tests_of(file)
    content = json.loads(file.read_text())
    if isinstance(content, list):
        wrong = [f"{result['name']}: {result['text']}" for result in content if not result["ok"]]
        return f"{len(content) - len(wrong)} of {len(content)} right", wrong[:MOST_FAILURES]
    return "", []


def tests_of(file: Path) -> tuple[str, list[str]]:
    """How many tests passed, and those that failed with the first line of why."""
    cases = list(ET.parse(file).iter("testcase"))
    failed, skipped = [], 0
    for case in cases:
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped += case.find("skipped") is not None
        if problem is not None:
            reason = (problem.get("message") or problem.tag).strip().splitlines()[0]
            failed.append(f"{case.get('classname')}::{case.get('name')}: {reason[:200]}")
    more = [f"… and {len(failed) - MOST_FAILURES} more"] if len(failed) > MOST_FAILURES else []
    passed = len(cases) - len(failed) - skipped
    return f"{passed} passed, {len(failed)} failed, {skipped} skipped", failed[:MOST_FAILURES] + more


def trained(folder: Path) -> str:
    """How far a run came, and how fast."""
    losses, _ = read_stats(folder / "stats.jsonl")
    if not losses:
        return ""
    return f"{losses[-1].iteration:,} iterations, {losses[-1].iteration / losses[-1].seconds:.1f} a second"


def sections_in(out: Path) -> dict[str, dict]:
    """The sections of the files of results, by name; those with rivals take the place of those without."""
    return {k: v for name in ("own.json", "rivals.json") for k, v in results.sections_of(out / name).items()}


def goals_in(out: Path) -> list[dict]:
    """All goals, with the section that each belongs to."""
    return [{"section": name, **goal} for name, payload in sections_in(out).items() for goal in payload["goals"]]


def facts_in(out: Path) -> list[str]:
    """What the first check says of the machine."""
    file = out / "environment.json"
    found = json.loads(file.read_text()) if file.exists() else []
    return [f"{result['name']}: {result['text']}" for result in found]


def summary(outcomes: Iterable[Outcome]) -> str:
    """How many parts came to which end."""
    verdicts = [outcome.verdict for outcome in outcomes]
    counts = [(verdicts.count(verdict), verdict) for verdict in dict.fromkeys(verdicts)]
    return ", ".join(f"{count} {verdict}" for count, verdict in counts)


def write(out: Path, outcomes: Sequence[Outcome], seconds: float) -> None:
    """Write the page and its JSON."""
    content = {
        "schema": 1,
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "minutes": seconds / 60,
        "facts": facts_in(out),
        "parts": [asdict(outcome) for outcome in outcomes],
        "goals": goals_in(out),
    }
    write_atomically(out / "validation.json", json.dumps(content, indent=1, ensure_ascii=False).encode())
    write_atomically(out / "validation.md", page(out, outcomes).encode())


def page(out: Path, outcomes: Sequence[Outcome]) -> str:
    """The page, in Markdown."""
    lines = ["# Validation of tgan_fast", "", f"{summary(outcomes)}.", "", *(f"- {fact}" for fact in facts_in(out)), ""]
    lines += ["| part | | s | found |", "| --- | --- | ---: | --- |"]
    lines += [
        f"| {o.part} | {o.verdict} | {o.seconds:.0f} | {_cell(o.text)} |" for o in outcomes if o.verdict != NOT_REACHED
    ]
    bad = [outcome for outcome in outcomes if outcome.why]
    if bad:
        lines += ["", "## What is wrong", ""]
        for outcome in bad:
            lines.append(f"- **{outcome.part}** ([log]({log_of(out, outcome.part).relative_to(out)}))")
            lines += [f"  - `{line}`" for line in outcome.why]
    goals = goals_in(out)
    if goals:
        lines += ["", "## Goals", "", "| | measured | goal | |", "| --- | ---: | ---: | --- |"]
        for goal in goals:
            measured = NOT_MEASURED if goal["measured"] is None else goal["measured"]
            bound = f"{'≤' if goal['at_most'] else '≥'} {goal['bound']}"
            verdict = "" if goal["measured"] is None else goal["verdict"]
            lines.append(f"| {goal['section']}: {goal['text']} | {measured} | {bound} | {verdict} |")
    lines += figures_text(out)
    missing = [outcome.part for outcome in outcomes if outcome.verdict in (NOT_REACHED, CUT)]
    if missing:
        lines += ["", "## Not reached", "", f"The minutes were over before these were done: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def figures_text(out: Path) -> list[str]:
    """Tables of all cases, and what the sections conclude."""
    found, lines = sections_in(out), []
    for section in SECTIONS:
        if section.name in found:
            payload = found[section.name]
            lines += ["", f"## {section.name}: {section.title}", "", "```"]
            for record in payload["cases"]:
                lines += [*table.lines_of(record), *section.details(record)]
            lines += [*section.conclusion(payload), "```"]
    return lines


def _cell(text):
    return text.replace("|", "\\|")


def table_of(out: Path, outcomes: Sequence[Outcome]) -> list[str]:
    """What is printed at the end: parts, why they failed, goals that were measured; 60 lines at most."""
    lines = [f"{o.part:32}{o.verdict:12}{o.seconds:6.0f} s  {o.text}".rstrip() for o in outcomes]
    for outcome in outcomes:
        lines += [f"  {outcome.part}: {why}" for why in outcome.why]
    goals = [goal for goal in goals_in(out) if goal["measured"] is not None]
    lines += [f"{goal['section']}: {Goal(*(goal[name] for name in Goal._fields))}" for goal in goals]
    last = f"{summary(outcomes)}; the page is {out / 'validation.md'}"
    if len(lines) > PRINTED - 1:
        lines = [*lines[: PRINTED - 2], "… the rest is on the page"]
    return [*lines, last]


def main(
    minutes: float = 10.0,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Check, test and measure tgan_fast on this machine; exit code 1 if anything is wrong.

    Args:
        minutes: that it may take. What is not reached by then is said.
        out: folder of the results, new or empty; by default a new one in runs/.
        device: where to run; auto: on a GPU if there is one. A CPU runs the same in small.
    """
    if minutes <= 0:
        raise SystemExit(f"error: --minutes is {minutes:g}: choose more than 0")
    device = resolve_device(device)
    out = (out or Path("runs", f"validation-{time.strftime('%Y%m%d-%H%M%S')}")).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SystemExit(f"error: {out} is not empty: choose another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    outcomes = run_all(parts_for(device, out), out, 60 * minutes)
    print("", *table_of(out, outcomes), sep="\n")
    sys.exit(any(outcome.verdict in BAD for outcome in outcomes))


if __name__ == "__main__":
    tyro.cli(main)
