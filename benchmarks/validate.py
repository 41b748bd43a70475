"""Check, test and measure tgan_fast on this machine: is everything right here, and how fast is it?

    make gpu                                                            # on the GPU, in ten minutes
    python -m benchmarks.validate --minutes 30 --out runs/validation
    python -m benchmarks.validate --minutes 5 --only time training      # figures only
    python -m benchmarks.validate --device cpu --minutes 3

The most important parts run first: short checks, the tests that need a GPU, benchmarks of tgan_fast alone, a minute of
training, benchmarks against rivals, and more training for as long as there is time. Each part runs in a process of its
own with a time limit of its own, so that a crash, a hang or an illegal access affects only that part. A CPU runs small
versions of most parts, to show that they work.

The folder of results contains `validation.md`, a page for people; `validation.json`, the same for programs; logs, with
the tables of the benchmarks; `own.json` and `rivals.json`, result files like those in benchmarks/results; and the
training's run folder.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from benchmarks import results
from benchmarks.checks import CHECKS
from benchmarks.results import Label
from benchmarks.suite import resolve_device
from benchmarks.table import goal_cell, goal_key, markdown_table
from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically
from tgan_fast.reports.recorded_run import read_stats

ROOT = Path(__file__).resolve().parent.parent
SHORTEST = 5  # seconds; a part that would get less does not start
SECONDS_TO_SAVE = 30  # for a process that is asked to stop
SECONDS_TO_DUMP = 3  # for a process that hangs, to write its traceback
LAST_LINES, MOST_LINES = 3, 8  # of a log, that say what is wrong with a part
MOST_PROCESSES = 8  # of tests: each takes half a gigabyte of the GPU's memory
# A part is cut off if the time for all of them is over before its own time limit.
PASSED, FAILED, CUT, NOT_REACHED = "passed", "FAILED", "cut off", "not reached"


class Part(NamedTuple):
    """One process of the validation: arguments of Python, and a time limit in seconds."""

    name: str
    command: Sequence[str]
    seconds: float
    # At the time limit SIGTERM asks a training to save and exit, SIGINT tests to say what they found.
    stop: signal.Signals = signal.SIGABRT

    @property
    def trains(self) -> bool:
        """Whether it runs until the time limit."""
        return self.stop == signal.SIGTERM


@dataclass
class Outcome:
    """Result of a part: a verdict, the seconds it took, a summary in one line, and lines that say what is wrong."""

    part: str
    verdict: str = NOT_REACHED
    seconds: float = 0.0
    text: str = ""
    why: list[str] = field(default_factory=list)


def parts_for(device: str, out: Path) -> list[Part]:
    """Return all parts, the most important first."""
    on_gpu = device == "cuda"

    def check(name):
        return Part(f"check {name}", ["-m", "benchmarks.checks", name, "--device", device], 120 if on_gpu else 60)

    def tests(name, seconds, *selection, processes=True):
        # The log gets the traceback of a test that hangs.
        command = ["-m", "pytest", "-q", "--maxfail", "60", "--durations", "15", "-p", "no:cacheprovider"]
        command += ["-o", "faulthandler_timeout=90", *selection]
        if on_gpu and processes and importlib.util.find_spec("xdist"):
            command += ["-n", str(max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2)))]
        return Part(name, command, seconds, signal.SIGINT)

    def figures(module, seconds, *only, rivals=False):
        command = ["-m", f"benchmarks.{module}", "--device", device, "--out", str(file_of(out, rivals))]
        command += ["--only", *only] if only and on_gpu else []
        command += [*([] if rivals else ["--own-only"]), *([] if on_gpu else ["--smoke"])]
        name = f"time {module.removeprefix('bench_').replace('_', ' ')}"
        return Part(f"{name} and rivals" if rivals else name, command, seconds)

    def training(name, seconds, *options):
        command = ["-m", "tgan_fast.train", "--out", str(out / "run"), *options]
        return Part(name, command, seconds if on_gpu else 20, signal.SIGTERM)

    suites = [
        tests("quick tests", 300, "-m", "gpu and not slow and not alone"),
        tests("slow tests", 120, "-m", "gpu and slow and not alone"),
        tests("lone tests", 120, "-m", "gpu and alone", processes=False),
    ]
    rivals = [
        figures("bench_step", 500, "step batch 32", rivals=True),
        figures("bench_singular_value_clip", 120, rivals=True),
        figures("bench_batch_norm_act", 240, rivals=True),
        figures("bench_optimizer", 90, rivals=True),
        figures("bench_sampling", 120, rivals=True),
    ]
    return [
        *map(check, CHECKS),
        *(suites if on_gpu else [tests("quick tests", 60, "tests/ops/test_registry.py", "tests/test_precision.py")]),
        figures("bench_step", 90, "step batch 32"),
        figures("breakdown", 90),
        figures("bench_singular_value_clip", 90),
        figures("bench_batch_norm_act", 120),
        figures("bench_convolutions", 180),
        figures("bench_optimizer", 60),
        figures("bench_sampling", 60),
        training("training", 60, "--preset", "paper" if on_gpu else "tiny", "--device", device),
        *(rivals if on_gpu else rivals[:1]),
        *([figures("bench_data", 120), figures("bench_startup", 180)] if on_gpu else []),
        training("more training", 3600, "--resume", str(out / "run")),
    ]


def file_of(out: Path, rivals: bool) -> Path:
    """Return the path of a result file."""
    return out / ("rivals.json" if rivals else "own.json")


def log_of(out: Path, name: str) -> Path:
    """Return the path of a part's log."""
    return out / "logs" / f"{name.replace(' ', '-')}.log"


