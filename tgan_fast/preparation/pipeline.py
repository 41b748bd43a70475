"""The preparation pipeline: split videos into jobs, decode in processes, store frames, report skipped videos."""

import errno
import shutil
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from tgan_fast.data.clip_store import Entry, Header, json_bytes
from tgan_fast.errors import InputError, UnreadableVideoError
from tgan_fast.files import append_line, write_atomically
from tgan_fast.preparation.decoding import FrameFormat
from tgan_fast.preparation.pool import done_in_order
from tgan_fast.preparation.sources import Collection, SourceVideo
from tgan_fast.preparation.store_writer import StoreWriter
from tgan_fast.preparation.worker import Changed, Job, Known, Outcome, Skipped

REPORT = "skipped.jsonl"

# A job is one video, or several small ones of at most this many bytes and videos in all.
_JOB_BYTES = 1 << 20
_JOB_VIDEOS = 64
_SPOOLS = ".spools"

# Approximate size of the sample of videos whose headers are read for an estimate.
_LOOKED_AT = 256
# Largest plausible number of frames per byte, relative to the median.
_MOST_UNUSUAL = 100


@dataclass
class Result:
    """Outcome of preparing a source.

    Attributes:
        stored: Number of videos that were added.
        frames: Number of their frames.
        known: Number of videos that were already in the store.
        skipped: Videos that are not in the store.
        finished: Whether all videos have been processed.
    """

    stored: int = 0
    frames: int = 0
    known: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    finished: bool = False

    @property
    def failed(self) -> int:
        """Number of videos that could not be read."""
        return sum(video.failed for video in self.skipped)

    @property
    def done(self) -> int:
        """Number of videos that have been processed."""
        return self.stored + self.known + len(self.skipped)


class Estimate(NamedTuple):
    """Estimate of the frames that will be stored.

    Attributes:
        frames: Frames of all videos.
        longest: Frames of the longest video.
    """

    frames: int
    longest: int


