"""From video files to clips: decoding, preparing a clip store, cutting batches out of it, feeding the training step.

    python -m benchmarks.bench_videos --device cpu

Videos are made for each run, as large as those of UCF-101 and with about as many bits. All but the feeds of a GPU is
work of the host. First all must come to the same frames, and to the clips that lie in the stores.

Decoding is that of one process with one thread, from the opening of a file to its last frame; PyAV's to_ndarray, as
users write it, starts threads of its own to convert colours. tgan_fast makes the authors' small frames; who makes large
arrays has these still to scale. Decoding alone drops its frames: nobody who uses PyAV can be faster.

Preparing goes from a folder of files to a store that is safe on the disk, checksums included. Both contenders start
their processes within what is timed, each a fork of a server that has begun before.

Stores are larger than the last cache and lie in the page cache. They are mapped anew before each turn, so that most
pages are touched for the first time, as in an epoch of a large data set.
"""

import hashlib
import itertools
import multiprocessing
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from benchmarks import bench_data, footage, harness, suite
from benchmarks.bench_data import (
    BATCH,
    CHANNELS,
    DTYPE,
    HEIGHT,
    STEP_SECONDS,
    WIDTH,
    clips_of,
    need_of_step,
    needed_clips_per_second,
    seconds_a_batch,
)
from benchmarks.harness import Timing
from benchmarks.results import Goal, rounded
from benchmarks.suite import Label, Run, Section
from tgan_fast.data import Feed, open_feed
from tgan_fast.data.decoding import Form, read_video
from tgan_fast.data.loading import open_videos
from tgan_fast.data.order import BatchOrder
from tgan_fast.data.preparation import prepare, worker
from tgan_fast.data.sources import recognise
from tgan_fast.data.store import ClipStore, Entry, Header, StoreWriter
from tgan_fast.models import FRAMES, IMAGE_SIZE
from tgan_fast.training import PRESETS, TrainingConfig, TrainingStep
from tgan_fast.training.build import build_step

FORM = Form(HEIGHT, WIDTH, CHANNELS)
PROCESSES = min(4, len(os.sched_getaffinity(0)))

# The encoder, and how a file's name ends.
DECODING = {
    f"decoding MPEG-4, {footage.WIDTH}×{footage.HEIGHT}": ("mpeg4", ".avi"),
    f"decoding H.264, {footage.WIDTH}×{footage.HEIGHT}": ("libx264", ".mp4"),
}
PREPARING = f"preparing, {PROCESSES} process{'es' if PROCESSES > 1 else ''}"
CUTTING, FEEDING = "one thread cuts a batch out of a store", "feed of a store"

OURS, ARRAYS, NDARRAY, PILLOW = "tgan_fast", "PyAV, RGB arrays", "PyAV, to_ndarray", "PyAV, scaled by Pillow"
ALONE, DROPPED = "PyAV, decoding alone", "frames dropped"
RIVALS = ARRAYS, NDARRAY, PILLOW
# On average, of 255. PyAV itself converts colours with few bits.
MOST_LEVELS_OFF = 3

# How wide a store's frames are, and how clips are cut out of them.
AT_RANDOM = {"crop": "random", "flip": True}
CUTS = {
    f"{HEIGHT}×{IMAGE_SIZE}": (IMAGE_SIZE, {}),
    f"{HEIGHT}×{WIDTH}, centre": (WIDTH, {}),
    f"{HEIGHT}×{WIDTH}, random crop": (WIDTH, {"crop": "random"}),
    f"{HEIGHT}×{WIDTH}, random crop, flip": (WIDTH, AT_RANDOM),
    f"{HEIGHT}×{WIDTH}, random crop, flip, stride 2": (WIDTH, {**AT_RANDOM, "stride": 2}),
}

# How many workers, and whether the frames live on the device.
ONE, TWO, RESIDENT = "1 thread", "2 threads", "resident"
FEEDS = {"cpu": {ONE: (1, "off"), TWO: (2, "off")}, "cuda": {ONE: (1, "off"), TWO: (2, "off"), RESIDENT: (2, "on")}}
STEP = "a CPU's training step"
# Of each preset, how many videos at once.
STEP_BATCHES = {"tiny": 8, "paper": 4}
SMOKE_WIDTH = 1 / 16

# Each takes about a second.
ROUNDS = 3

MOST_OF_ARRAYS, FEWEST_OF_STEP, MOST_CORES = 1.2, 20, 4


class Scale(NamedTuple):
    """How much is measured."""

    length: int  # frames of a video
    files: int  # that are prepared
    stored: int  # videos of a store
    cut: int  # batches of a round
    fed: int  # batches of a round