def run_all(parts: Sequence[Part], out: Path, seconds: float) -> list[Outcome]:
    """Run parts one after the other until the time is over or Ctrl-C, and update the page after each."""
    end = time.monotonic() + seconds
    outcomes = [Outcome(part.name) for part in parts]
    for index, part in enumerate(parts):
        write(out, outcomes, seconds)
        left = end - time.monotonic() - (SECONDS_TO_SAVE if part.trains else 0)
        if left < min(SHORTEST, part.seconds):
            continue
        print(f"{index + 1}/{len(parts)} {part.name} …", end=" ", flush=True)
        outcomes[index] = outcome = run(part, out, min(left, part.seconds))
        print(f"{outcome.verdict}, {outcome.seconds:.0f} s: {outcome.text}", *outcome.why, sep="\n    ", flush=True)
    write(out, outcomes, seconds)
    return outcomes


def run(part: Part, out: Path, seconds: float) -> Outcome:
    """Run one part for at most `seconds` seconds."""
    log = log_of(out, part.name)
    log.parent.mkdir(exist_ok=True)
    environment = {"TRITON_CACHE_DIR": str(out / "triton")} | os.environ
    # Pytest cuts what it says of a failed test to the width of the terminal.
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "COLUMNS": "250"}
    begin = time.monotonic()
    with log.open("w") as lines:
        # In a session of its own, so that its children can be killed with it.
        process = subprocess.Popen(
            [sys.executable, *part.command], cwd=ROOT, env=environment, stdout=lines, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = _exit_code(process, part, seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    taken = round(time.monotonic() - begin, 1)
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wrong = [line[:200] for line in lines if line.startswith(("FAILED ", "ERROR ", "WRONG "))]
    more = [f"… and {len(wrong) - MOST_LINES} more"] if len(wrong) > MOST_LINES else []
    try:
        text = summary_of(part, out) or (lines[-1] if lines else "")
    except (OSError, ValueError, LookupError, TypeError, InputError, SystemExit) as error:
        # A process that was killed may leave half a file.
        text, more = "", [*more, f"its results cannot be read: {error}"]
    outcome = Outcome(part.name, PASSED, taken, text.strip("= ")[:200], wrong[:MOST_LINES] + more)
    if code is None and seconds < part.seconds:
        outcome.verdict = CUT
    elif code != 0:
        outcome.verdict = FAILED
        reason = f"exit code {code}" if code is None or code > 0 else f"ended by {signal.Signals(-code).name}"
        reason = f"not done after {seconds:.0f} s" if code is None else reason
        outcome.why = [reason, *(outcome.why or [line[:200] for line in lines[-LAST_LINES:]])]
    return outcome


def _exit_code(process, part, seconds):
    """Return None if the process exceeds its time; it is then asked to save its results, and for its traceback."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    for number in dict.fromkeys((part.stop, signal.SIGABRT)):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(SECONDS_TO_DUMP if number == signal.SIGABRT else SECONDS_TO_SAVE)
            return code if number == signal.SIGTERM else None
    return None


def summary_of(part: Part, out: Path) -> str | None:
    """Return how far a training came, or a benchmark's first timing and its ratio to the best rival."""
    if part.trains:
        losses, _ = read_stats(out / "run" / "stats.jsonl")
        last = losses[-1] if losses else None
        return last and f"{last.iteration:,} iterations, {last.iteration / last.seconds:.1f} a second"
    if not part.name.startswith("time "):
        return None
    name = part.name.removeprefix("time ").removesuffix(" and rivals").replace(" ", "_")
    section = results.sections_of(file_of(out, part.name.endswith(" and rivals"))).get(name)
    if section is None:
        return None
    record = section["cases"][0]
    first, *others = record["timings"]
    text = f"{record['case']}: {Label.of(first)} {1e3 * first['seconds']:.4g} ms"
    rivals = [row for row in others if row["contender"] in record["rivals"] and row["part"] == first["part"]]
    best = min(rivals, key=lambda row: row["seconds"], default=None)
    return f"{text}, {best['contender']} {best['ratio']:.3g} times as long" if best else text


def goals_in(out: Path) -> list[dict]:
    """Return the goals of both result files; a section's with rivals unless it has fewer cases."""
    own, rivals = (results.sections_of(file_of(out, which)) for which in (False, True))
    fewer = [name for name in own.keys() & rivals.keys() if len(rivals[name]["cases"]) < len(own[name]["cases"])]
    sections = own | {name: payload for name, payload in rivals.items() if name not in fewer}
    return [{"section": name, **goal} for name, payload in sections.items() for goal in payload["goals"]]


def counts(outcomes: Sequence[Outcome]) -> str:
    """Return how many parts have each verdict."""
    verdicts = [outcome.verdict for outcome in outcomes]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))


