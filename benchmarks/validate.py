"""Check, test and measure tgan_fast on this machine: is everything right here, and how fast is it?

    make gpu                                                            # on the GPU, in ten minutes
    python -m benchmarks.validate --minutes 30 --out runs/validation
    python -m benchmarks.validate --minutes 5 --only time training      # figures only
    python -m benchmarks.validate --device cpu --minutes 3

The most important parts run first: short checks against float64, the tests that need a GPU, benchmarks of tgan_fast
alone, a minute of training, benchmarks against rivals, and more training for as long as there is time. Each part runs
in a process of its own with a time limit of its own, so that a crash, a hang or an illegal access affects only that
part. A CPU runs small versions of most parts, to show that they work.

The folder of results contains `validation.md`, a page for people; `validation.json`, the same for programs; `own.json`
and `rivals.json`, result files like those in benchmarks/results; results and a log of each part; and the training's run
folder.
"""

import contextlib
import importlib.util
import json
import math
import os
import resource
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
from benchmarks.report import chapters, markdown
from benchmarks.results import Goal, Label
from benchmarks.sections import SECTIONS
from benchmarks.suite import resolve_device
from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically
from tgan_fast.reports.recorded_run import read_stats

ROOT = Path(__file__).resolve().parent.parent
SHORTEST = 5  # seconds; a part that would get less does not start
SECONDS_TO_SAVE = 30  # for a training run that is asked to stop
SECONDS_TO_REPORT = 15  # for tests that are interrupted, to write their results
SECONDS_TO_DUMP = 3  # for a process that hangs, to write its traceback
WHY = 3  # last lines of a log, shown where nothing else tells what failed
MOST_FAILURES = 8  # shown for one part
PRINTED = 60  # lines of the final table
# Each test process takes half a gigabyte of the GPU's memory.
MOST_PROCESSES = 8

PASSED, FAILED, CRASHED, TIMED_OUT, CUT, NOT_REACHED = (
    "passed", "FAILED", "CRASHED", "TIMED OUT", "cut off", "not reached"
)  # fmt: skip
BAD = (FAILED, CRASHED, TIMED_OUT)
LEGEND = (
    "TIMED OUT is a part that exceeded its own time limit. A part was cut off or not reached when the time for all of "
    "them was over."
)
INTERRUPTED = 130


@dataclass(frozen=True)
class Part:
    """One process of the validation.

    Attributes:
        name: Name of the part and of its log.
        command: Arguments of Python.
        seconds: Time limit.
        trains: Whether it runs until the time limit, when SIGTERM asks it to save and exit.
        file: File it writes into the folder of results: a check's JSON, JUnit XML or a result file.
        section: Section of the result file.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    trains: bool = False
    file: str | None = None
    section: str | None = None


@dataclass
class Outcome:
    """Result of a part.

    Attributes:
        part: Name of the part.
        verdict: One of the constants above.
        seconds: Time it took.
        text: Summary in one line.
        why: Lines that say what is wrong.
    """

    part: str
    verdict: str = NOT_REACHED
    seconds: float = 0.0
    text: str = ""
    why: list[str] = field(default_factory=list)


def parts_for(device: str, out: Path) -> list[Part]:
    """Return all parts, the most important first."""
    on_gpu = device == "cuda"

    def check(name):
        seconds = 120 if on_gpu else 60
        command = ("-m", "benchmarks.checks", name, "--device", device, "--out", str(out / f"{name}.json"))
        return Part(f"check {name}", command, seconds, file=f"{name}.json")

    def tests(name, selection, seconds, alone=False):
        file = f"{name.replace(' ', '-')}.xml"
        command = ["-m", "pytest", "-q", "--maxfail", "60", "--durations", "15", "-p", "no:cacheprovider"]
        # The log gets the traceback of a test that hangs.
        command += ["-o", "faulthandler_timeout=90", "--junitxml", str(out / file), *selection]
        if on_gpu and not alone and importlib.util.find_spec("xdist"):
            command += ["-n", str(max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2)))]
        return Part(name, tuple(command), seconds, file=file)

    def figures(section, seconds, *only, rivals=False):
        file = "rivals.json" if rivals else "own.json"
        command = ["-m", f"benchmarks.{section}", "--device", device, "--out", str(out / file)]
        command += ["--only", *only] if only and on_gpu else []
        command += [] if rivals else ["--own-only"]
        command += [] if on_gpu else ["--smoke"]
        section = section.removeprefix("bench_")
        name = f"time {section.replace('_', ' ')}{' and rivals' if rivals else ''}"
        return Part(name, tuple(command), seconds, file=file, section=section)

    def training(name, seconds, *options):
        command = ("-m", "tgan_fast.train", "--out", str(out / "run"), *options)
        return Part(name, command, seconds, trains=True)

    if on_gpu:
        suites = [
            tests("quick tests", ("-m", "gpu and not slow and not alone"), 300),
            tests("slow tests", ("-m", "gpu and slow and not alone"), 120),
            tests("lone tests", ("-m", "gpu and alone"), 120, alone=True),
        ]
    else:
        suites = [tests("quick tests", ("tests/ops/test_registry.py", "tests/test_precision.py"), 60)]
    preset = "paper" if on_gpu else "tiny"
    rivals = [
        figures("bench_step", 500, "step batch 32", rivals=True),
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
    """Run parts one after the other until the time is over or Ctrl-C, and update the page after each."""
    end = time.monotonic() + seconds
    outcomes = [Outcome(part.name) for part in parts]
    write(out, outcomes, seconds)
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
    """Run one part for at most `seconds` seconds."""
    log = log_of(out, part.name)
    log.parent.mkdir(exist_ok=True)
    caches = {"TRITON_CACHE_DIR": str(out / "triton"), **os.environ}
    environment = {**caches, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    begin = time.monotonic()
    with log.open("w") as lines:
        # In a session of its own, so that its children can be killed with it.
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
        # A process that was killed may leave half a file.
        text, why = "", [f"its results cannot be read: {error}", *last_lines(log)]
    if verdict in BAD and not why:
        why = last_lines(log) or [f"exit code {code}"]
    if verdict == CRASHED:
        why.insert(0, f"ended by {signal.Signals(-code).name}")
    if verdict == TIMED_OUT:
        why.insert(0, f"not done after {seconds:.0f} s")
    if verdict in (TIMED_OUT, CUT) and text:
        text = f"so far: {text}"
    return Outcome(part.name, verdict, round(taken, 1), text, why)


def wait(process: subprocess.Popen, part: Part, seconds: float) -> int | None:
    """Return the exit code, or None if the process ran too long.

    It is then asked to write its traceback, and tests their results.
    """
    asked = [(signal.SIGABRT, SECONDS_TO_DUMP)]
    if part.trains:
        asked.insert(0, (signal.SIGTERM, SECONDS_TO_SAVE))
    elif part.file is not None and part.file.endswith(".xml"):
        asked.insert(0, (signal.SIGINT, SECONDS_TO_REPORT))
    code = _ended(process, seconds)
    late = code is None
    for number, grace in asked:
        if code is None:
            process.send_signal(number)
            code = _ended(process, grace)
    return code if not late or (part.trains and code != -signal.SIGABRT) else None


def _ended(process, seconds):
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def log_of(out: Path, name: str) -> Path:
    """Return the path of a part's log."""
    return out / "logs" / f"{name.replace(' ', '-')}.log"


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log that are not empty."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return [line[:200] for line in lines if line][-WHY:]


