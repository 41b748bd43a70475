"""Clips a second of everything between a data set and the training step, against what a GPU's step reads.

    python -m benchmarks.bench_data --device cuda

How fast one thread chooses windows on the host, and whole feeds, which the step reads. On a GPU the feeds also run
beside a step of 3 ms that keeps the GPU busy: an iteration that takes longer with a feed than with the same batch again
and again waits for data. First the feeds of a data set must yield the same videos.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks import accuracy, suite
from benchmarks.harness import Timing
from benchmarks.results import Goal, rounded
from benchmarks.suite import Run, Section
from tgan_fast.data import Feed, MovingDigits, VideoFrames, open_feed
from tgan_fast.data.order import BatchOrder
from tgan_fast.data.prefetch import batches_ahead

BATCH, CHANNELS = 32, 3
HEIGHT, WIDTH = 64, 85  # of prepared UCF-101
STEP_SECONDS = 3e-3
NEEDED = BATCH / STEP_SECONDS  # clips a second
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
WORKERS = {"cpu": 2, "cuda": 4}
ROUNDS = 3  # of feeds

WRITING, FEEDING = "one thread writes a batch", "whole feeds"
# Data sets whose windows a thread writes.
WINDOWS = {"windows of frames": "frames", "windows of digits": "digits"}
# Data set of each feed, and whether it lives on the device.
FEEDS = {
    "frames, resident": ("frames", "on"),
    "frames, prefetched": ("frames", "off"),
    "digits, drawn": ("digits", "on"),
    "digits, prefetched": ("digits", "off"),
}
STEP = f"a step of {1e3 * STEP_SECONDS:.0f} ms"
BESIDE, NO_FEED = f"beside {STEP}", "the same batch"


def make_datasets(run: Run) -> dict[str, VideoFrames | MovingDigits]:
    """Return random frames in videos of 100 each, cropped and mirrored at random, and the paper's two digits."""
    count = 200 if run.smoke else {"cpu": 4_000, "cuda": 20_000}[run.device]
    frames = np.random.default_rng(0).integers(256, size=(count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    first = np.arange(0, count, 100).repeat(max(1, 100 * BATCH // count))
    videos = VideoFrames(frames, first, np.full_like(first, 100), first // 100, crop="random", flip=True)
    return {"frames": videos, "digits": MovingDigits(digits=2, channels=CHANNELS)}


def on_host(run: Run) -> Run:
    """Return the run with the CPU as its device, for what the host does."""
    host = copy.copy(run)
    host.device = "cpu"
    return host


def windows_of(dataset: VideoFrames | MovingDigits) -> Callable[[int], np.ndarray]:
    """Return a function that writes the windows of a batch, given its number."""
    order = BatchOrder(len(dataset), BATCH)
    return lambda k: dataset.windows(order.indices(k), order.choices(k))


def measure_writing(run: Run, case: str, datasets) -> list[dict]:
    """Time one thread, of 20 batches a round."""
    timings = on_host(run).measure({name: windows_of(datasets[source]) for name, source in WINDOWS.items()}, range(20))
    return run.rows(timings, more=clip_rates(timings))


def check_videos(case: str, videos: Mapping[str, torch.Tensor], exact: torch.Tensor) -> None:
    """Raise SystemExit unless all videos are the exact ones, up to twice the rounding error of a number."""

    def error_of(read):
        # No level becomes 0.
        return ((read.double() / exact - 1).abs().max() / torch.finfo(read.dtype).eps).item()

    accuracy.check(case, {name: partial(torch.clone, read) for name, read in videos.items()}, error_of, lambda *_: 2.0)


def feed_of(run: Run, dataset: VideoFrames | MovingDigits, workers: int, resident: str) -> Feed:
    """Return a feed of the dataset, in the device's dtype."""
    options = {"batch_size": BATCH, "channels": CHANNELS, "device": run.device, "dtype": DTYPE[run.device]}
    return open_feed(dataset, **options, workers=workers, resident=resident)


def measure_feeding(run: Run, case: str, datasets) -> list[dict]:
    """Check and time feeds that are read as fast as batches come; on a GPU also beside the work of a step."""
    workers, batches = WORKERS[run.device], 1 if run.smoke else {"cpu": 20, "cuda": 100}[run.device]
    feeds = {name: feed_of(run, datasets[source], workers, resident) for name, (source, resident) in FEEDS.items()}
    for source in datasets:
        first = {name: first_videos(feed) for name, feed in feeds.items() if FEEDS[name][0] == source}
        check_videos(case, first, next(iter(first.values())).double())
    timings = time_feeds(run, feeds, batches)
    rates = clip_rates(timings)
    rows = run.rows(timings, more=lambda name: {"description": feeds[name].description, **rates(name)})
    if run.device == "cuda":
        feed = feeds["frames, resident"]
        batch = next(feed.batches())
        same = SimpleNamespace(read=feed.read, batches=lambda: itertools.repeat(batch))
        rows += run.rows(time_feeds(run, {NO_FEED: same, **feeds}, batches, busy_work()), BESIDE)
    return rows


def first_videos(feed: Feed) -> torch.Tensor:
    """Return what the step reads of a feed's first batch."""
    return feed.read(next(feed.batches()).clips)


def time_feeds(run: Run, feeds: Mapping[str, Feed], batches: int, work: Callable = lambda: None) -> dict[str, Timing]:
    """Time a batch of each feed, by the clock and in turns, with `work` behind each."""
    seconds = {name: [] for name in feeds}
    with run.watch:
        for _ in range(suite.SMOKE_ROUNDS if run.smoke else ROUNDS):
            for name, feed in feeds.items():
                seconds[name].append(seconds_a_batch(feed, batches, work))
    return {name: Timing.of(column, "perf_counter") for name, column in seconds.items()}


def seconds_a_batch(feed: Feed, count: int, work: Callable) -> float:
    """Return wall-clock time, the device's work included, once what was made ahead at the start is used up."""
    made = feed.batches()

    def take(most):
        for batch in itertools.islice(made, most):
            videos = feed.read(batch.clips)
            work()
        if videos.is_cuda:
            torch.cuda.synchronize()

    take(batches_ahead(max(WORKERS.values())))
    start = time.perf_counter()
    take(count)
    return (time.perf_counter() - start) / count


def busy_work() -> Callable[[], None]:
    """Return a function that keeps a GPU busy for the time of a step."""
    cycles = 10_000_000
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(cycles)
    begin.record()
    torch.cuda._sleep(cycles)
    end.record()
    torch.cuda.synchronize()
    return partial(torch.cuda._sleep, int(cycles * 1e3 * STEP_SECONDS / begin.elapsed_time(end)))


def clip_rates(timings: Mapping[str, Timing]) -> Callable[[str], dict]:
    """Return a function that tells the rate of a contender that is timed on batches."""
    rates = {name: BATCH / timing.median for name, timing in timings.items()}
    return lambda name: {"clips_per_second": rounded(rates[name]), "of_needed": rounded(rates[name] / NEEDED)}


def measure(run: Run, case: str) -> dict:
    """Check and time one case."""
    measure_case = measure_writing if case == WRITING else measure_feeding
    return {"timings": measure_case(run, case, make_datasets(run)), "left_out": {}}


def details(record: dict) -> Iterator[str]:
    """Yield rates, and the share of what is needed."""
    for row in record["timings"]:
        for unit in ("clips", "frames"):
            if (rate := row.get(f"{unit}_per_second")) is not None:
                needed = f", {row['of_needed']:.2f}× needed" if "of_needed" in row else ""
                yield f"  {row['contender']:38}{rate:12,.0f} {unit}/s{needed}"


def conclusion(payload: dict) -> Iterator[str]:
    """Yield what a GPU's step needs."""
    yield f"needed: {NEEDED:,.0f} clips/s, batches of {BATCH} for {STEP} on a GPU"


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals: a step waits for no data."""
    rows = {(record["case"], row["part"], row["contender"]): row for record in records for row in record["timings"]}
    windows = [rows[key]["of_needed"] for key in ((WRITING, None, name) for name in WINDOWS) if key in rows]
    goals = [Goal(f"times the windows that {STEP} needs, by one thread", min(windows, default=None), 1.0, False)]
    if device == "cuda":
        resident = ((FEEDING, BESIDE, name) for name, (_, residence) in FEEDS.items() if residence == "on")
        ratios = [rows[key]["ratio"] for key in resident if key in rows]
        goals.append(Goal(f"{STEP} with a resident feed, of one without", max(ratios, default=None), 1.01, True))
    return goals


SECTION = Section(
    name="data",
    title="from a data set to the training step, a batch",
    cases=lambda run: [WRITING, FEEDING],
    measure=measure,
    details=details,
    conclusion=conclusion,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