def scale_of(run: Run) -> Scale:
    """Of a run. Beside a GPU there are larger caches."""
    if run.smoke:
        return Scale(length=36, files=4, stored=BATCH, cut=2, fed=1)
    if run.device == "cuda":
        return Scale(length=180, files=72, stored=360, cut=50, fed=100)
    return Scale(length=180, files=24, stored=128, cut=20, fed=30)


def decoded(path: Path) -> Iterator[av.VideoFrame]:
    """A video's frames as PyAV has them, by one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield from container.decode(stream)


def _small_frames(path):
    return itertools.chain.from_iterable(read_video(path, FORM))


def _arrays(path):
    reformatter = VideoReformatter()
    return (reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray() for frame in decoded(path))


def _arrays_as_users_write_it(path):
    return (frame.to_ndarray(format="rgb24") for frame in decoded(path))


def _scaled_by_pillow(path):
    return (_scaled(frame.to_image()) for frame in decoded(path))


def _scaled(image):
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


# Each from a file to its frames.
DECODERS: dict[str, Callable[[Path], Iterable]] = {
    OURS: _small_frames,
    ARRAYS: _arrays,
    NDARRAY: _arrays_as_users_write_it,
    PILLOW: _scaled_by_pillow,
    ALONE: decoded,
}


def check_decoding(path: Path, count: int) -> float:
    """By how many grey levels the package's frames are off, on average, from PyAV's, scaled by Pillow.

    Raises:
        SystemExit: not all of `DECODERS` yield `count` frames, or pixels that are about the same.
    """
    expected = np.stack(list(_scaled_by_pillow(path))).astype(np.int16)
    off = {}
    for name, decode in DECODERS.items():
        frames = list(decode(path))
        if len(frames) != count:
            raise SystemExit(f"error: {name} yields {len(frames)} of {count} frames: nothing is timed")
        if name == ALONE:
            continue
        off[name] = float(abs(np.stack([_as_small(frame) for frame in frames]) - expected).mean())
        if not off[name] <= MOST_LEVELS_OFF:
            raise SystemExit(f"error: {name} is off by {off[name]:.1f} grey levels: nothing is timed")
    return off[OURS]


def _as_small(frame):
    return frame if frame.shape == FORM.shape else _scaled(Image.fromarray(frame))


def measure_decoding(run: Run, case: str, folder: Path) -> dict:
    """Of one file."""
    codec, suffix = DECODING[case]
    count = scale_of(run).length
    path = footage.encode(folder / f"video{suffix}", footage.moving_scene(count), codec)
    off = check_decoding(path, count)
    calls = {name: lambda path, name=name: deque(DECODERS[name](path), maxlen=0) for name in contenders_of(run, case)}
    with run.watch:
        timings = harness.measure(calls, [path], "cpu", _rounds(run), warm=True)
    record = {"video_seconds": count / footage.RATE, "video_bytes": path.stat().st_size, "levels_off": rounded(off)}
    return record | {"timings": _rows_of_frames(run, timings, count), "left_out": {}}


def _rows_of_frames(run, timings, count):
    """With frames a second, and how many times as long as the decoding alone a contender takes."""
    rows = []
    for name, timing in timings.items():
        more = {"frames_per_second": rounded(count / timing.median)}
        if ALONE in timings and name != ALONE:
            more["of_decoding_alone"] = rounded(timing.median / timings[ALONE].median)
        rows.append(run.row(_label(name), timing, **more))
    return rows


def _label(name):
    """What drops its frames is compared with nobody."""
    return Label(name, DROPPED if name == ALONE else None)


def decode_files(paths: Iterable[Path]) -> int:
    """How many frames files have, decoded by `PROCESSES`."""
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("forkserver")) as pool:
        return sum(pool.map(_count_decoded, paths))


def _count_decoded(path):
    return sum(1 for _ in decoded(path))


def check_preparing(videos: Path, store: Path, count: int) -> None:
    """Prepare a folder of files of `count` frames each, and leave the store.

    Raises:
        SystemExit: the store is not what they hold, or what only decodes them finds something else.
    """
    paths = sorted(videos.iterdir())
    prepare(recognise(videos), store, FORM, workers=PROCESSES)
    frames = ClipStore(store).frames
    if len(frames) != count * len(paths) or list(ClipStore(store).damaged()):
        raise SystemExit(f"error: {len(frames)} frames are stored of {len(paths)} × {count}: nothing is timed")
    for path, stored in (paths[0], frames[:count]), (paths[-1], frames[-count:]):
        if not np.array_equal(np.concatenate(list(read_video(path, FORM))), stored):
            raise SystemExit(f"error: {path.name} is stored as something else: nothing is timed")
    alone = decode_files(paths)
    if alone != len(frames):
        raise SystemExit(f"error: {ALONE} yields {alone} of {len(frames)} frames: nothing is timed")


def measure_preparing(run: Run, case: str, folder: Path) -> dict:
    """Of a folder of files like those of UCF-101."""
    length, count = scale_of(run).length, scale_of(run).files
    codec, suffix = next(iter(DECODING.values()))
    video = footage.encode(folder / f"video{suffix}", footage.moving_scene(length), codec)
    videos, store = folder / "videos", folder / "store"
    videos.mkdir()
    paths = [shutil.copy(video, videos / f"{number}{suffix}") for number in range(count)]
    _start_server()
    check_preparing(videos, store, length)
    stored, collection = ClipStore(store).frames.nbytes, recognise(videos)
    calls = {
        OURS: lambda _: prepare(collection, store, FORM, workers=PROCESSES),
        ALONE: lambda _: decode_files(paths),
    }
    # Not watched: what a server's forks use would count as used by others.
    timings = harness.measure(
        {name: calls[name] for name in contenders_of(run, case)},
        [None],
        "cpu",
        _rounds(run, ROUNDS),
        prepare=lambda _: shutil.rmtree(store, ignore_errors=True),
        warm=True,
    )
    record = {"video_bytes": count * video.stat().st_size, "stored_bytes": stored}
    return record | {"timings": _rows_of_frames(run, timings, count * length), "left_out": {}}


def _start_server():
    """The server that forks processes, with all that they import: no contender is to wait for that.

    Where this module is the program, each of them runs it anew, and finds its imports there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__name__, suite.__name__, bench_data.__name__, build_step.__module__])
    forkserver.ensure_running()


