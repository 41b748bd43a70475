"""Jobs of a decoding process: decode some videos into a spool file."""

import hashlib
import importlib.metadata
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tgan_fast.data.clip_store import Entry
from tgan_fast.errors import UnreadableVideoError, counted
from tgan_fast.preparation.decoding import FrameFormat
from tgan_fast.preparation.sources import SourceVideo
from tgan_fast.provenance import __version__
from tgan_fast.stop_signals import end_with_parent


@dataclass(frozen=True)
class Job:
    """Consecutive videos of a source, which one process decodes.

    Attributes:
        videos: Videos.
        known: SHA-256 of the sources of videos that are already in the store, by name.
        frame_format: Format of the stored frames.
        fewest: Smallest number of frames of a video; shorter videos are skipped.
        threads: Number of threads of a decoder.
        spool: File for the decoded frames.
    """

    videos: tuple[SourceVideo, ...]
    known: Mapping[str, str]
    frame_format: FrameFormat
    fewest: int
    threads: int
    spool: Path

    @property
    def nbytes(self) -> int:
        return sum(video.nbytes for video in self.videos)

    def split(self) -> Iterator["Job"]:
        """Yield a job for each of the videos."""
        for number, video in enumerate(self.videos):
            yield replace(self, videos=(video,), spool=self.spool.with_suffix(f".{number}"))


@dataclass(frozen=True)
class Skipped:
    """A video that is not stored.

    Attributes:
        video: Name of the video.
        reason: Reason, as a sentence.
        failed: Whether the video could not be read; False: it is too short or of a kind that is left out.
    """

    video: str
    reason: str
    failed: bool


@dataclass(frozen=True)
class Known:
    """A video that is already in the store."""

    video: str


@dataclass(frozen=True)
class Changed:
    """A video that is in the store under this name, but was made from another file."""

    video: str


Outcome = Entry | Skipped | Known | Changed

_interrupt: threading.Event | None = None


class InterruptedJobError(Exception):
    """Error in a job that was aborted."""


class SpoolError(OSError):
    """Error in writing frames to the spool, for instance on a full disk."""


def initialize(interrupt: threading.Event) -> None:
    """Make this process ignore Ctrl-C, abort jobs when `interrupt` is set, and end with its parent."""
    global _interrupt
    _interrupt = interrupt
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def run_job(job: Job) -> list[Outcome]:
    """Decode the videos of a job into its spool, one after another, and return the outcome of each.

    Raises:
        InterruptedJobError: The job was aborted.
        SpoolError: The spool cannot be written.
    """
    with job.spool.open("wb", buffering=0) as spool:
        return [_decode_video(video, job, spool) for video in job.videos]


def _decode_video(video, job, spool):
    before = spool.tell()
    try:
        source = video.digest()
        if video.name in job.known:
            return Known(video.name) if job.known[video.name] == source else Changed(video.name)
        length, frames = _write_frames(video, job, spool)
    except (InterruptedJobError, SpoolError):
        raise
    # A damaged file may make its decoder raise any error, and the other videos must still be prepared.
    except Exception as error:
        return _skip(video, _failure_reason(error), spool, before, failed=True)
    if length < job.fewest:
        return _skip(
            video, f"it has {counted(length, 'frame')}, fewer than {job.fewest:,}", spool, before, failed=False
        )
    return Entry(
        video=video.name,
        start=-1,
        length=length,
        label=video.label,
        group=video.group,
        scene=video.scene,
        source_bytes=video.nbytes,
        source_sha256=source,
        sha256=frames,
        tool=_tool_name(),
    )


def _write_frames(video, job, spool):
    length, digest = 0, hashlib.sha256()
    for frames in video.read(job.frame_format, job.threads):
        if _interrupt is not None and _interrupt.is_set():
            raise InterruptedJobError
        content = memoryview(frames).cast("B")
        digest.update(content)
        _write_to_spool(content, spool)
        length += len(frames)
    return length, digest.hexdigest()


def _write_to_spool(content, spool):
    try:
        while content:
            content = content[spool.write(content) :]
    except OSError as error:
        raise SpoolError(error.errno, error.strerror) from None


def _skip(video, reason, spool, before, *, failed):
    spool.truncate(before)
    spool.seek(before)
    return Skipped(video.name, reason, failed)


def _failure_reason(error):
    return str(error) if isinstance(error, UnreadableVideoError) else f"{type(error).__name__}: {error}"


def _tool_name():
    return f"tgan_fast {__version__}, PyAV {importlib.metadata.version('av')}"
