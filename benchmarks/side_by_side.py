"""Slowdown of a training iteration on a CPU while a second training runs.

    python -m benchmarks.side_by_side

Each training is a process of its own with all threads, as two runs that a user compares, and keeps its memory as the
command does.
"""

import argparse
import multiprocessing
import statistics
import time

import torch

from benchmarks.result_files import Goal, rounded
from tgan_fast import allocator
from tgan_fast.training import PRESETS, TrainingConfig
from tgan_fast.training.brief_waits import BriefWaits
from tgan_fast.training.build import build_step

PRESET = "tiny"
SLOWEST = 2.5  # times as long as an iteration of a single training
WARM_UP = 5  # seconds; a training checks for other programs every second
TIMEOUT = 120  # seconds to wait until all processes have begun


def seconds_of_iterations(begin: multiprocessing.Barrier, seconds: float, answers: multiprocessing.Queue) -> None:
    """Train until the time is over, and put the median time of an iteration into `answers`."""
    allocator.keep_memory()
    config = TrainingConfig(**PRESETS[PRESET], device="cpu")
    step = build_step(config, torch.device("cpu"))
    videos = torch.rand(config.batch_size, config.channels, config.frames, config.image_size, config.image_size) * 2 - 1
    times = []
    begin.wait(TIMEOUT)
    end = time.perf_counter() + WARM_UP + seconds
    with BriefWaits(torch.device("cpu")):
        while (start := time.perf_counter()) < end:
            step(videos)
            times.append((start, time.perf_counter() - start))
    answers.put(statistics.median(taken for start, taken in times if start > end - seconds))


def together(count: int, seconds: float) -> float:
    """Return the median time of an iteration while `count` trainings run, in seconds."""
    context = multiprocessing.get_context("spawn")
    begin, answers = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=seconds_of_iterations, args=(begin, seconds, answers), daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=TIMEOUT + WARM_UP + seconds) for _ in processes]
    for process in processes:
        process.join()
    return statistics.mean(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="time of each measurement")
    duration = parser.parse_args().seconds
    alone, pair = together(1, duration), together(2, duration)
    print(f"{PRESET}, {torch.get_num_threads()} threads: {1e3 * alone:.1f} ms an iteration alone")
    print(f"{1e3 * pair:.1f} ms with two trainings at once")
    print(Goal("times as long as alone", rounded(pair / alone), SLOWEST, at_most=True))
