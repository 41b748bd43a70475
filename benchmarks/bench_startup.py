"""Times of the import and of start-up, before training begins.

    python -m benchmarks.bench_startup --device cuda

Every timing begins with a new process and ends when it prints a line, or exits. On a GPU the first iterations compile
Triton's kernels, or load them from the cache, and record CUDA graphs; the tenth iteration only replays.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Timing
from benchmarks.result_files import Goal, Label, rounded
from benchmarks.suite import Run, Section, main

ROOT = Path(__file__).resolve().parent.parent
IMPORT, COMMANDS, FIRST = "import", "commands", "first iteration"
OURS, TORCH = "tgan_fast", "torch alone"
# Arguments of Python, and how the lines that it prints begin.
PROGRAMS = {
    IMPORT: {
        OURS: (["-c", "import tgan_fast; print(tgan_fast.VideoGenerator)"], ["<class"]),
        TORCH: (["-c", "import torch; print(torch.nn.Module)"], ["<class"]),
        "python alone": (["-c", "print('done')"], ["done"]),
    },
    COMMANDS: {
        "tgan_fast.train --help": (["-m", "tgan_fast.train", "--help"], ["usage: python -m tgan_fast.train"]),
        "tgan_fast sample --help": (["-m", "tgan_fast", "sample", "--help"], ["usage: python -m tgan_fast sample"]),
    },
}
PARTS = ["imported", "set up", "iteration 1", "iteration 10"]
TRAINING = """
import sys, torch
from tgan_fast.training import PRESETS, TrainingConfig, train
from tgan_fast.training.build import build_step
print("imported", flush=True)
config = TrainingConfig(**PRESETS[sys.argv[1]])
step = build_step(config, torch.device(sys.argv[2]))
size = config.channels, config.frames, config.image_size, config.image_size
videos = torch.rand(config.batch_size, *size, device=sys.argv[2]) * 2 - 1
print("set up", flush=True)
for iteration in range(1, 11):
    step(videos)
    if iteration in (1, 10):
        # Reading them waits for the device.
        assert step.scalars.isfinite().all()
        print("iteration", iteration, flush=True)
"""


def seconds_to_lines(name: str, arguments: list[str], lines: list[str], **environment: str) -> list[float]:
    """Return the times from the start of Python to each of these lines and to its exit; SystemExit if it fails."""
    options = {"cwd": ROOT, "env": os.environ | environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    begin, seconds, text = time.perf_counter(), [], "prints nothing"
    with subprocess.Popen([sys.executable, *arguments], text=True, **options) as process:
        for text in process.stdout:
            if len(seconds) < len(lines) and text.startswith(lines[len(seconds)]):
                seconds.append(time.perf_counter() - begin)
    if process.returncode or len(seconds) < len(lines):
        raise SystemExit(f"error: {name} fails: {text.strip()}: nothing is timed")
    return [*seconds, time.perf_counter() - begin]


def measure(run: Run, case: str) -> dict:
    """Time one case in turns, without `run.measure`, since a new process cannot be warmed up."""
    run.rivals.add(TORCH)
    preset = "paper" if run.device == "cuda" and not run.smoke else "tiny"
    contenders = [f"{OURS}, compiling", f"{OURS}, compiled before"] if run.device == "cuda" else [OURS]
    programs = PROGRAMS.get(case) or dict.fromkeys(contenders, (["-c", TRAINING, preset, run.device], PARTS))
    seconds = {}
    with run.watch, tempfile.TemporaryDirectory() as cache:
        for _ in range(5 if case == IMPORT and not run.smoke else 1):
            for name, (arguments, lines) in programs.items():
                if not (run.own_only and name == TORCH):
                    *parts, end = seconds_to_lines(name, arguments, lines, TRITON_CACHE_DIR=cache)
                    for part, value in zip(PARTS, parts, strict=True) if case == FIRST else [(None, end)]:
                        seconds.setdefault(Label(name, part), []).append(value)
    rows = [run.row(label, Timing.of(rounds, "perf_counter")) for label, rounds in seconds.items()]
    return {"timings": rows, "left_out": {}}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goal: importing the package takes little longer than importing PyTorch."""
    # The fast rounds count, because other work of the machine adds more to a process's time than the package does.
    rows = {row["contender"]: row["p10"] for record in records if record["case"] == IMPORT for row in record["timings"]}
    measured = rounded(rows[OURS] / rows[TORCH]) if TORCH in rows else None
    # The bound allows 1 % for the package's modules, and noise; optional libraries must not be imported.
    return [Goal("times the import of PyTorch alone, that of tgan_fast", measured, 1.1, at_most=True)]


SECTION = Section(
    name="startup",
    title="import and start-up, from the start of a process",
    cases=lambda run: [IMPORT, COMMANDS, FIRST],
    measure=measure,
    goals=goals_for,
)

if __name__ == "__main__":
    main(SECTION)
