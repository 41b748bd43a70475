"""From video files to clips: decoding, preparing a clip store, cutting batches out of it, feeding the training step.

    python -m benchmarks.bench_videos --device cpu

Videos are made for each run, as large as those of UCF-101 and with about as many bits. First all must come to the same
frames, and to the clips that lie in the stores. Decoding is that of one process with one thread, from the opening of a
file to its last frame; PyAV's to_ndarray, as users write it, starts threads of its own. tgan_fast makes the authors'
small frames, large arrays still have to be scaled; who uses PyAV cannot be faster than decoding alone.

Stores are larger than the last cache and lie in the page cache. They are mapped anew before each turn, so that most
pages are touched for the first time, as in an epoch of a large data set.
"""

import itertools
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from benchmarks import accuracy, bench_data, harness, suite
from benchmarks.bench_data import BATCH, CHANNELS, HEIGHT, ROUNDS, STEP, WIDTH, clip_rates, feed_of, on_host, windows_of
from benchmarks.results import Goal, rounded
from benchmarks.suite import Run, Section
from tgan_fast.data import VideoFrames
from tgan_fast.data.decoding import Form, read_video
from tgan_fast.data.loading import open_videos
from tgan_fast.data.preparation import prepare
from tgan_fast.data.sources import recognise
from tgan_fast.data.store import ClipStore
from tgan_fast.models import FRAMES, IMAGE_SIZE
from tgan_fast.training import PRESETS, TrainingConfig
from tgan_fast.training.build import build_step

FORM = Form(HEIGHT, WIDTH, CHANNELS)
PROCESSES = min(4, len(os.sched_getaffinity(0)))
# FFmpeg's zoom into the Mandelbrot set, in which all moves, with a camera's noise; and about the bits of UCF-101's.
SCENE, BIT_RATE = "mandelbrot=size=320x240:rate=25,noise=alls=4:allf=t", 500_000

# Encoder, and how a file's name ends.
DECODING = {"decoding MPEG-4, 320×240": ("mpeg4", ".avi"), "decoding H.264, 320×240": ("libx264", ".mp4")}
PREPARING = f"preparing, {PROCESSES} process{'es' if PROCESSES > 1 else ''}"
CUTTING, FEEDING = "one thread cuts a batch out of a store", "feed of a store"

OURS, ARRAYS, NDARRAY, PILLOW = "tgan_fast", "PyAV, RGB arrays", "PyAV, to_ndarray", "PyAV, scaled by Pillow"
ALONE, DROPPED = "PyAV, decoding alone", "frames dropped"
# Average of 255. PyAV itself converts colors with few bits.
MOST_LEVELS_OFF = 3

# Width of a store's frames, and how clips are cut out of them.
AT_RANDOM = {"crop": "random", "flip": True}
CUTS = {
    f"{HEIGHT}×{IMAGE_SIZE}": (IMAGE_SIZE, {}),
    f"{HEIGHT}×{WIDTH}, centre": (WIDTH, {}),
    f"{HEIGHT}×{WIDTH}, random crop": (WIDTH, {"crop": "random"}),
    f"{HEIGHT}×{WIDTH}, random crop, flip": (WIDTH, AT_RANDOM),
    f"{HEIGHT}×{WIDTH}, random crop, flip, stride 2": (WIDTH, {**AT_RANDOM, "stride": 2}),
}
# Workers of each feed.
FEEDS = {"1 thread": 1, "2 threads": 2}
CPU_STEP, TINY = "a CPU's training step", "tiny, batch 8"


def length_of(run: Run) -> int:
    """Return the number of frames of a video."""
    return 36 if run.smoke else 180


def encode(path: Path, count: int, codec: str) -> Path:
    """Write `count` frames of the scene into a video file; return its path."""
    with av.open(SCENE, format="lavfi") as scene, av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 320, 240, "yuv420p", BIT_RATE
        for frame in itertools.islice(scene.decode(video=0), count):
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    return path


def decoded(path: Path) -> Iterator[av.VideoFrame]:
    """Yield a video's frames as PyAV has them, decoded by one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield from container.decode(stream)


def rgb_arrays(path: Path) -> Iterator[np.ndarray]:
    """Return a video's frames as arrays, converted by one thread."""
    reformatter = VideoReformatter()
    return (reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray() for frame in decoded(path))


def scaled(image: Image.Image) -> np.ndarray:
    """Return a frame as small as those of a store."""
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