def write(out: Path, outcomes: Sequence[Outcome], seconds: float) -> None:
    """Write the page and the JSON file."""
    goals, command = goals_in(out), " ".join(["python", *sys.orig_argv[1:]])
    parts = [asdict(outcome) for outcome in outcomes]
    content = {"schema": 2, "command": command, "minutes": seconds / 60, "parts": parts, "goals": goals}
    write_atomically(out / "validation.json", json.dumps(content, indent=1, ensure_ascii=False).encode())
    write_atomically(out / "validation.md", "\n".join([*page_of(out, outcomes, goals), ""]).encode())


def page_of(out: Path, outcomes: Sequence[Outcome], goals: Sequence[dict]) -> Iterator[str]:
    """Yield the lines of the page, in Markdown."""
    yield from ("# Validation of tgan_fast", "", f"{counts(outcomes)}.", "")
    rows = []
    for outcome in outcomes:
        log = log_of(out, outcome.part)
        name = f"[{outcome.part}]({log.relative_to(out)})" if log.exists() else outcome.part
        rows.append([name, outcome.verdict, outcome.text, f"{outcome.seconds:.0f}"])
    yield markdown_table(["part", "", "found", "s"], rows, left=3)
    for outcome in outcomes:
        if outcome.why:
            yield from ("", f"**{outcome.part}**", "", *(f"- `{line}`" for line in outcome.why))
    if goals:
        rows = [[*goal_key(goal["section"], goal), goal_cell(goal)] for goal in goals]
        yield from ("", "## Goals", "", markdown_table(["section", "goal", "bound", "measured"], rows, left=2))
    environment = log_of(out, "check environment")
    if environment.exists():
        yield from ("", "## Machine", "", "```text", environment.read_text(errors="replace").strip(), "```")


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
        names = ", ".join(part.name for part in parts)
        raise SystemExit(f"error: no part has {' or '.join(only)} in its name: {names}")
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
        raise SystemExit(128 + signal.SIGINT) from None
    print(f"\n{counts(outcomes)}; the page is {out / 'validation.md'}")
    nothing_ran = all(outcome.verdict == NOT_REACHED for outcome in outcomes)
    sys.exit(nothing_ran or any(outcome.verdict == FAILED or outcome.why for outcome in outcomes))


if __name__ == "__main__":
    tyro.cli(main)