def estimated_frames(videos: Sequence[SourceVideo], frame_format: FrameFormat) -> Estimate:
    """Estimate the frames of videos from the headers of their files.

    Args:
        videos: Videos; if there are many, only a sample of them is read.
        frame_format: Format of the stored frames.
    """
    by_size = sorted(videos, key=lambda video: video.nbytes)
    step = max(1, len(by_size) // _LOOKED_AT)
    # The sample takes the middle video of each group of similar sizes.
    sample = by_size[step // 2 :: step]
    sizes = [video.nbytes for video in sample]
    counts = _replace_implausible([_estimated_count(video, frame_format) for video in sample], sizes)
    nbytes = sum(sizes)
    frames = sum(counts) / nbytes * sum(video.nbytes for video in videos) if nbytes else sum(counts)
    return Estimate(round(frames), max(counts, default=0))


def prepare(
    collection: Collection,
    folder: Path,
    frame_format: FrameFormat,
    *,
    workers: int = 1,
    fewest: int = 1,
    strict: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[Result, int], object] = lambda result, nbytes: None,
) -> Result:
    """Store the videos of a source that a clip store does not have yet.

    The store depends only on the source and the frame format, not on `workers` or on interruptions: a rerun resumes an
    interrupted preparation. A report in the folder names the videos that were skipped or left out.

    Args:
        collection: Videos of the source.
        folder: Folder of the store, created if it is missing.
        frame_format: Format of the stored frames.
        workers: Number of processes.
        fewest: Smallest number of frames of a video; shorter videos are left out.
        strict: Whether the first unreadable video is an error.
        stop: Event that ends the preparation early; None: it cannot be stopped.
        progress: Function that is called with the result so far and the bytes of videos done since the last call.

    Raises:
        InputError: The folder does not fit; a video has changed since it was stored; a video cannot be read and
            `strict` is true; or the disk is full. Videos that were stored before are kept.
    """
    header = Header(
        frame_format.height,
        frame_format.width,
        frame_format.channels,
        frame_format.stride,
        frame_format.fps,
        collection.classes,
    )
    stop = stop or threading.Event()
    try:
        with closing(StoreWriter(folder, header)) as writer, _spool_folder(folder) as spools:
            left_out = [Skipped(video.name, video.reason, failed=False) for video in collection.left_out]
            write_atomically(folder / REPORT, "".join(f"{_report_line(video)}\n" for video in left_out).encode())
            result, done = Result(), _ByteCounter()
            jobs = _jobs(collection.videos, writer, frame_format, fewest, workers, spools)
            for job, outcomes in done_in_order(jobs, workers, stop, done.add):
                _store_job(job, outcomes, writer, result, strict)
                progress(result, done.take())
            # A thread may report a job after its outcomes have arrived, so the last bytes are reported here.
            progress(result, done.take())
    except OSError as error:
        raise InputError(_error_message(error, folder)) from error
    result.finished = result.done == len(collection.videos)
    return result


class _ByteCounter:
    """Thread-safe counter of the bytes of videos that are done."""

    def __init__(self):
        self._count, self._lock = 0, threading.Lock()

    def add(self, job):
        with self._lock:
            self._count += job.nbytes

    def take(self):
        with self._lock:
            count, self._count = self._count, 0
            return count


@contextmanager
def _spool_folder(folder):
    """Make a folder for decoded frames that are not yet in the store."""
    spools = folder / _SPOOLS
    shutil.rmtree(spools, ignore_errors=True)
    spools.mkdir()
    try:
        yield spools
    finally:
        shutil.rmtree(spools, ignore_errors=True)


def _jobs(videos, writer, frame_format, fewest, workers, spools) -> Iterator[Job]:
    known = {name: entry.source_sha256 for name, entry in writer.entries.items()}
    # A decoder gets several threads only if there are fewer videos than processes.
    threads = max(1, workers // max(1, len(videos)))
    for number, group in enumerate(_groups(videos)):
        mine = {video.name: known[video.name] for video in group if video.name in known}
        yield Job(tuple(group), mine, frame_format, fewest, threads, spools / str(number))


def _groups(videos) -> Iterator[list[SourceVideo]]:
    group, nbytes = [], 0
    for video in videos:
        if group and (nbytes + video.nbytes > _JOB_BYTES or len(group) == _JOB_VIDEOS):
            yield group
            group, nbytes = [], 0
        group.append(video)
        nbytes += video.nbytes
    if group:
        yield group


def _store_job(job, outcomes: list[Outcome] | None, writer, result, strict):
    if outcomes is None:
        outcomes = [Skipped(video.name, "the decoder crashed", failed=True) for video in job.videos]
        job.spool.touch()
    with job.spool.open("rb", buffering=0) as spool:
        for outcome in outcomes:
            _store_outcome(outcome, spool.fileno(), writer, result, strict)
    job.spool.unlink()


def _store_outcome(outcome, spool, writer, result, strict):
    match outcome:
        case Entry():
            writer.append(outcome, spool)
            result.stored += 1
            result.frames += outcome.length
        case Known():
            result.known += 1
        case Changed():
            raise InputError(
                f"{outcome.video} has changed since it was stored in {writer.folder}: choose another folder"
            )
        case Skipped():
            if strict and outcome.failed:
                raise InputError(f"{outcome.video}: {outcome.reason}; leave out --strict to continue without it")
            result.skipped.append(outcome)
            append_line(writer.folder / REPORT, _report_line(outcome))


def _report_line(skipped):
    return json_bytes(asdict(skipped)).decode()


def _error_message(error, folder):
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(folder).free
        return (
            f"no space is left for {folder}, {free / 1e9:.1f} GB free: stored videos are kept; make room, and "
            "rerun to resume"
        )
    return f"cannot write to {folder}: {error.strerror or error}; stored videos are kept: rerun to resume"


def _replace_implausible(counts, nbytes):
    """Return the counts; implausible ones, from damaged headers, are replaced by typical ones."""
    ratios = [count / max(1, size) for count, size in zip(counts, nbytes, strict=True)]
    usual = statistics.median(ratios) if ratios else 0
    if not usual:
        return counts
    return [
        round(usual * size) if ratio > _MOST_UNUSUAL * usual else count
        for count, size, ratio in zip(counts, nbytes, ratios, strict=True)
    ]


def _estimated_count(video, frame_format):
    try:
        return video.count(frame_format)
    except UnreadableVideoError:
        return 0
