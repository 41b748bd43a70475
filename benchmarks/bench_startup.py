"""Import and start-up: what users wait for before anything is trained.

    python -m benchmarks.bench_startup --device cuda

Every timing is of a new process, from its start until it ends, or until it prints how far it is. "imported" is the
training loop; "set up" are networks, moving digits and the training step; the iterations are finished ones. On a GPU
the first iterations compile Triton's kernels, or find them where an earlier process left them, and record CUDA graphs;
by the tenth all is replayed. Processes that print something else than they should are not timed.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import suite
from benchmarks.harness import Timing
from benchmarks.results import Goal, rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast.training.step import SCALARS

ROOT = Path(__file__).resolve().parent.parent
IMPORT, COMMANDS, FIRST = CASES = "import", "commands", "first iteration"


class Program(NamedTuple):
    """Something that users start."""

    arguments: tuple[str, ...]  # of Python
    says: str  # is in what it prints


class Line(NamedTuple):
    """What a process printed, and when."""

    seconds: float  # since its start
    text: str


OURS, TORCH, PYTHON = "tgan_fast", "torch alone", "python alone"
# Of the cases whose processes are timed until they end.
PROGRAMS = {
    IMPORT: {
        OURS: Program(("-c", "import tgan_fast; print(tgan_fast.VideoGenerator)"), "VideoGenerator"),
        TORCH: Program(("-c", "import torch; print(torch.__version__)"), torch.__version__),
        PYTHON: Program(("-c", "pass"), ""),
    },
    COMMANDS: {
        "tgan_fast.train --help": Program(("-m", "tgan_fast.train", "--help"), "--preset"),
        "tgan_fast sample --help": Program(("-m", "tgan_fast", "sample", "--help"), "--checkpoint"),
        "tgan_fast.ops.backends()": Program(
            ("-c", "from tgan_fast import ops; print(ops.backends())"), "'singular_value_clip': {"
        ),
    },
}
RIVALS = TORCH, PYTHON
# Of PyTorch's own. The package's modules add a hundredth; what only parts of it need must not be loaded along with
# them: scikit-learn would add a half, matplotlib a third, Triton and tensorboard an eighth each. The rest is for noise.
LONGEST_IMPORT = 1.1

LAST = 10
PARTS = "imported", "set up", "iteration 1", f"iteration {LAST}"
COMPILING, COMPILED = "tgan_fast, compiling", "tgan_fast, compiled before"
# Few, since each process takes seconds; on a GPU, where it compiles kernels, once must do. Imports are compared.
ROUNDS = {
    "cpu": {IMPORT: 5, COMMANDS: 1, FIRST: 1},
    "cuda": {IMPORT: 4, COMMANDS: 1, FIRST: 1},
}
TRAINING = """
import sys
from contextlib import closing

import torch

from tgan_fast.data import MovingDigits, open_feed
from tgan_fast.precision import compute_dtype, resolve_precision
from tgan_fast.training import PRESETS, TrainingConfig
from tgan_fast.training.build import build_step

print("imported", flush=True)
preset, device, last = sys.argv[1], torch.device(sys.argv[2]), int(sys.argv[3])
config = TrainingConfig(**PRESETS[preset], cuda_graph="on" if device.type == "cuda" else "off")
feed = open_feed(
    MovingDigits(digits=config.digits, channels=config.channels),
    batch_size=config.batch_size,
    channels=config.channels,
    device=device,
    dtype=compute_dtype(resolve_precision(config.precision, device), torch.float32),
    workers=config.workers,
)
step = build_step(config, device, read=feed.read)
print("set up", flush=True)
with closing(feed.batches()) as batches:
    while step.iteration < last:
        step(*next(batches))
        if step.iteration in (1, last):
            # Reading them waits for the device.
            print(f"iteration {step.iteration}:", *step.scalars.tolist(), flush=True)