def found_in(part: Part, out: Path) -> tuple[str, list[str]]:
    """Return a part's summary in one line, and lines that say what is wrong."""
    if part.trains:
        return trained(out / "run"), []
    file = None if part.file is None else out / part.file
    if file is None or not file.exists():
        return "", []
    if file.suffix == ".xml":
        return tests_of(file)
    if part.section is not None:
        return headline_of(results.sections_of(file).get(part.section)), []
    content = json.loads(file.read_text())
    wrong = [f"{result['name']}: {result['text']}" for result in content if not result["ok"]]
    return f"{len(content) - len(wrong)} of {len(content)} right", wrong[:MOST_FAILURES]


def headline_of(section: dict | None) -> str:
    """Return the first timing of a section's first case, and its ratio to the best rival."""
    if section is None or not section["cases"]:
        return ""
    record = section["cases"][0]
    first, *others = record["timings"]
    text = f"{record['case']}: {Label.of(first)} {1e3 * first['seconds']:.4g} ms"
    rivals = [row for row in others if row["contender"] in record["rivals"] and row["part"] == first["part"]]
    if not rivals:
        return text
    best = min(rivals, key=lambda row: row["seconds"])
    return f"{text}, {best['contender']} {best['ratio']:.3g} times as long"


def tests_of(file: Path) -> tuple[str, list[str]]:
    """Return how many tests passed, and the failed ones with the first line of their messages."""
    cases = list(ET.parse(file).iter("testcase"))
    failed, skipped = [], 0
    for case in cases:
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped += case.find("skipped") is not None
        if problem is not None:
            reason = next(iter((problem.get("message") or "").strip().splitlines()), problem.tag)
            failed.append(f"{case.get('classname')}::{case.get('name')}: {reason[:200]}")
    more = [f"… and {len(failed) - MOST_FAILURES} more"] if len(failed) > MOST_FAILURES else []
    passed = len(cases) - len(failed) - skipped
    return f"{passed} passed, {len(failed)} failed, {skipped} skipped", failed[:MOST_FAILURES] + more


def trained(folder: Path) -> str:
    """Return how far a training run came, and how fast."""
    losses, _ = read_stats(folder / "stats.jsonl")
    if not losses:
        return ""
    return f"{losses[-1].iteration:,} iterations, {losses[-1].iteration / losses[-1].seconds:.1f} a second"


def sections_in(out: Path) -> dict[str, dict]:
    """Return the sections of both result files by name. Prefer those with rivals unless they have fewer cases."""
    own, rivals = (results.sections_of(out / name) for name in ("own.json", "rivals.json"))
    fewer = [name for name in own.keys() & rivals.keys() if len(rivals[name]["cases"]) < len(own[name]["cases"])]
    return own | {name: payload for name, payload in rivals.items() if name not in fewer}


