"""Video files to clips: decoding, cutting batches from a clip store, and feeding the training step.

    python -m benchmarks.bench_videos --device cpu

Videos are made for each run, with the size and about the bit rate of UCF-101's. One process with one thread decodes
them; only PyAV's to_ndarray, called as users would, starts its own threads. The floor is PyAV's decoding alone;
tgan_fast yields small frames, whereas PyAV's large arrays still have to be scaled.
"""

import itertools
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

from benchmarks import accuracy, bench_data, suite
from benchmarks.bench_data import BATCH, CHANNELS, HEIGHT, ROUNDS, STEP, STEP_SECONDS, WIDTH, first_clips, windows_of
from benchmarks.result_files import Goal, rounded
from benchmarks.suite import Run, Section
from tgan_fast.data import VideoFrames, read_videos
from tgan_fast.models import FRAMES, IMAGE_SIZE
from tgan_fast.preparation import prepare
from tgan_fast.preparation.decoding import FrameFormat, read_video
from tgan_fast.preparation.sources import recognize
from tgan_fast.training import TrainingConfig
from tgan_fast.training.build import build_step

FRAME_FORMAT = FrameFormat(HEIGHT, WIDTH, CHANNELS)
# FFmpeg's zoom into the Mandelbrot set, in which everything moves, with camera noise; and about UCF-101's bit rate.
SCENE, BIT_RATE = "mandelbrot=size=320x240:rate=25,noise=alls=4:allf=t", 500_000

# Encoder and file suffix.
DECODING = {"decoding MPEG-4, 320×240": ("mpeg4", ".avi"), "decoding H.264, 320×240": ("libx264", ".mp4")}
CUTTING, FEEDING = "one thread cuts a batch out of a store", "feed of a store"

OURS, ARRAYS, NDARRAY, PILLOW = "tgan_fast", "PyAV, RGB arrays", "PyAV, to_ndarray", "PyAV, scaled by Pillow"
ALONE = "decoding alone"
MOST_LEVELS_OFF = 3  # mean error in levels; PyAV itself converts colors with few bits

AT_RANDOM = {"crop": "random", "flip": True}
CUTS = {
    f"{HEIGHT}×{WIDTH}, centre": {},
    f"{HEIGHT}×{WIDTH}, random crop, flip": AT_RANDOM,
    f"{HEIGHT}×{WIDTH}, random crop, flip, stride 2": {**AT_RANDOM, "stride": 2},
}
NARROW_BATCH = 8
FEED, CPU_STEP, NARROW = f"{bench_data.WORKERS} threads", "a CPU's training step", f"narrow, batch {NARROW_BATCH}"


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
    """Yield a video's frames as PyAV objects, decoded by one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield from container.decode(stream)


def rgb_arrays(path: Path) -> Iterator[np.ndarray]:
    """Return a video's frames as arrays, converted by one thread."""
    reformatter = VideoReformatter()
    return (reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray() for frame in decoded(path))


def to_store_size(image: Image.Image) -> np.ndarray:
    """Return a frame scaled to the size of a store's frames."""
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


DECODERS: dict[str, Callable[[Path], Iterable]] = {
    OURS: lambda path: itertools.chain.from_iterable(read_video(path, FRAME_FORMAT)),
    ARRAYS: rgb_arrays,
    NDARRAY: lambda path: (frame.to_ndarray(format="rgb24") for frame in decoded(path)),
    PILLOW: lambda path: (to_store_size(frame.to_image()) for frame in decoded(path)),
}


def levels_off(expected: np.ndarray, frames: Iterable[np.ndarray]) -> float:
    """Return the mean error of frames in gray levels, infinite unless there are as many as expected."""
    frames = list(frames)
    if len(frames) != len(expected):
        return float("inf")
    small = [frame if frame.shape == FRAME_FORMAT.shape else to_store_size(Image.fromarray(frame)) for frame in frames]
    return rounded(float(abs(np.stack(small).astype(np.int16) - expected).mean()))


def measure_decoding(run: Run, case: str, folder: Path) -> list[dict]:
    """Check and time the decoders on one file, from opening it to the last frame."""
    codec, suffix = DECODING[case]
    path = encode(folder / f"video{suffix}", 36 if run.smoke else 180, codec)
    expected = np.stack([to_store_size(frame.to_image()) for frame in decoded(path)])
    calls = {name: partial(decode, path) for name, decode in DECODERS.items()}
    errors, _ = accuracy.check_contenders(case, calls, partial(levels_off, expected), lambda *_: MOST_LEVELS_OFF)
    decoders = {**DECODERS, ALONE: decoded}
    calls = {name: lambda path, decode=decode: deque(decode(path), maxlen=0) for name, decode in decoders.items()}
    timings = run.measure(calls, [path], rivals=[ARRAYS, NDARRAY, PILLOW], device="cpu", warm=True)
    floor = timings.pop(ALONE).median
    shares = {name: rounded(floor / timing.median) for name, timing in timings.items()}
    return run.rows(timings, more=lambda name: {"error": errors.get(name), "share_of_floor": shares[name]})