# From a file to its frames.
DECODERS: dict[str, Callable[[Path], Iterable]] = {
    OURS: lambda path: itertools.chain.from_iterable(read_video(path, FORM)),
    ARRAYS: rgb_arrays,
    NDARRAY: lambda path: (frame.to_ndarray(format="rgb24") for frame in decoded(path)),
    PILLOW: lambda path: (scaled(frame.to_image()) for frame in decoded(path)),
    ALONE: decoded,
}


def levels_off(frames: list, expected: np.ndarray) -> float:
    """Return the mean error of frames in gray levels, infinite unless there are as many as expected."""
    if len(frames) != len(expected):
        return float("inf")
    if isinstance(frames[0], av.VideoFrame):
        return 0.0
    small = [frame if frame.shape == FORM.shape else scaled(Image.fromarray(frame)) for frame in frames]
    return rounded(float(abs(np.stack(small).astype(np.int16) - expected).mean()))


def measure_decoding(run: Run, case: str, folder: Path) -> dict:
    """Check and time what decodes one file."""
    codec, suffix = DECODING[case]
    path = encode(folder / f"video{suffix}", length_of(run), codec)
    expected = np.stack([scaled(frame.to_image()) for frame in decoded(path)])
    calls = {name: lambda decode=decode: list(decode(path)) for name, decode in DECODERS.items()}
    errors, _ = accuracy.check(case, calls, partial(levels_off, expected=expected), lambda *_: MOST_LEVELS_OFF)
    calls = {name: lambda path, decode=decode: deque(decode(path), maxlen=0) for name, decode in DECODERS.items()}
    if run.own_only:
        del calls[ALONE]
    timings = on_host(run).measure(calls, [path], rivals=[ARRAYS, NDARRAY, PILLOW], warm=True)
    rows = rows_of_frames(run, timings, len(expected), errors)
    rows = [row | {"part": DROPPED} if row["contender"] == ALONE else row for row in rows]
    return {"timings": rows, "left_out": {}}


def rows_of_frames(run: Run, timings: dict, count: int, errors: dict) -> list[dict]:
    """Return rows with frames a second."""
    rates = {name: rounded(count / timing.median) for name, timing in timings.items()}
    return run.rows(timings, more=lambda name: {"error": errors.get(name), "frames_per_second": rates[name]})