def write_store(folder: Path, width: int, scale: Scale) -> Path:
    """A clip store of videos of noise, `width` columns wide; returns `folder`."""
    header = Header(HEIGHT, width, CHANNELS, stride=1, fps=None, classes=())
    choices = np.random.default_rng(0)
    with closing(StoreWriter(folder, header)) as writer, tempfile.TemporaryFile(buffering=0) as spool:
        for number in range(scale.stored):
            content = choices.bytes(scale.length * header.frame_bytes)
            spool.seek(0)
            spool.write(content)
            spool.seek(0)
            digest = hashlib.sha256(content).hexdigest()
            entry = Entry(f"{number:04d}", -1, scale.length, None, None, None, len(content), digest, digest, "noise")
            writer.append(entry, spool.fileno())
    return folder


class Cutter:
    """Cuts batches out of a store as one thread of a feed does.

    Attributes:
        clips: the last batch, uint8 [32, 16, 64, 64, 3].
    """

    def __init__(self, store: Path, options: Mapping[str, Any]):
        self._store, self._options = store, options
        self.clips = np.empty((BATCH, FRAMES, IMAGE_SIZE, IMAGE_SIZE, CHANNELS), np.uint8)
        self.map_anew()

    def map_anew(self) -> None:
        """Forget which pages were touched."""
        self._videos = open_videos(self._store, **self._options).videos
        self._order = BatchOrder(len(self._videos), BATCH)

    def windows(self, k: int) -> np.ndarray:
        """Of batch `k`."""
        return self._videos.windows(self._order.indices(k), self._order.choices(k))

    def __call__(self, k: int) -> None:
        self._videos.cut(self.windows(k), self.clips)


def check_cutting(name: str, cutter: Cutter, frames: np.ndarray) -> None:
    """Raises SystemExit where a batch is not what lies in `frames`."""
    cutter(0)
    columns = np.arange(IMAGE_SIZE)
    for clip, windows in zip(cutter.clips, cutter.windows(0)[:, 0].tolist(), strict=True):
        for pixels, (frame, top, left, step) in zip(clip, windows, strict=True):
            if not np.array_equal(pixels, frames[frame, top : top + IMAGE_SIZE][:, left + step * columns]):
                raise SystemExit(f"error: {name}: other clips are cut out of the store: nothing is timed")