def goals_in(out: Path) -> list[dict]:
    """Return all goals, each with its section."""
    return [{"section": name, **goal} for name, payload in sections_in(out).items() for goal in payload["goals"]]


def facts_in(out: Path) -> list[str]:
    """Return the facts about the machine from the environment check."""
    file = out / "environment.json"
    found = json.loads(file.read_text()) if file.exists() else []
    return [f"{result['name']}: {result['text']}" for result in found]


def summary(outcomes: Iterable[Outcome]) -> str:
    """Return how many parts have each verdict."""
    verdicts = [outcome.verdict for outcome in outcomes]
    counts = [(verdicts.count(verdict), verdict) for verdict in dict.fromkeys(verdicts)]
    return ", ".join(f"{count} {verdict}" for count, verdict in counts)


def write(out: Path, outcomes: Sequence[Outcome], seconds: float) -> None:
    """Write the page and the JSON file."""
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
    """Return the page as Markdown."""
    lines = ["# Validation of tgan_fast", "", f"{summary(outcomes)}. {LEGEND}", ""]
    lines += [*(f"- {fact}" for fact in facts_in(out)), ""]
    rows = [[o.part, o.verdict, o.text, f"{o.seconds:.0f}"] for o in outcomes if o.verdict != NOT_REACHED]
    lines.append(markdown.table(["part", "", "found", "s"], rows, left=3))
    bad = [outcome for outcome in outcomes if outcome.why]
    if bad:
        lines += ["", "## What is wrong", ""]
        for outcome in bad:
            lines.append(f"- **{outcome.part}** ([log]({log_of(out, outcome.part).relative_to(out)}))")
            lines += [f"  - `{line}`" for line in outcome.why]
    goals = goals_in(out)
    if goals:
        rows = [[*chapters.goal_key(goal["section"], goal), chapters.goal_cell(goal)] for goal in goals]
        lines += ["", "## Goals", "", markdown.table(["section", "goal", "bound", "measured"], rows, left=2)]
    lines += figures_text(out)
    missing = [outcome.part for outcome in outcomes if outcome.verdict in (NOT_REACHED, CUT)]
    if missing:
        lines += ["", "## Not reached", "", f"Time ran out before these were done: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def figures_text(out: Path) -> list[str]:
    """Return tables of all cases, and the sections' conclusions."""
    found, lines = sections_in(out), []
    for section in SECTIONS:
        if section.name in found:
            payload = found[section.name]
            lines += ["", f"## {section.name}: {section.title}", "", "```"]
            for record in payload["cases"]:
                lines += [*table.lines_of(record), *section.details(record)]
            lines += [*section.conclusion(payload), "```"]
    return list(map(table.without_color, lines))


def table_of(out: Path, outcomes: Sequence[Outcome]) -> list[str]:
    """Return the lines printed at the end: parts, what is wrong, and goals that were measured."""
    lines = [f"{o.part:36}{o.verdict:12}{o.seconds:6.0f} s  {o.text}".rstrip() for o in outcomes]
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
    only: tuple[str, ...] = (),
) -> None:
    """Check, test and measure tgan_fast on this machine; exit with code 1 if anything is wrong.

    Args:
        minutes: Time for all parts together; saving may take another one. The page lists what was not reached.
        out: Folder of the results, new or empty; by default a new one in runs/.
        device: Device; auto is the GPU if there is one. A CPU runs small versions of most parts.
        only: Run only parts with one of these texts in their names, such as check, tests, time, rivals or training.
    """
    if not 0 < minutes < math.inf:
        raise SystemExit(f"error: --minutes is {minutes:g}: choose more than 0")
    device = resolve_device(device)
    out = (out or Path("runs", f"validation-{time.strftime('%Y%m%d-%H%M%S')}")).resolve()
    if out.is_dir() and any(out.iterdir()):
        raise SystemExit(f"error: {out} is not empty: choose another --out, or remove it")
    parts = parts_for(device, out)
    chosen = [part for part in parts if not only or any(text in part.name for text in only)]
    if not chosen:
        raise SystemExit(
            f"error: no part has {' or '.join(only)} in its name: {', '.join(part.name for part in parts)}"
        )
    if parts[0] not in chosen:  # says which machine it is
        chosen.insert(0, parts[0])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: the folder {out} cannot be made: {error.strerror}") from None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that the running part is ended, too
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    print(f"validating tgan_fast on {results.device_name('cpu') if device == 'cpu' else 'the GPU'}: {out}")
    try:
        outcomes = run_all(chosen, out, 60 * minutes)
    except KeyboardInterrupt:
        print(f"interrupted; the page is {out / 'validation.md'}")
        raise SystemExit(INTERRUPTED) from None
    print("", *table_of(out, outcomes), sep="\n")
    nothing_ran = all(outcome.verdict == NOT_REACHED for outcome in outcomes)
    sys.exit(nothing_ran or any(outcome.verdict in BAD or outcome.why for outcome in outcomes))


if __name__ == "__main__":
    tyro.cli(main)
