"""Clips a second of everything between a data set and the training step, against what a GPU's step reads.

    python -m benchmarks.bench_data --device cuda

How fast one thread writes batches, on the host; how fast the step reads them, on the device; and whole feeds. On a GPU
the feeds also run beside a step of 3 ms that keeps the GPU busy: what an iteration takes longer with a feed than with
the same batch again and again is what training waits for data. First all must read the same clips.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import harness, suite
from benchmarks.ceilings import Work
from benchmarks.harness import Timing
from benchmarks.results import Goal, rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast.data import Feed, MovingDigits, VideoFrames, open_feed
from tgan_fast.data.order import BatchOrder
from tgan_fast.data.pixels import scaled
from tgan_fast.data.prefetch import batches_ahead
from tgan_fast.data.windows import read_windows, whole_frames
from tgan_fast.models import FRAMES, IMAGE_SIZE
from tgan_fast.ops.registry import TRITON_IS_INSTALLED

BATCH, CHANNELS = 32, 3
HEIGHT, WIDTH = 64, 85  # of prepared UCF-101
STEP_SECONDS = 3e-3
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
WORKERS = {"cpu": 2, "cuda": 4}
WRITTEN = 20  # batches, of one thread, a round
FEED_ROUNDS = 3

WRITING, FEEDING = "one thread writes a batch", "whole feeds"
READING = {f"the step reads {source}": source for source in ("frames", "two digits", "whole clips")}
# What a thread does for frames, and for digits, that live on the device.
WINDOWS = "windows of frames", "windows of digits"
WRITERS = (*WINDOWS, "clips cut out of frames", "clips of digits, one by one")
# The data set of each feed, and whether it lives on the device.
FEEDS = {
    "frames, resident": ("frames", "on"),
    "frames, prefetched": ("frames", "off"),
    "digits, drawn": ("digits", "on"),
    "digits, prefetched": ("digits", "off"),
}
BESIDE, NO_FEED = f"beside a step of {1e3 * STEP_SECONDS:.0f} ms", "the same batch"

_PIXELS = FRAMES * IMAGE_SIZE**2


class Scale(NamedTuple):
    """How much is measured."""

    frames: int
    batches: int  # a round, of a feed


class Reading(NamedTuple):
    """Frames and windows of them, as many as there are batches, and ways to read them."""

    inputs: list[tuple[torch.Tensor, torch.Tensor]]
    contenders: dict[str, Callable]  # (frames, windows) → videos

    @property
    def nbytes(self) -> int:
        """Of a batch, read and written."""
        frames, windows = self.inputs[0]
        bytes_written = CHANNELS * DTYPE[frames.device.type].itemsize
        return BATCH * _PIXELS * (windows.shape[1] * frames.shape[-1] + bytes_written)


def scale_of(run: Run) -> Scale:
    """Of a run."""
    if run.smoke:
        return Scale(200, 1)
    return Scale(20_000, 100) if run.device == "cuda" else Scale(4_000, 20)


def make_datasets(count: int) -> dict[str, VideoFrames | MovingDigits]:
    """`frames`, so many random ones of videos of 100 each, cropped and mirrored at random; the paper's two `digits`."""
    frames = np.frombuffer(np.random.default_rng(0).bytes(count * HEIGHT * WIDTH * 3), np.uint8)
    first = np.arange(0, count, 100).repeat(max(1, 100 * BATCH // count))
    videos = VideoFrames(
        frames.reshape(-1, HEIGHT, WIDTH, 3), first, np.full_like(first, 100), first // 100, crop="random", flip=True
    )
    return {"frames": videos, "digits": MovingDigits(digits=2, channels=CHANNELS)}


def writers(datasets) -> dict[str, Callable[[int], object]]:
    """What threads do for a batch, each of `WRITERS` a function of its number."""
    videos, digits = datasets["frames"], datasets["digits"]
    orders = {dataset: BatchOrder(len(dataset), BATCH) for dataset in (videos, digits)}
    clips = np.empty((BATCH, FRAMES, IMAGE_SIZE, IMAGE_SIZE, CHANNELS), np.uint8)

    def windows(dataset, k):
        return dataset.windows(orders[dataset].indices(k), orders[dataset].choices(k))

    return {
        "windows of frames": lambda k: windows(videos, k),
        "windows of digits": lambda k: windows(digits, k),
        "clips cut out of frames": lambda k: videos.cut(windows(videos, k), clips),
        "clips of digits, one by one": lambda k: [digits[int(i)] for i in orders[digits].indices(k)],
    }


def readers_for(source, device) -> dict[str, Callable]:
    """Ways to read a batch, each a function of frames and windows."""
    dtype = DTYPE[device]
    by_kernel = {"kernel": _reader("triton", dtype)} if device == "cuda" and TRITON_IS_INSTALLED else {}
    if source == "whole clips":
        return {**by_kernel, "elementwise": lambda clips, _: scaled(clips.unflatten(0, (BATCH, FRAMES)), dtype)}
    return {**by_kernel, "indexing": _reader("torch", dtype)}


def _reader(backend, dtype):
    return lambda frames, windows: read_windows(frames, windows, dtype=dtype, channels=CHANNELS, backend=backend)


def make_reading(source, datasets, device, count) -> Reading:
    """What the step does with a batch: `count` different ones."""
    if source == "whole clips":
        clips = torch.randint(256, (count, BATCH * FRAMES, IMAGE_SIZE, IMAGE_SIZE, CHANNELS), dtype=torch.uint8)
        whole = whole_frames(BATCH).to(device)
        inputs = [(batch, whole) for batch in clips.to(device)]
    else:
        dataset = datasets["frames" if source == "frames" else "digits"]
        frames, order = dataset.frames.to(device), BatchOrder(len(dataset), BATCH)
        windows = (dataset.windows(order.indices(k), order.choices(k)) for k in range(count))
        inputs = [(frames, torch.from_numpy(window).to(device)) for window in windows]
    return Reading(inputs, readers_for(source, device))


def check_reading(source, reading) -> None:
    """All contenders read the same, up to the rounding of the division; raises otherwise."""
    expected = read_windows(*reading.inputs[0], dtype=torch.float64, channels=CHANNELS)
    for name, read in reading.contenders.items():
        videos = read(*reading.inputs[0])
        if not torch.allclose(videos.double(), expected, rtol=2 * torch.finfo(videos.dtype).eps, atol=0):
            raise SystemExit(f"error: {name} reads other videos from {source}: nothing is timed")


def make_feeds(datasets, device) -> dict[str, Feed]:
    """Every one of `FEEDS`."""
    options = {
        "batch_size": BATCH,
        "channels": CHANNELS,
        "device": device,
        "dtype": DTYPE[device],
        "workers": WORKERS[device],
    }
    return {
        name: open_feed(datasets[dataset], **options, resident=resident) for name, (dataset, resident) in FEEDS.items()
    }


def clips_of(feed: Feed) -> Iterator[torch.Tensor]:
    """What the feed reads, batch by batch."""
    return (batch.clips for batch in feed.batches())


def check_feeds(feeds) -> None:
    """Both feeds of a data set yield the same videos; raises otherwise."""
    first = {
        name: [feed.read(clips).clone() for clips in itertools.islice(clips_of(feed), 2)]
        for name, feed in feeds.items()
    }
    names = list(feeds)
    for one, other in zip(names[::2], names[1::2], strict=True):
        if not all(torch.equal(left, right) for left, right in zip(first[one], first[other], strict=True)):
            raise SystemExit(f"error: {one} and {other} feed other videos: nothing is timed")


def time_writers(run, contenders) -> list[dict]:
    """On the host, whatever the device."""
    rounds = suite.SMOKE_ROUNDS if run.smoke else None
    with run.watch:
        timings = harness.measure(contenders, range(WRITTEN), "cpu", rounds)
    return run.rows(timings, more=lambda name: _clips(timings[name]))


def time_reading(run, reading) -> list[dict]:
    """On the device, against the bytes that must be read and written."""
    contenders = {name: functools.partial(_read, read) for name, read in reading.contenders.items()}
    timings = run.measure(contenders, reading.inputs)
    return run.rows(timings, work=Work(0, reading.nbytes), more=lambda name: _clips(timings[name]))


def _read(read, inputs):
    return read(*inputs)


def time_feeds(run, feeds) -> list[dict]:
    """Read as fast as batches come; on a GPU also beside the work of a step."""
    batches, work = scale_of(run).batches, busy_work(run.device)
    alone, beside = {name: [] for name in feeds}, {name: [] for name in (NO_FEED, *feeds)}
    with run.watch:
        for _ in range(suite.SMOKE_ROUNDS if run.smoke else FEED_ROUNDS):
            for name, feed in feeds.items():
                alone[name].append(seconds_a_batch(feed.read, clips_of(feed), batches))
                if work is not None:
                    beside[name].append(seconds_a_batch(feed.read, clips_of(feed), batches, work))
            if work is not None:
                feed = next(iter(feeds.values()))
                same = itertools.repeat(next(clips_of(feed)).clone())
                beside[NO_FEED].append(seconds_a_batch(feed.read, same, batches, work))
    timings = _timings(alone)
    rows = run.rows(timings, more=lambda name: _feed(feeds[name], timings[name]))
    return rows if work is None else [*rows, *run.rows(_timings(beside), BESIDE)]


def _timings(seconds):
    return {name: Timing.of(column, "perf_counter") for name, column in seconds.items()}


def _feed(feed, timing):
    slowest = rounded(BATCH / max(timing.rounds))
    return {"description": feed.description, **_clips(timing), "slowest_clips_per_second": slowest}


def _clips(timing):
    rate = BATCH / timing.median
    return {"clips_per_second": rounded(rate), "of_needed": rounded(rate / needed_clips_per_second())}


def needed_clips_per_second() -> float:
    """By a GPU's step."""
    return BATCH / STEP_SECONDS


def need_of_step(payload: dict) -> str:
    """A line on what a GPU's step needs."""
    of_step = f"for a step of {1e3 * STEP_SECONDS:.0f} ms on a GPU"
    return f"needed: {payload['needed_clips_per_second']:,.0f} clips/s, batches of {payload['batch']} {of_step}"


def seconds_a_batch(read, batches, count, work=lambda: None) -> float:
    """Wall-clock time, the device's work included, once what was made ahead at the start is used up."""

    def take(most):
        for batch in itertools.islice(batches, most):
            videos = read(batch)
            work()
        if videos.is_cuda:
            torch.cuda.synchronize()

    take(batches_ahead(max(WORKERS.values())))
    start = time.perf_counter()
    take(count)
    return (time.perf_counter() - start) / count


def busy_work(device) -> Callable | None:
    """Keeps a GPU busy for the time of a step; there is nothing like it for a CPU."""
    if device == "cpu":
        return None
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(1_000_000)
    begin.record()
    torch.cuda._sleep(10_000_000)
    end.record()
    torch.cuda.synchronize()
    cycles = int(10_000_000 * STEP_SECONDS / (begin.elapsed_time(end) / 1e3))
    return lambda: torch.cuda._sleep(cycles)


def measure(run: Run, case: str) -> dict:
    """Check and time one case."""
    datasets = make_datasets(scale_of(run).frames)
    if case == WRITING:
        timings = time_writers(run, writers(datasets))
    elif case == FEEDING:
        feeds = make_feeds(datasets, run.device)
        check_feeds(feeds)
        timings = time_feeds(run, feeds)
    else:
        count = run.input_set_count(BATCH * _PIXELS * CHANNELS)
        reading = make_reading(READING[case], datasets, run.device, count)
        check_reading(READING[case], reading)
        timings = time_reading(run, reading)
    return {"timings": timings, "left_out": {}}


def labels_for(run: Run, case: str) -> list[Label]:
    """Of its timings."""
    if case == FEEDING:
        beside = (NO_FEED, *FEEDS) if run.device == "cuda" else ()
        return [*(Label(name) for name in FEEDS), *(Label(name, BESIDE) for name in beside)]
    names = list(WRITERS if case == WRITING else readers_for(READING[case], run.device))
    return [Label(name) for name in (*names, harness.again(names[0]))]


def details(record: dict) -> Iterator[str]:
    """Clips a second."""
    for row in record["timings"]:
        if "clips_per_second" in row:
            rates = f"{row['clips_per_second']:12,.0f} clips/s, {row['of_needed']:.2f}× needed"
            yield f"  {row['contender']:32}{rates}"


def conclude(run: Run, records: list[dict]) -> dict:
    """What all cases have in common."""
    return {
        "batch": BATCH,
        "dtype": str(DTYPE[run.device]),
        "workers": WORKERS[run.device],
        "needed_clips_per_second": rounded(needed_clips_per_second()),
    }


def conclusion(payload: dict) -> Iterator[str]:
    """What is needed."""
    yield need_of_step(payload)
    yield f"feeds have {payload['workers']} threads; the step computes in {payload['dtype'].removeprefix('torch.')}"


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """That a step waits for no data."""
    rows = {(record["case"], row["part"], row["contender"]): row for record in records for row in record["timings"]}
    windows = [rows[key]["of_needed"] for key in ((WRITING, None, name) for name in WINDOWS) if key in rows]
    step = f"a step of {1e3 * STEP_SECONDS:.0f} ms"
    goals = [Goal(f"times the windows that {step} needs, by one thread", min(windows, default=None), 1.0, False)]
    if device == "cuda":
        resident = ((FEEDING, BESIDE, name) for name, (_, residence) in FEEDS.items() if residence == "on")
        ratios = [rows[key]["ratio"] for key in resident if key in rows]
        goals.append(Goal(f"{step} with a resident feed, of one without", max(ratios, default=None), 1.01, True))
    return goals


SECTION = Section(
    name="data",
    title="from a data set to the training step, a batch",
    cases=lambda run: [WRITING, *READING, FEEDING],
    measure=measure,
    details=details,
    conclude=conclude,
    conclusion=conclusion,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