def measure_cutting(run: Run, case: str, folder: Path) -> dict:
    """Of two stores."""
    scale = scale_of(run)
    stores = {width: write_store(folder / f"{width} columns", width, scale) for width in (IMAGE_SIZE, WIDTH)}
    cutters = {name: Cutter(stores[width], options) for name, (width, options) in CUTS.items()}
    for name, cutter in cutters.items():
        check_cutting(name, cutter, ClipStore(stores[CUTS[name][0]]).frames)

    def prepare_turn(k):
        for cutter in cutters.values() if k == 0 else ():
            cutter.map_anew()

    with run.watch:
        timings = harness.measure(cutters, range(scale.cut), "cpu", _rounds(run), prepare=prepare_turn, warm=True)
    rows = run.rows(timings, more=lambda name: _rates_of_clips(timings[name]))
    return {"stored_bytes": ClipStore(stores[WIDTH]).frames.nbytes, "timings": rows, "left_out": {}}


def _rates_of_clips(timing):
    rate = BATCH / timing.median
    return {"clips_per_second": rounded(rate), "of_needed": rounded(rate / needed_clips_per_second())}


def make_feeds(store: Path, device: str) -> dict[str, Feed]:
    """Those of `FEEDS`, of clips that are cropped and mirrored at random."""
    return {
        name: open_feed(
            open_videos(store, **AT_RANDOM).videos,
            batch_size=BATCH,
            channels=CHANNELS,
            device=device,
            dtype=DTYPE[device],
            workers=workers,
            resident=resident,
        )
        for name, (workers, resident) in FEEDS[device].items()
    }


def check_feeds(feeds: Mapping[str, Feed], cutter: Cutter) -> None:
    """Raises SystemExit where the first batch is not what one thread cuts out."""
    cutter(0)
    expected = torch.from_numpy(cutter.clips).permute(0, 4, 1, 2, 3).double() / 127.5 - 1
    for name, feed in feeds.items():
        videos = feed.read(next(clips_of(feed)))
        if not torch.allclose(videos.cpu().double(), expected, rtol=0, atol=2 * torch.finfo(videos.dtype).eps):
            raise SystemExit(f"error: {name}: other videos are fed: nothing is timed")


def measure_feeding(run: Run, case: str, folder: Path) -> dict:
    """Of whole feeds; on a CPU also of the steps that they feed."""
    scale = scale_of(run)
    store = write_store(folder / "store", WIDTH, scale)
    feeds = make_feeds(store, run.device)
    check_feeds(feeds, Cutter(store, AT_RANDOM))
    seconds = {name: [] for name in feeds}
    with run.watch:
        for _ in range(suite.SMOKE_ROUNDS if run.smoke else ROUNDS):
            for name, feed in feeds.items():
                seconds[name].append(seconds_a_batch(feed.read, clips_of(feed), scale.fed))
    timings = {name: Timing.of(column, "perf_counter") for name, column in seconds.items()}
    rows = run.rows(timings, more=lambda name: _rates_of_clips(timings[name]))
    if run.device == "cpu":
        feed = feeds[TWO]
        rows += time_steps(run, feed.read(next(clips_of(feed))))
    return {"stored_bytes": ClipStore(store).frames.nbytes, "timings": rows, "left_out": {}}


def time_steps(run: Run, videos: torch.Tensor) -> list[dict]:
    """Of training on the CPU, with videos that are there already."""
    steps = {_step_name(preset): make_step(run, preset) for preset in STEP_BATCHES}
    counts = {_step_name(preset): count for preset, count in STEP_BATCHES.items()}
    calls = {name: lambda videos, name=name: steps[name](videos[: counts[name]]) for name in steps}
    timings = run.measure(calls, [videos], ROUNDS)
    counts[harness.again(next(iter(steps)))] = next(iter(counts.values()))
    return run.rows(timings, STEP, more=lambda name: {"clips_per_second": rounded(counts[name] / timings[name].median)})


def make_step(run: Run, preset: str) -> TrainingStep:
    """That of a preset, trained on videos in colours."""
    width = {"width": SMOKE_WIDTH} if run.smoke else {}
    settings = PRESETS[preset] | {"channels": CHANNELS, "batch_size": STEP_BATCHES[preset]} | width
    return build_step(TrainingConfig(**settings), torch.device("cpu"))


def _step_name(preset):
    return f"{preset}, batch {STEP_BATCHES[preset]}"


def _rounds(run, count=None):
    return suite.SMOKE_ROUNDS if run.smoke else count


def measure(run: Run, case: str) -> dict:
    """Check and time one case; its files are gone afterwards."""
    run.rivals.update(RIVALS)
    measures = {PREPARING: measure_preparing, CUTTING: measure_cutting, FEEDING: measure_feeding}
    with tempfile.TemporaryDirectory() as folder:
        return measures.get(case, measure_decoding)(run, case, Path(folder))