def write_store(run: Run, folder: Path) -> Path:
    """Prepare a clip store of videos of noise, larger than the last cache; return its folder."""
    count, length = (BATCH, 36) if run.smoke else ({"cpu": 128, "cuda": 360}[run.device], 180)
    noise = np.random.default_rng(0).integers(256, size=(count, length, *FRAME_FORMAT.shape), dtype=np.uint8)
    np.save(folder / "noise.npy", noise)
    prepare(recognize(folder / "noise.npy"), folder / "store", FRAME_FORMAT, workers=2)
    return folder / "store"


def measure_cutting(run: Run, case: str, folder: Path) -> list[dict]:
    """Check and time one thread that cuts batches out of a store in the page cache."""
    store, opened = write_store(run, folder), {}
    clips = np.empty((BATCH, FRAMES, IMAGE_SIZE, IMAGE_SIZE, CHANNELS), np.uint8)

    def map_anew(k):
        # This way most pages are touched for the first time, as in a large data set.
        if k == 0:
            opened.update({name: VideoFrames(read_videos(store), **options) for name, options in CUTS.items()})

    def cut(name, k):
        opened[name].cut(windows_of(opened[name])(k), clips)
        return opened[name]

    def share_wrong(videos):
        return float(np.mean(clips != first_clips(videos).numpy()))

    map_anew(0)
    accuracy.check_contenders(case, {name: partial(cut, name, 0) for name in CUTS}, share_wrong, lambda *_: 0.0)
    batches = range(2 if run.smoke else {"cpu": 20, "cuda": 50}[run.device])
    cutters = {name: partial(cut, name) for name in CUTS}
    return run.rows(run.measure(cutters, batches, device="cpu", prepare=map_anew, warm=True))


def measure_video_feeding(run: Run, case: str, folder: Path) -> list[dict]:
    """Check and time whole feeds; on a CPU also a training step on color videos that are already in memory."""
    dataset = VideoFrames(read_videos(write_store(run, folder)), **AT_RANDOM)
    feed = bench_data.feed_of(run, dataset, "off")
    first = partial(bench_data.first_videos, feed)
    bench_data.check_reads(case, {FEED: first}, first_clips(dataset))
    rows = run.rows(bench_data.time_feeds(run, {FEED: feed}))
    if run.device == "cpu":
        config = TrainingConfig(width=0.125, channels=CHANNELS, batch_size=NARROW_BATCH)
        step, videos = build_step(config, torch.device("cpu")), first()[:NARROW_BATCH]
        rows += run.rows(run.measure({NARROW: step}, [videos], ROUNDS), CPU_STEP)
    return rows


def measure(run: Run, case: str) -> dict:
    """Check and time one case, and remove its files afterwards."""
    measures = {CUTTING: measure_cutting, FEEDING: measure_video_feeding}
    with tempfile.TemporaryDirectory() as folder:
        return {"timings": measures.get(case, measure_decoding)(run, case, Path(folder)), "left_out": {}}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goals: small frames take little longer than decoding, and no step waits for clips."""
    rows = [(row["contender"], row) for record in records for row in record["timings"]]
    arrays = max((rounded(1 / row["ratio"]) for name, row in rows if name == ARRAYS), default=None)
    cores = max((rounded(row["seconds"] / STEP_SECONDS) for name, row in rows if name in CUTS), default=None)
    goals = [
        Goal("times PyAV's decoding to RGB arrays, tgan_fast's to small frames", arrays, 1.2, True),
        Goal(f"cores that cut the clips for {STEP}", cores, 4, True),
    ]
    if device == "cpu":
        fed, taken = (next((row["seconds"] for name, row in rows if name == wanted), None) for wanted in (FEED, NARROW))
        times = fed and rounded(BATCH / fed * taken / NARROW_BATCH)
        goals.append(Goal(f"times the clips that {CPU_STEP} takes, by a feed of {FEED}", times, 20, False))
    return goals


SECTION = Section(
    name="videos",
    title="from video files to clips, a file or a batch at a time; error: mean of gray levels",
    cases=lambda run: [*DECODING, CUTTING, FEEDING],
    measure=measure,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
