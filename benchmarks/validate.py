"""Check, test and benchmark tgan_fast on this machine.

    make gpu                                                            # on the GPU, in ten minutes
    python -m benchmarks.validate --minutes 5 --only time training      # figures only

The most important parts run first, each in a process of its own with a time limit of its own, so that a crash, a hang
or an illegal access affects only that part. The folder of results contains `validation.md`, a page for people; logs,
with the tables of the benchmarks; `own.json` and `rivals.json`, result files; and the training's run folder.
"""

import contextlib
import importlib.util
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from shutil import which
from typing import Literal, NamedTuple

import tyro

from benchmarks import result_files
from benchmarks.check_device import CHECKS
from benchmarks.formatting import goal_cell, goal_key, markdown_table
from benchmarks.result_files import Label
from benchmarks.suite import choose_device
from tgan_fast.files import write_atomically
from tgan_fast.reports.recorded_run import read_stats

ROOT = Path(__file__).resolve().parent.parent
SHORTEST = 5  # seconds; a part that would get less does not start
SECONDS_TO_SAVE = 30  # time for a process to stop after a signal
SECONDS_TO_DUMP = 3  # time for a hanging process to write its traceback
LAST_LINES, MOST_LINES = 3, 8  # lines of a failed part's log to show
MOST_PROCESSES = 8  # of tests: each takes half a gigabyte of the GPU's memory
# A part is cut off if the time for all parts ends before the part's own time limit.
PASSED, FAILED, CUT, NOT_REACHED = "passed", "FAILED", "cut off", "not reached"
# Seconds for each section, by itself and with its rivals.
OWN_SECONDS = {
    "step": 90, "breakdown": 90, "singular_value_clip": 150, "batch_norm_act": 160, "convolutions": 180,
    "optimizer": 60, "sampling": 60,
}  # fmt: skip
RIVAL_SECONDS = {
    "step": 540, "singular_value_clip": 400, "batch_norm_act": 300, "optimizer": 90, "sampling": 120, "data": 120,
    "startup": 180,
}  # fmt: skip


class Part(NamedTuple):
    """Process of the validation: arguments of Python, a time limit in seconds, and a function that summarizes it."""

    name: str
    command: Sequence[str]
    seconds: float
    # At the time limit, SIGTERM makes a training save and exit, and SIGINT makes tests report their results.
    stop: signal.Signals = signal.SIGABRT
    summary: Callable[[], str] | None = None  # None: the last line of the log
    environment: Mapping[str, str] = {}  # variables to add
    prefix: Sequence[str] = ()  # program that runs Python, with its options


class PartOutcome(NamedTuple):
    """Result of a part: a verdict, the seconds it took, a summary in one line, and lines on the failure."""

    part: str
    verdict: str = NOT_REACHED
    seconds: float = 0.0
    text: str = ""
    why: Sequence[str] = ()