def contenders_of(run: Run, case: str) -> list[str]:
    """Names, the package's own first."""
    if case == CUTTING:
        return list(CUTS)
    if case == FEEDING:
        return list(FEEDS[run.device])
    names = [OURS, ALONE] if case == PREPARING else list(DECODERS)
    return names[:1] if run.own_only else names


def labels_for(run: Run, case: str) -> list[Label]:
    """Of its timings."""
    names = contenders_of(run, case)
    if case != FEEDING:
        return [_label(name) for name in (*names, harness.again(names[0]))]
    steps = [_step_name(preset) for preset in STEP_BATCHES] if run.device == "cpu" else []
    return [*map(Label, names), *(Label(name, STEP) for name in (*steps, *map(harness.again, steps[:1])))]


def details(record: dict) -> Iterator[str]:
    """Rates, and what they are worth."""
    for row in record["timings"]:
        yield f"  {Label.of(row)!s:42}{', '.join(_rates(record, row))}"
    if "levels_off" in record:
        bits = 8 * record["video_bytes"] / record["video_seconds"]
        yield f"  {bits / 1e3:.0f} kb/s; tgan_fast is off by {record['levels_off']:.2f} grey levels on average"
    if "stored_bytes" in record:
        yield f"  {record['stored_bytes'] / 1e6:,.0f} MB of frames of {HEIGHT}×{WIDTH} are stored"


def _rates(record, row):
    if "frames_per_second" in row:
        yield from _rates_of_frames(record, row)
    if "of_decoding_alone" in row:
        yield f"{row['of_decoding_alone']:.2f}× decoding alone"
    if "clips_per_second" in row:
        rate = row["clips_per_second"]
        yield f"{rate:,.{0 if rate >= 100 else 1}f} clips/s"
    if "of_needed" in row:
        yield f"{row['of_needed']:.2f}× needed"
        for name, taken in _rates_of_steps(record).items():
            yield f"{row['clips_per_second'] / taken:,.0f}× those of {name}"


def _rates_of_frames(record, row):
    rate = row["frames_per_second"]
    yield f"{rate:,.0f} frames/s, {1e6 / rate:,.0f} µs a frame"
    yield f"{record['video_bytes'] / row['seconds'] / 1e6:,.1f} MB/s of files"
    if "stored_bytes" in record and row["contender"] != ALONE:
        yield f"{record['stored_bytes'] / row['seconds'] / 1e6:,.0f} MB/s stored"


def _rates_of_steps(record):
    """Clips a second that steps train on."""
    names = [_step_name(preset) for preset in STEP_BATCHES]
    return {row["contender"]: row["clips_per_second"] for row in record["timings"] if row["contender"] in names}


def conclude(run: Run, records: list[dict]) -> dict:
    """What all cases have in common."""
    return {
        "batch": BATCH,
        "dtype": str(DTYPE[run.device]),
        "processes": PROCESSES,
        "needed_clips_per_second": rounded(needed_clips_per_second()),
    }


def conclusion(payload: dict) -> Iterator[str]:
    """What is needed."""
    yield need_of_step(payload)
    yield f"feeds are read in {payload['dtype'].removeprefix('torch.')}; stores lie in the page cache"


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """That small frames cost little more than decoding, and that no step waits for clips."""
    rows = {(record["case"], row["contender"]): row for record in records for row in record["timings"]}
    arrays = [1 / rows[case, ARRAYS]["ratio"] for case in DECODING if (case, ARRAYS) in rows]
    cores = [1 / rows[CUTTING, name]["of_needed"] for name in CUTS if (CUTTING, name) in rows]
    goals = [
        Goal("times PyAV's decoding to RGB arrays, tgan_fast's to small frames", _most(arrays), MOST_OF_ARRAYS, True),
        Goal(f"cores that cut the clips for a step of {1e3 * STEP_SECONDS:.0f} ms", _most(cores), MOST_CORES, True),
    ]
    if device == "cpu":
        rates = [rate for record in records for rate in _rates_of_steps(record).values()]
        times = rounded(rows[FEEDING, TWO]["clips_per_second"] / max(rates)) if rates else None
        goals.append(Goal(f"times the clips that {STEP} takes, by a feed of {TWO}", times, FEWEST_OF_STEP, False))
    return goals


def _most(ratios):
    return rounded(max(ratios)) if ratios else None


SECTION = Section(
    name="videos",
    title="from video files to clips, a file, a folder or a batch at a time",
    cases=lambda run: [*DECODING, PREPARING, CUTTING, FEEDING],
    measure=measure,
    details=details,
    conclude=conclude,
    conclusion=conclusion,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
