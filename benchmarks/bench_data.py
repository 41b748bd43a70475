"""Batches from a data set to the training step, compared with the rate that a GPU step needs.

    python -m benchmarks.bench_data --device cuda

On a GPU the feeds also run beside a step of 3 ms that keeps the GPU busy: if an iteration takes longer with a feed than
with one repeated batch, it waits for data.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks import accuracy, suite
from benchmarks.ceilings import Work
from benchmarks.harness import Timing
from benchmarks.result_files import Goal, rounded
from benchmarks.suite import Run, Section
from tgan_fast.data import Feed, MovingDigits, PreparedVideos, VideoFrames, open_feed
from tgan_fast.data.order import BatchOrder
from tgan_fast.data.prefetch import batches_ahead
from tgan_fast.models import FRAMES, IMAGE_SIZE
from tgan_fast.ops.windows import read_windows

BATCH, CHANNELS = 32, 3
HEIGHT, WIDTH = 64, 85  # of prepared UCF-101
STEP_SECONDS = 3e-3
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
WORKERS, ROUNDS = 2, 3  # threads of a feed, and rounds in which feeds are timed

WRITING, READING, FEEDING = "one thread writes a batch", "the step reads frames", "whole feeds"
# Data sets whose windows a thread writes.
WINDOWS = {"windows of frames": "frames", "windows of digits": "digits"}
# Backends that read windows of frames.
READERS = {"cpu": {"indexing": "torch"}, "cuda": {"kernel": "triton", "indexing": "torch"}}
# Data set of each feed, and whether it lives on the device.
FEEDS = {
    "frames, resident": ("frames", "on"),
    "frames, prefetched": ("frames", "off"),
    "digits, drawn": ("digits", "on"),
}
STEP = f"a step of {1e3 * STEP_SECONDS:.0f} ms"
BESIDE, NO_FEED = f"beside {STEP}", "the same batch"


def make_datasets(run: Run) -> dict[str, VideoFrames | MovingDigits]:
    """Return random frames in videos of 100 each, cropped and mirrored at random, and the paper's two digits."""
    count = 200 if run.smoke else {"cpu": 4_000, "cuda": 20_000}[run.device]
    frames = np.random.default_rng(0).integers(256, size=(count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    first = np.arange(0, count, 100).repeat(max(1, 100 * BATCH // count))
    videos = VideoFrames(
        PreparedVideos(frames, first, np.full_like(first, 100), first // 100), crop="random", flip=True
    )
    return {"frames": videos, "digits": MovingDigits(digits=2, channels=CHANNELS)}


def windows_of(dataset: VideoFrames | MovingDigits) -> Callable[[int], np.ndarray]:
    """Return a function that writes the windows of a batch, given its number."""
    order = BatchOrder(len(dataset), BATCH)
    return lambda k: dataset.windows(order.indices(k), order.choices(k))


def first_clips(dataset: VideoFrames | MovingDigits) -> torch.Tensor:
    """Return the clips of the first batch, uint8 [32, 16, 64, 64, C], by indexing."""
    frame, top, left, step = torch.from_numpy(windows_of(dataset)(0))[..., None, None].unbind(3)
    ramp = torch.arange(IMAGE_SIZE)
    return dataset.frames[frame, top + ramp[:, None], left + step * ramp].amax(1)  # the brightest of all layers


def check_reads(case: str, calls: Mapping[str, Callable[[], torch.Tensor]], clips: torch.Tensor) -> None:
    """Raise SystemExit unless all calls return the clips' videos, up to twice the rounding error of a number."""
    exact = (2 * clips.movedim(-1, 1).double() - 255) / 255  # never 0

    def error_of(videos):
        return ((videos.double().cpu() / exact - 1).abs().max() / torch.finfo(videos.dtype).eps).item()

    accuracy.check_contenders(case, calls, error_of, lambda *_: 2.0)


def measure_writing(run: Run, datasets: Mapping) -> list[dict]:
    """Time one thread that chooses windows, 20 batches a round."""
    writers = {name: windows_of(datasets[source]) for name, source in WINDOWS.items()}
    return run.rows(run.measure(writers, range(20), device="cpu"))


def measure_reading(run: Run, datasets: Mapping) -> list[dict]:
    """Check and time the reading of videos from windows of frames on the device."""
    dataset, dtype = datasets["frames"], DTYPE[run.device]
    frames, windows = dataset.frames.to(run.device), windows_of(dataset)
    nbytes = BATCH * CHANNELS * FRAMES * IMAGE_SIZE**2 * (1 + dtype.itemsize)  # read and written
    batches = [torch.from_numpy(windows(k)).to(run.device) for k in range(run.input_set_count(nbytes))]
    read = partial(read_windows, frames, dtype=dtype, channels=CHANNELS)
    readers = {name: partial(read, backend=backend) for name, backend in READERS[run.device].items()}
    check_reads(READING, {name: partial(read, batches[0]) for name, read in readers.items()}, first_clips(dataset))
    return run.rows(run.measure(readers, batches, warm=True), work=Work(0, nbytes))


def feed_of(run: Run, dataset: VideoFrames | MovingDigits, resident: str) -> Feed:
    """Return a feed of the dataset, in the device's dtype."""
    how = {"dtype": DTYPE[run.device], "workers": WORKERS, "resident": resident}
    return open_feed(dataset, batch_size=BATCH, channels=CHANNELS, device=run.device, **how)


def measure_feeding(run: Run, datasets: Mapping) -> list[dict]:
    """Check and time feeds that are read as fast as possible; on a GPU also beside the work of a step."""
    feeds = {name: feed_of(run, datasets[source], resident) for name, (source, resident) in FEEDS.items()}
    for name, (source, _) in FEEDS.items():
        check_reads(FEEDING, {name: partial(first_videos, feeds[name])}, first_clips(datasets[source]))
    rows = run.rows(time_feeds(run, feeds))
    if run.device == "cuda":
        feed = feeds["frames, resident"]
        batch = next(feed.batches())
        same = SimpleNamespace(read=feed.read, batches=lambda: itertools.repeat(batch))
        rows += run.rows(time_feeds(run, {NO_FEED: same, **feeds}, busy_work()), BESIDE)
    return rows


def first_videos(feed: Feed) -> torch.Tensor:
    """Return the videos that a step reads from a feed's first batch."""
    return feed.read(next(feed.batches()).clips)


def time_feeds(run: Run, feeds: Mapping[str, Feed], work: Callable = lambda: None) -> dict[str, Timing]:
    """Time a batch of each feed by wall clock, in turns, with `work` after each batch.

    Timing begins when the batches made ahead at the start are used up, and ends when the device is done.
    """
    rounds, count = (suite.SMOKE_ROUNDS, 1) if run.smoke else (ROUNDS, {"cpu": 20, "cuda": 100}[run.device])
    seconds = {name: [] for name in feeds}

    def read(feed, batches):
        for batch in batches:
            feed.read(batch.clips)
            work()
        if run.device == "cuda":
            torch.cuda.synchronize()

    with run.watch:
        for _ in range(rounds):
            for name, feed in feeds.items():
                made = feed.batches()
                read(feed, itertools.islice(made, batches_ahead(WORKERS)))
                begin = time.perf_counter()
                read(feed, itertools.islice(made, count))
                seconds[name].append((time.perf_counter() - begin) / count)
    return {name: Timing.of(column, "perf_counter") for name, column in seconds.items()}


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


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals: a step waits for no data."""
    rows = [row for record in records for row in record["timings"]]
    times = [rounded(STEP_SECONDS / row["seconds"]) for row in rows if row["contender"] in WINDOWS]
    goals = [Goal(f"times the windows that {STEP} needs, by one thread", min(times, default=None), 1.0, False)]
    if device == "cuda":
        resident = [name for name, (_, residence) in FEEDS.items() if residence == "on"]
        ratios = [row["ratio"] for row in rows if row["part"] == BESIDE and row["contender"] in resident]
        goals.append(Goal(f"{STEP} with a resident feed, of one without", max(ratios, default=None), 1.01, True))
    return goals


MEASURES = {WRITING: measure_writing, READING: measure_reading, FEEDING: measure_feeding}
SECTION = Section(
    name="data",
    title=f"from a data set to the training step, a batch of {BATCH}; a GPU needs one in {1e3 * STEP_SECONDS:.0f} ms",
    cases=lambda run: list(MEASURES),
    measure=lambda run, case: {"timings": MEASURES[case](run, make_datasets(run)), "left_out": {}},
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
