"""Clips a second of everything between a data set and the training step, against what a GPU's step reads.

    python -m benchmarks.bench_data --device cuda

Three parts: how fast threads write batches (host), how fast the step reads them (device), and whole feeds. On a GPU the
feeds also run beside a step of 3 ms that keeps the GPU busy: what an iteration takes longer with a feed than with the
same batch again and again is what training waits for data. First all must read the same clips.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
import tyro

from benchmarks import harness
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
NEEDED = BATCH / STEP_SECONDS  # clips a second
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
WORKERS = {"cpu": 2, "cuda": 4}
NOT_MEASURED = "not measured yet"
_PIXELS = FRAMES * IMAGE_SIZE**2


class Scale(NamedTuple):
    """How much is measured."""

    frames: int
    batches: int  # a round, of a feed
    rounds: int


SCALES = {"cpu": Scale(4_000, 20, 3), "cuda": Scale(20_000, 100, 3)}
SMOKE = Scale(200, 1, 2)


class Reading(NamedTuple):
    """Frames and windows of them, as many as there are batches, and ways to read them."""

    name: str
    inputs: list[tuple[torch.Tensor, torch.Tensor]]
    contenders: dict[str, Callable]  # (frames, windows) → videos

    @property
    def nbytes(self) -> int:
        """Of a batch, read and written."""
        frames, windows = self.inputs[0]
        bytes_written = CHANNELS * DTYPE[frames.device.type].itemsize
        return BATCH * _PIXELS * (windows.shape[1] * frames.shape[-1] + bytes_written)


def make_datasets(scale) -> tuple[VideoFrames, MovingDigits]:
    """Random frames of videos of 100 frames each, cropped and mirrored at random; and the paper's two digits."""
    frames = np.frombuffer(np.random.default_rng(0).bytes(scale.frames * HEIGHT * WIDTH * 3), np.uint8)
    first = np.arange(0, scale.frames, 100).repeat(max(1, 100 * BATCH // scale.frames))
    videos = VideoFrames(
        frames.reshape(-1, HEIGHT, WIDTH, 3), first, np.full_like(first, 100), first // 100, crop="random", flip=True
    )
    return videos, MovingDigits(digits=2, channels=CHANNELS)


def writers(videos, digits) -> dict[str, Callable[[int], object]]:
    """What threads do for a batch, each a function of its number."""
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


def readings(videos, digits, device, count) -> list[Reading]:
    """What the step does with a batch: `count` different ones."""
    dtype = DTYPE[device]
    by_kernel = {"kernel": _reader("triton", dtype)} if device == "cuda" and TRITON_IS_INSTALLED else {}
    by_indexing = {**by_kernel, "indexing": _reader("torch", dtype)}
    elementwise = {**by_kernel, "elementwise": lambda clips, _: scaled(clips.unflatten(0, (BATCH, FRAMES)), dtype)}

    def inputs_of(dataset):
        frames, order = dataset.frames.to(device), BatchOrder(len(dataset), BATCH)
        windows = (dataset.windows(order.indices(k), order.choices(k)) for k in range(count))
        return [(frames, torch.from_numpy(window).to(device)) for window in windows]

    clips = torch.randint(256, (count, BATCH * FRAMES, IMAGE_SIZE, IMAGE_SIZE, CHANNELS), dtype=torch.uint8)
    whole = whole_frames(BATCH).to(device)
    return [
        Reading("frames", inputs_of(videos), by_indexing),
        Reading("two digits", inputs_of(digits), by_indexing),
        Reading("whole clips", [(batch, whole) for batch in clips.to(device)], elementwise),
    ]


def _reader(backend, dtype):
    return lambda frames, windows: read_windows(frames, windows, dtype=dtype, channels=CHANNELS, backend=backend)


def check_readings(found) -> None:
    """All contenders read the same, up to the rounding of the division; raises otherwise."""
    for reading in found:
        expected = read_windows(*reading.inputs[0], dtype=torch.float64, channels=CHANNELS)
        for name, read in reading.contenders.items():
            videos = read(*reading.inputs[0])
            if not torch.allclose(videos.double(), expected, rtol=2 * torch.finfo(videos.dtype).eps, atol=0):
                raise SystemExit(f"error: {name} reads other videos from {reading.name}: nothing is timed")


def make_feeds(videos, digits, device) -> dict[str, Feed]:
    """Every kind of feed."""
    options = {
        "batch_size": BATCH,
        "channels": CHANNELS,
        "device": device,
        "dtype": DTYPE[device],
        "workers": WORKERS[device],
    }
    return {
        "frames, resident": open_feed(videos, **options, resident="on"),
        "frames, prefetched": open_feed(videos, **options, resident="off"),
        "digits, drawn": open_feed(digits, **options, resident="on"),
        "digits, prefetched": open_feed(digits, **options, resident="off"),
    }


def check_feeds(feeds) -> None:
    """Both feeds of a data set yield the same videos; raises otherwise."""
    first = {
        name: [feed.read(batch).clone() for batch in itertools.islice(feed.batches(), 2)]
        for name, feed in feeds.items()
    }
    names = list(feeds)
    for one, other in zip(names[::2], names[1::2], strict=True):
        if not all(torch.equal(left, right) for left, right in zip(first[one], first[other], strict=True)):
            raise SystemExit(f"error: {one} and {other} feed other videos: nothing is timed")


def time_writers(contenders, scale) -> list[dict]:
    """Clips a second of one thread."""
    rounds = dict.fromkeys(contenders, 5 * scale.rounds) | {"clips of digits, one by one": scale.rounds}
    timings = harness.measure(contenders, range(scale.batches), "cpu", rounds)
    return [{"batch": name, **_figures(timing)} for name, timing in timings.items()]


def time_readings(found, device, scale, copy) -> list[dict]:
    """Clips a second of the device, and GB/s of the bytes that must be read and written."""
    rows = []
    rounds = scale.rounds if device == "cpu" else None
    for reading in found:
        contenders = {name: functools.partial(_read, read) for name, read in reading.contenders.items()}
        for name, timing in harness.measure(contenders, reading.inputs, device, rounds).items():
            rate = reading.nbytes / timing.median
            rows.append(
                {
                    "from": reading.name,
                    "contender": name,
                    **_figures(timing),
                    "gigabytes_per_second": harness.rounded(rate / 1e9),
                    "share_of_copy": harness.rounded(rate / copy),
                }
            )
    return rows


def _read(read, inputs):
    return read(*inputs)


def time_feeds(feeds, device, scale) -> list[dict]:
    """Clips a second of whole feeds, read as fast as they come; on a GPU also seconds of an iteration of 3 ms."""
    work = busy_work(device)
    seconds, iterations = {name: [] for name in feeds}, {name: [] for name in (*feeds, None)}
    for _ in range(scale.rounds):
        for name, feed in feeds.items():
            seconds[name].append(seconds_a_batch(feed.read, feed.batches(), scale.batches))
            if work is not None:
                iterations[name].append(seconds_a_batch(feed.read, feed.batches(), scale.batches, work))
        if work is not None:
            feed = next(iter(feeds.values()))
            again = itertools.repeat(next(feed.batches()).clone())
            iterations[None].append(seconds_a_batch(feed.read, again, scale.batches, work))
    return [_feed_row(name, feed, seconds[name], iterations) for name, feed in feeds.items()]


def _feed_row(name, feed, seconds, iterations):
    with_feed, without = (
        harness.rounded(statistics.median(iterations[key])) if iterations[key] else None for key in (name, None)
    )
    return {
        "feed": name,
        "description": feed.description,
        "clips_per_second": harness.rounded(BATCH / statistics.median(seconds)),
        "slowest_clips_per_second": harness.rounded(BATCH / max(seconds)),
        "seconds_an_iteration": with_feed,
        "seconds_an_iteration_without": without,
    }


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


def _figures(timing):
    """Of a batch."""
    return {"clips_per_second": harness.rounded(BATCH / timing.median), **timing.record()}


def print_results(payload) -> None:
    """The three tables."""
    columns = f"{'µs':>10}{'p10':>10}{'p90':>10}{'clips/s':>12}{'of needed':>11}"
    print(f"\n{'one thread writes a batch of':34}{columns}")
    for row in payload["writing"]:
        print(f"  {row['batch']:32}{_microseconds(row)}{_rate(row)}")
    print(f"\n{'the step reads':34}{columns}{'GB/s':>9}{'of copy':>9}")
    for row in payload["reading"]:
        name = f"{row['from']}, {row['contender']}"
        shares = f"{row['gigabytes_per_second']:9.1f}{100 * row['share_of_copy']:7.1f} %"
        print(f"  {name:32}{_microseconds(row)}{_rate(row)}{shares}")
    of_step = f"ms of an iteration of {1e3 * STEP_SECONDS:.0f} ms, with and without"
    print(f"\n{'the whole feed':34}{'clips/s':>12}{'of needed':>11}  {of_step}")
    for row in payload["feeds"]:
        milliseconds = [row["seconds_an_iteration"], row["seconds_an_iteration_without"]]
        if None in milliseconds:
            of_step = NOT_MEASURED
        else:
            of_step = ", ".join(f"{1e3 * seconds:.3f}" for seconds in milliseconds)
        print(f"  {row['feed']:32}{_rate(row)}  {of_step}")


def _microseconds(row):
    return "".join(f"{1e6 * row[key]:10.1f}" for key in ("seconds", "p10", "p90"))


def _rate(row):
    return f"{row['clips_per_second']:12,.0f}{row['clips_per_second'] / NEEDED:10.2f}×"


def main(device: Literal["cpu", "cuda"] = "cpu", smoke: bool = False) -> None:
    """Print tables and write them to benchmarks/results.

    Args:
        device: where the step would run.
        smoke: only show that everything runs, in some seconds, and write nothing.
    """
    scale = SMOKE if smoke else SCALES[device]
    copy = harness.copy_bandwidth(device)
    print(f"{harness.device_name(device)}, torch {torch.__version__}, copy {copy / 1e9:.0f} GB/s")
    print(f"batch {BATCH}, {CHANNELS} channels, {DTYPE[device]}; needed: {NEEDED:,.0f} clips/s", end="")
    print(f" ({1e3 * STEP_SECONDS:.0f} ms a step on a GPU); {WORKERS[device]} threads")
    videos, digits = make_datasets(scale)
    count = 2 if smoke else harness.input_set_count(BATCH * _PIXELS * CHANNELS, device)
    found, feeds = readings(videos, digits, device, count), make_feeds(videos, digits, device)
    check_readings(found)
    check_feeds(feeds)
    payload = {
        "batch": BATCH,
        "dtype": str(DTYPE[device]),
        "workers": WORKERS[device],
        "needed_clips_per_second": harness.rounded(NEEDED),
        "copy_bytes_per_second": harness.rounded(copy),
        "writing": time_writers(writers(videos, digits), scale),
        "reading": time_readings(found, device, scale, copy),
        "feeds": time_feeds(feeds, device, scale),
    }
    print_results(payload)
    if not smoke:
        print(f"\nwritten to {harness.write_results('data', payload, device)}")


if __name__ == "__main__":
    tyro.cli(main)
