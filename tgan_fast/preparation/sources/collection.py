"""Interface of a video in a source, and collections of such videos."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from tgan_fast.data.clip_store import UNCLASSIFIED
from tgan_fast.errors import InputError, UnreadableVideoError
from tgan_fast.preparation.archives import ArchivedFile
from tgan_fast.preparation.decoding import FrameFormat

_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class SourceVideo(ABC):
    """A video that can be prepared; it must be picklable, since it is sent to other processes.

    Attributes:
        name: Name, unique within the source.
        nbytes: Bytes of its files, or of its array.
        label: Name of its class, or None.
        group: Group in UCF-101's file names, or None.
        scene: Scene in UCF-101's file names, or None.
        has_times: Whether its frames have times, which resampling needs.
    """

    name: str
    nbytes: int
    label: str | None
    group: int | None
    scene: int | None

    has_times: ClassVar[bool] = False

    @abstractmethod
    def read(self, frame_format: FrameFormat, threads: int = 1) -> Iterator[np.ndarray]:
        """Yield its frames to store: batches uint8 [n, H, W, C].

        Raises:
            UnreadableVideoError: The video cannot be read; this may only show after the last batch.
        """

    @abstractmethod
    def count(self, frame_format: FrameFormat) -> int:
        """Estimate how many frames `read` will yield, without decoding any; raise the same error."""

    @abstractmethod
    def digest(self) -> str:
        """Return the SHA-256 of its files or its array, in hexadecimal; raise the same error as `read`."""


@dataclass(frozen=True)
class UnreadableSource(SourceVideo):
    """A file that is known not to be readable as a video; its label does not count as a class.

    Attributes:
        reason: Reason, as a sentence.
    """

    reason: str

    def read(self, frame_format: FrameFormat, threads: int = 1) -> Iterator[np.ndarray]:
        raise UnreadableVideoError(self.reason)

    def count(self, frame_format: FrameFormat) -> int:
        raise UnreadableVideoError(self.reason)

    def digest(self) -> str:
        raise UnreadableVideoError(self.reason)


@dataclass(frozen=True)
class Collection:
    """All videos of a source.

    Attributes:
        description: Kind of source that was recognized, for messages.
        videos: Videos, in the order in which they will be stored.
        classes: Names of the classes, in order of their numbers.
        channels: Number of channels: 1 if the format of every video is gray, else 3.
        notices: Lines on what may surprise users, such as files of other kinds beside the videos.
        left_out: Files beside the videos that cannot be prepared, without sound, text and similar files.
    """

    description: str
    videos: tuple[SourceVideo, ...]
    classes: tuple[str, ...]
    channels: int
    notices: tuple[str, ...] = ()
    left_out: tuple[UnreadableSource, ...] = ()


def collect(
    description: str,
    videos: Iterable[SourceVideo],
    *,
    classes: tuple[str, ...] | None = None,
    channels: int = 3,
    notices: tuple[str, ...] = (),
) -> Collection:
    """Return a collection of videos.

    Args:
        description: Kind of source that was recognized, for messages.
        videos: Videos, in the order in which they will be stored.
        classes: Official classes; None: those of the videos, sorted.
        channels: Number of channels: 1 if the format of every video is gray, else 3.
        notices: Lines on what may surprise users.

    Raises:
        InputError: Two videos have the same name, or a class is not an official one.
    """
    videos = tuple(videos)
    _refuse_equal_names(videos)
    if any(video.label for video in videos if _has_class(video)):
        videos = tuple(replace(video, label=video.label or UNCLASSIFIED) for video in videos)
    found = {video.label for video in videos if _has_class(video)} - {None}
    if classes is None:
        return Collection(description, videos, tuple(sorted(found)), channels, notices)
    strange = unofficial(found, classes)
    if strange:
        raise InputError(f"the class index has no class {strange[0]}: is it the index of these videos?")
    official = _by_lower_case(classes)
    videos = tuple(
        replace(video, label=official[video.label.lower()]) if _has_class(video) and video.label else video
        for video in videos
    )
    return Collection(description, videos, classes, channels, notices)


def unofficial(labels: Iterable[str], classes: Iterable[str]) -> list[str]:
    """Return the `labels` that are not among the official `classes`, sorted."""
    official = _by_lower_case(classes)
    return sorted(label for label in labels if label.lower() not in official)


def digest_of_files(paths: Iterable[Path | ArchivedFile]) -> str:
    """Return the SHA-256 of files one after another, in hexadecimal.

    Raises:
        UnreadableVideoError: One of them cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in paths:
            with path.open("rb") as file:
                while part := file.read(_AT_ONCE):
                    digest.update(part)
    except OSError as error:
        raise UnreadableVideoError(f"it cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _has_class(video):
    return not isinstance(video, UnreadableSource)


def _by_lower_case(classes):
    """Return official names by their lower-case form, since UCF-101 writes HandstandPushups in two ways."""
    return {name.lower(): name for name in classes}


def _refuse_equal_names(videos):
    names = set()
    for video in videos:
        if video.name in names:
            raise InputError(f"the source names {video.name} twice: leave one of them out")
        names.add(video.name)