def parts_for(device: str, out: Path) -> list[Part]:
    """Return all parts, the most important first; small versions of most for a CPU, to show that they work."""
    on_gpu = device == "cuda"

    def tests(name, seconds, *selection, alone=False):
        # A hanging test writes its traceback to the log.
        command = ["-m", "pytest", "-q", "--maxfail", "60", "--durations", "15", "-p", "no:cacheprovider"]
        command += ["-o", "faulthandler_timeout=90", *selection]
        if on_gpu and not alone and importlib.util.find_spec("xdist"):
            command += ["-n", str(max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2)))]
        # Processes with many threads each would slow each other down.
        return Part(name, command, seconds, signal.SIGINT, environment={"OMP_NUM_THREADS": "1"})

    def figures(section, seconds, rivals=False):
        module = section if section == "breakdown" else f"bench_{section}"
        path = out / ("rivals.json" if rivals else "own.json")
        command = ["-m", f"benchmarks.{module}", "--device", device, "--out", str(path)]
        command += ["--only", "step batch 32"] if on_gpu and section == "step" else []
        command += [*([] if rivals else ["--own-only"]), *([] if on_gpu else ["--smoke"])]
        name = f"time {section.replace('_', ' ')}{' and rivals' if rivals else ''}"
        return Part(name, command, seconds, summary=partial(first_timing, path, section))

    def training(name, seconds, *options):
        command = ["-m", "tgan_fast.train", "--out", str(out / "run"), *options]
        progress = partial(_progress_of, out / "run" / "stats.jsonl")
        return Part(name, command, seconds if on_gpu else 20, signal.SIGTERM, progress)

    def sanitizer(tool, *options):
        prefix = ["compute-sanitizer", "--error-exitcode", "1", "--tool", tool, *options]
        command = ["-m", "benchmarks.check_device", "operations", "--device", device]
        # The caching allocator would hide accesses beyond a tensor's end.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return Part(f"sanitizer {tool}", command, 90, environment=environment, prefix=prefix)

    # PyTorch makes calls that return errors.
    sanitizers = [sanitizer("memcheck", "--report-api-errors", "no"), sanitizer("racecheck"), sanitizer("synccheck")]
    suites = [
        tests("quick tests", 300, "-m", "gpu and not slow and not alone"),
        tests("slow tests", 120, "-m", "gpu and slow and not alone"),
        tests("lone tests", 120, "-m", "gpu and alone", alone=True),
    ]
    return [
        *(Part(f"check {name}", ["-m", "benchmarks.check_device", name, "--device", device], 120) for name in CHECKS),
        *(suites if on_gpu else [tests("quick tests", 60, "tests/ops/test_dispatch.py", "tests/test_precision.py")]),
        *(figures(section, seconds) for section, seconds in OWN_SECONDS.items()),
        *(sanitizers if on_gpu and which("compute-sanitizer") else []),
        training("training", 60, "--preset", "paper" if on_gpu else "tiny", "--device", device),
        *(figures(section, seconds, rivals=True) for section, seconds in RIVAL_SECONDS.items() if on_gpu),
        training("more training", 3600, "--resume", str(out / "run")),
    ]


def _progress_of(stats: Path) -> str:
    last = read_stats(stats)[0][-1]
    return f"{last.iteration:,} iterations, {last.iteration / last.seconds:.1f} a second"


def first_timing(path: Path, section: str) -> str:
    """Return the first timing of a section, and its ratio to the best rival."""
    record = result_files.sections_of(path)[section]["cases"][0]
    first, *others = record["timings"]
    text = f"{record['case']}: {Label.of(first)} {1e3 * first['seconds']:.4g} ms"
    rivals = [row for row in others if row["contender"] in record["rivals"] and row["part"] == first["part"]]
    best = min(rivals, key=lambda row: row["seconds"], default=None)
    return f"{text}, {best['contender']} {best['ratio']:.3g} times as long" if best else text


def log_of(out: Path, name: str) -> Path:
    """Return the path of a part's log."""
    return out / "logs" / f"{name.replace(' ', '-')}.log"


def run_all(parts: Sequence[Part], out: Path, seconds: float) -> list[PartOutcome]:
    """Run parts one after the other until the time is over or Ctrl-C, and update the page after each."""
    end = time.monotonic() + seconds
    outcomes = [PartOutcome(part.name) for part in parts]
    for index, part in enumerate(parts):
        write_page(out, outcomes)
        left = end - time.monotonic() - (SECONDS_TO_SAVE if part.stop == signal.SIGTERM else 0)
        if left < min(SHORTEST, part.seconds):
            continue
        print(f"{index + 1}/{len(parts)} {part.name} …", end=" ", flush=True)
        outcomes[index] = outcome = run_part(part, out, min(left, part.seconds))
        print(f"{outcome.verdict}, {outcome.seconds:.0f} s: {outcome.text}", *outcome.why, sep="\n    ", flush=True)
    write_page(out, outcomes)
    return outcomes