def share_wrong(pixels: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of the pixels that are others than expected, 1 for other shapes."""
    return float(np.mean(pixels != expected)) if pixels.shape == expected.shape else 1.0


def measure_preparing(run: Run, case: str, folder: Path) -> dict:
    """Check and time the way from a folder of files like those of UCF-101 to a store."""
    count = 4 if run.smoke else {"cpu": 24, "cuda": 72}[run.device]
    codec, suffix = next(iter(DECODING.values()))
    video = encode(folder / f"video{suffix}", length_of(run), codec)
    videos, store = folder / "videos", folder / "store"
    videos.mkdir()
    for number in range(count):
        shutil.copy(video, videos / f"{number}{suffix}")
    expected = np.concatenate(count * list(read_video(video, FORM)))

    def prepared(_=None):
        prepare(recognise(videos), store, FORM, workers=PROCESSES)
        return ClipStore(store).frames

    errors, _ = accuracy.check(case, {OURS: prepared}, partial(share_wrong, expected=expected), lambda *_: 0.0)
    # Not watched: what its processes use would count as used by others.
    rounds = suite.SMOKE_ROUNDS if run.smoke else ROUNDS
    timings = harness.measure(
        {OURS: prepared}, [None], "cpu", rounds, prepare=lambda _: shutil.rmtree(store), warm=True
    )
    return {"timings": rows_of_frames(run, timings, len(expected), errors), "left_out": {}}


def write_store(run: Run, folder: Path, width: int = WIDTH) -> Path:
    """Prepare a clip store of videos of noise, `width` columns wide; return its folder."""
    count, store = BATCH if run.smoke else {"cpu": 128, "cuda": 360}[run.device], folder / f"{width} columns"
    shape = count, length_of(run), HEIGHT, width, CHANNELS
    np.save(folder / "noise.npy", np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))
    prepare(recognise(folder / "noise.npy"), store, Form(HEIGHT, width, CHANNELS), workers=PROCESSES)
    return store


def first_clips(videos: VideoFrames, store: Path) -> np.ndarray:
    """Return the clips of the first batch, uint8 [32, 16, 64, 64, 3], cut frame by frame as its windows say."""
    columns, frames = np.arange(IMAGE_SIZE), ClipStore(store).frames
    windows = windows_of(videos)(0).reshape(-1, 4).tolist()
    cut = [frames[frame, top : top + IMAGE_SIZE][:, left + step * columns] for frame, top, left, step in windows]
    return np.stack(cut).reshape(BATCH, FRAMES, IMAGE_SIZE, IMAGE_SIZE, CHANNELS)


def measure_cutting(run: Run, case: str, folder: Path) -> dict:
    """Check and time one thread that cuts batches out of two stores."""
    stores = {width: write_store(run, folder, width) for width in (IMAGE_SIZE, WIDTH)}
    clips = np.empty((BATCH, FRAMES, IMAGE_SIZE, IMAGE_SIZE, CHANNELS), np.uint8)
    opened = {}

    def map_anew(k=0):
        for name, (width, options) in CUTS.items() if k == 0 else ():
            videos = open_videos(stores[width], **options).videos
            opened[name] = videos, windows_of(videos), stores[width]

    def cut(name, k=0):
        videos, windows, store = opened[name]
        videos.cut(windows(k), clips)
        return videos, store

    map_anew()
    cutters = {name: partial(cut, name) for name in CUTS}
    accuracy.check(case, cutters, lambda cut: share_wrong(clips, first_clips(*cut)), lambda *_: 0.0)
    batches = range(2 if run.smoke else {"cpu": 20, "cuda": 50}[run.device])
    timings = on_host(run).measure(cutters, batches, prepare=map_anew, warm=True)
    return {"timings": run.rows(timings, more=clip_rates(timings)), "left_out": {}}


def measure_feeding(run: Run, case: str, folder: Path) -> dict:
    """Check and time whole feeds; on a CPU also a training step, on videos in colors that are there already."""
    store = write_store(run, folder)
    dataset = open_videos(store, **AT_RANDOM).videos
    feeds = {name: feed_of(run, dataset, workers, "off") for name, workers in FEEDS.items()}
    levels = torch.from_numpy(first_clips(dataset, store)).permute(0, 4, 1, 2, 3).to(run.device).double()
    videos = {name: bench_data.first_videos(feed) for name, feed in feeds.items()}
    bench_data.check_videos(case, videos, (2 * levels - 255) / 255)
    timings = bench_data.time_feeds(run, feeds, 1 if run.smoke else {"cpu": 30, "cuda": 100}[run.device])
    rows = run.rows(timings, more=clip_rates(timings))
    if run.device == "cpu":
        config = TrainingConfig(**PRESETS["tiny"] | {"channels": CHANNELS})
        timings = run.measure(
            {TINY: build_step(config, torch.device("cpu"))}, [videos["1 thread"][: config.batch_size]], ROUNDS
        )
        rates = {name: rounded(config.batch_size / timing.median) for name, timing in timings.items()}
        rows += run.rows(timings, CPU_STEP, more=lambda name: {"clips_per_second": rates[name]})
    return {"timings": rows, "left_out": {}}


def measure(run: Run, case: str) -> dict:
    """Check and time one case; its files are gone afterwards."""
    measures = {PREPARING: measure_preparing, CUTTING: measure_cutting, FEEDING: measure_feeding}
    with tempfile.TemporaryDirectory() as folder:
        return measures.get(case, measure_decoding)(run, case, Path(folder))


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals: small frames cost little more than decoding, and no step waits for clips."""
    rows = {(record["case"], row["contender"]): row for record in records for row in record["timings"]}
    arrays = [rounded(1 / rows[case, ARRAYS]["ratio"]) for case in DECODING if (case, ARRAYS) in rows]
    cores = [rounded(1 / rows[CUTTING, name]["of_needed"]) for name in CUTS if (CUTTING, name) in rows]
    arrays, cores = (max(ratios, default=None) for ratios in (arrays, cores))
    goals = [
        Goal("times PyAV's decoding to RGB arrays, tgan_fast's to small frames", arrays, 1.2, True),
        Goal(f"cores that cut the clips for {STEP}", cores, 4, True),
    ]
    if device == "cpu":
        fed, taken = (rows.get((FEEDING, name), {}).get("clips_per_second") for name in ("2 threads", TINY))
        times = taken and rounded(fed / taken)
        goals.append(Goal(f"times the clips that {CPU_STEP} takes, by a feed of 2 threads", times, 20, False))
    return goals


SECTION = Section(
    name="videos",
    title="from video files to clips, a file, a folder or a batch at a time; error: mean of gray levels",
    cases=lambda run: [*DECODING, PREPARING, CUTTING, FEEDING],
    measure=measure,
    details=bench_data.details,
    conclusion=bench_data.conclusion,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