"""


def start(name: str, arguments: Iterable[str], **environment: str) -> list[Line]:
    """Run Python in the package's folder; what it prints, and at last an empty line for its end.

    Raises:
        SystemExit: it fails.
    """
    begin = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        lines = [Line(time.perf_counter() - begin, text.strip()) for text in process.stdout]
        failed = process.wait() != 0
        lines.append(Line(time.perf_counter() - begin, ""))
        if failed:
            errors.seek(0)
            last = errors.read().strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise SystemExit(f"error: {name} fails: {last[0]}: nothing is timed")
    return lines


def seconds_of(name: str, program: Program) -> float:
    """Until it ends.

    Raises:
        SystemExit: it fails, or prints something else.
    """
    lines = start(name, program.arguments)
    if not any(program.says in line.text for line in lines):
        raise SystemExit(f"error: {name} does not print {program.says}: nothing is timed")
    return lines[-1].seconds


def seconds_of_training(name: str, preset: str, device: str, **environment: str) -> dict[str, float]:
    """Until each of `PARTS`.

    Raises:
        SystemExit: it fails, or its losses are not finite.
    """
    *lines, _ = start(name, ("-c", TRAINING, preset, device, str(LAST)), **environment)
    said = [line.text for line in lines]
    parts = tuple(text.partition(":")[0] for text in said)
    if parts != PARTS or not all(_is_finite(text) for text in said[-2:]):
        raise SystemExit(f"error: {name} does not train, but prints {'; '.join(said)}: nothing is timed")
    return dict(zip(PARTS, (line.seconds for line in lines), strict=True))


def _is_finite(iteration):
    scalars = iteration.partition(":")[2].split()
    return len(scalars) == len(SCALARS) and all(math.isfinite(float(scalar)) for scalar in scalars)


def contenders_of(run: Run, case: str) -> list[str]:
    """Names, the package's own first."""
    if case == FIRST:
        return [COMPILING, COMPILED] if run.device == "cuda" else [OURS]
    return [name for name in PROGRAMS[case] if not (run.own_only and name in RIVALS)]


def time_programs(run: Run, case: str) -> list[dict]:
    """Of one of `PROGRAMS`."""
    programs = {name: PROGRAMS[case][name] for name in contenders_of(run, case)}
    # Python alone is no rival, but what nobody can be faster than.
    run.rivals.add(TORCH)
    timings = _in_turns(run, case, lambda: {name: seconds_of(name, program) for name, program in programs.items()})
    return run.rows(timings)


def time_training(run: Run) -> list[dict]:
    """From the start of a process to its tenth iteration."""
    preset = preset_of(run)

    def turn():
        with tempfile.TemporaryDirectory() as cache:
            seconds = {
                name: seconds_of_training(name, preset, run.device, TRITON_CACHE_DIR=cache)
                for name in contenders_of(run, FIRST)
            }
        return {Label(name, part): of_part for name, parts in seconds.items() for part, of_part in parts.items()}

    timings = _in_turns(run, FIRST, turn)
    return [run.row(label, timings[label]) for label in labels_for(run, FIRST)]


def preset_of(run: Run) -> str:
    """What is trained."""
    return "paper" if run.device == "cuda" and not run.smoke else "tiny"


def _in_turns(run, case, turn: Callable[[], Mapping]) -> dict:
    """Timings; `turn` tells the seconds of a round.

    Not by `run.measure`: a process takes seconds, nothing of it is left to warm up, and no GPU's events can time it.
    """
    with run.watch:
        rounds = [turn() for _ in range(1 if run.smoke else ROUNDS[run.device][case])]
    return {key: Timing.of([seconds[key] for seconds in rounds], "perf_counter") for key in rounds[0]}


def measure(run: Run, case: str) -> dict:
    """Time one case, and look at what its processes print."""
    if case == FIRST:
        return {"preset": preset_of(run), "timings": time_training(run), "left_out": {}}
    return {"timings": time_programs(run, case), "left_out": {}}


def labels_for(run: Run, case: str) -> list[Label]:
    """Of its timings."""
    parts = PARTS if case == FIRST else (None,)
    return [Label(name, part) for part in parts for name in contenders_of(run, case)]


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """That an import of the package is little more than one of PyTorch.

    The fast rounds tell: whatever else a machine does adds to a process's time, by more than the package.
    """
    seconds = {
        row["contender"]: row["p10"] for record in records if record["case"] == IMPORT for row in record["timings"]
    }
    measured = rounded(seconds[OURS] / seconds[TORCH]) if TORCH in seconds else None
    return [Goal("times the import of PyTorch alone, that of tgan_fast", measured, LONGEST_IMPORT, at_most=True)]


SECTION = Section(
    name="startup",
    title="import and start-up, from the start of a process",
    cases=lambda run: list(CASES),
    measure=measure,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