def run_part(part: Part, out: Path, seconds: float) -> PartOutcome:
    """Run one part for at most `seconds` seconds."""
    log = log_of(out, part.name)
    log.parent.mkdir(exist_ok=True)
    environment = {"TRITON_CACHE_DIR": str(out / "triton")} | os.environ
    # Pytest cuts its messages on failed tests to the width of the terminal.
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "COLUMNS": "250", **part.environment}
    begin = time.monotonic()
    with log.open("w") as lines:
        # The process gets its own session, so that its children can be killed with it.
        process = subprocess.Popen(
            [*part.prefix, sys.executable, *part.command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=lines, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = _exit_code(process, part.stop, seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    taken = time.monotonic() - begin
    lines = [line.strip()[:200] for line in log.read_text(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith(("FAILED ", "ERROR ", "WRONG "))]
    why = wrong[:MOST_LINES] + ([f"… and {len(wrong) - MOST_LINES} more"] if len(wrong) > MOST_LINES else [])
    text = lines[-1].strip("= ") if lines else ""
    try:
        text = part.summary() if part.summary else text
    except Exception as error:  # a killed process may leave incomplete files
        why += [] if code is None or code else [f"its results cannot be read: {error}"]
    if code == 0:
        return PartOutcome(part.name, PASSED, taken, text, why)
    if code is None and seconds < part.seconds:
        return PartOutcome(part.name, CUT, taken, text, why)
    reason = f"not done after {seconds:.0f} s" if code is None else f"exit code {code}"
    if code is not None and code < 0:
        reason = f"ended by {signal.Signals(-code).name}"
    return PartOutcome(part.name, FAILED, taken, text, [reason, *(why or lines[-LAST_LINES:])])


def _exit_code(process: subprocess.Popen, stop: signal.Signals, seconds: float) -> int | None:
    """Return the exit code of a process, or None if it exceeds its time limit.

    Past the limit it is asked to save its results, and if that fails, for its traceback.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    for number in dict.fromkeys((stop, signal.SIGABRT)):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(SECONDS_TO_DUMP if number == signal.SIGABRT else SECONDS_TO_SAVE)
            return code if number == signal.SIGTERM else None
    return None


def counts(outcomes: Sequence[PartOutcome]) -> str:
    """Return how many parts have each verdict."""
    verdicts = [outcome.verdict for outcome in outcomes]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))


def write_page(out: Path, outcomes: Sequence[PartOutcome]) -> None:
    """Write the page: parts, goals, and the machine."""
    rows, goals = [], {}
    for outcome in outcomes:
        log = log_of(out, outcome.part)
        name = f"[{outcome.part}]({log.relative_to(out)})" if log.exists() else outcome.part
        rows.append([name, outcome.verdict, outcome.text, f"{outcome.seconds:.0f}"])
    page = ["# Validation of tgan_fast", "", f"{counts(outcomes)}.", ""]
    page += [markdown_table(["part", "", "found", "s"], rows, left=3)]
    for outcome in outcomes:
        if outcome.why:
            page += ["", f"**{outcome.part}**", "", *(f"- `{line}`" for line in outcome.why)]
    for path in (out / "own.json", out / "rivals.json"):
        for section, payload in result_files.sections_of(path).items():
            for goal in payload["goals"]:
                if goal["measured"] is not None or goal_key(section, goal) not in goals:
                    goals[goal_key(section, goal)] = goal_cell(goal)
    if goals:
        rows = [[*key, cell] for key, cell in goals.items()]
        page += ["", "## Goals", "", markdown_table(["section", "goal", "bound", "measured"], rows, left=2)]
    environment = log_of(out, "check environment")
    if environment.exists():
        page += ["", "## Machine", "", "```text", environment.read_text(errors="replace").strip(), "```"]
    write_atomically(out / "validation.md", "\n".join([*page, ""]).encode())


def main(
    minutes: float = 10.0,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    only: tuple[str, ...] = (),
) -> None:
    """Check, test and measure tgan_fast on this machine; exit with code 1 if anything is wrong.

    Args:
        minutes: Time for all parts together; saving may take one more minute. The page lists parts not reached.
        out: Folder of the results, new or empty; by default a new one in runs/.
        device: Device; auto is the GPU if there is one. A CPU runs small versions of most parts.
        only: Run only parts with one of these texts in their names, such as check, tests, sanitizer, time, rivals or
            training.
    """
    if not 0 < minutes < math.inf:
        raise SystemExit(f"error: --minutes is {minutes:g}: choose more than 0")
    device = choose_device(device)
    out = (out or Path("runs", f"validation-{time.strftime('%Y%m%d-%H%M%S')}")).resolve()
    if out.is_dir() and any(out.iterdir()):
        raise SystemExit(f"error: {out} is not empty: choose another --out, or remove it")
    parts = parts_for(device, out)
    if only and not any(text in part.name for part in parts for text in only):
        names = ", ".join(part.name for part in parts)
        raise SystemExit(f"error: no part has {' or '.join(only)} in its name: {names}")
    # The first part describes the machine.
    chosen = [part for part in parts if part is parts[0] or not only or any(text in part.name for text in only)]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: the folder {out} cannot be made: {error.strerror}") from None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that the running part is ended, too
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    print(f"validating tgan_fast on {device}: {out}")
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
