"""Video files and folders of images as videos of a source."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from tgan_fast.preparation.archives import ArchivedFile
from tgan_fast.preparation.decoding import FrameFormat, count_frames, read_images, read_video
from tgan_fast.preparation.sources.collection import SourceVideo, digest_of_files

VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3gp", "asf", "avi", "divx", "dv", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"),
        *("mxf", "ogg", "ogv", "rm", "ts", "vob", "webm", "wmv", "y4m"),
    )
)
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_ARCHIVE = "it is an archive: unpack it, and give the folder"
_PLAYLIST = "it is a playlist, which only names other files: give the video itself"
_PICKLE = "it is a pickle, and loading one runs code"
_STREAM = (
    "a raw stream does not tell when its frames are shown: put it into a container, as with "
    "ffmpeg -framerate 25 -i STREAM -c copy VIDEO.mp4"
)
_UNFINISHED = "its download is not finished"
# Videos that cannot be prepared, and why.
UNREADABLE = {
    **dict.fromkeys((".264", ".265", ".avc", ".h264", ".h265", ".hevc"), _STREAM),
    **dict.fromkeys((".crdownload", ".part"), _UNFINISHED),
}
# Files that may hold or name videos, and why they are not prepared.
REFUSED = {
    **dict.fromkeys((".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"), _ARCHIVE),
    **dict.fromkeys((".m3u", ".m3u8", ".mpd"), _PLAYLIST),
    **dict.fromkeys((".pickle", ".pkl"), _PICKLE),
}
# Usual files beside videos, which are recognized without opening them: sound, documents and text.
_COMPANY = frozenset(
    f".{suffix}"
    for suffix in (
        *("aac", "csv", "db", "flac", "html", "json", "jsonl", "log", "m4a", "md", "md5", "mp3", "opus", "pdf", "py"),
        *("sha1", "sha256", "srt", "tsv", "txt", "vtt", "wav", "xml", "yaml", "yml"),
    )
)
_HEAD = 1024

# File names of UCF-101.
_UCF = re.compile(r"v_(?P<label>\w+)_g(?P<group>\d+)_c(?P<scene>\d+)")


@dataclass(frozen=True)
class VideoFile(SourceVideo):
    """A file in some video format."""

    path: Path | ArchivedFile

    has_times = True

    def read(self, frame_format: FrameFormat, threads: int = 1) -> Iterator[np.ndarray]:
        return read_video(self.path, frame_format, threads=threads)

    def count(self, frame_format: FrameFormat) -> int:
        return count_frames(self.path, frame_format)

    def digest(self) -> str:
        return digest_of_files([self.path])


@dataclass(frozen=True)
class ImageSequence(SourceVideo):
    """Images that are the frames of a video."""

    paths: tuple[Path | ArchivedFile, ...]

    def read(self, frame_format: FrameFormat, threads: int = 1) -> Iterator[np.ndarray]:
        return read_images(self.paths, frame_format)

    def count(self, frame_format: FrameFormat) -> int:
        return -(-len(self.paths) // frame_format.stride)

    def digest(self) -> str:
        return digest_of_files(self.paths)


def video_file(path: Path | ArchivedFile, name: str, label: str | None = None) -> VideoFile:
    """Return the video in a file, labeled by UCF-101's naming unless a label is given."""
    ucf = _UCF.fullmatch(text_of(path.stem))
    group, scene = (int(ucf["group"]), int(ucf["scene"])) if ucf else (None, None)
    return VideoFile(name, size_of(path), label or (ucf["label"] if ucf else None), group, scene, path)


def image_sequence(paths: Iterable[Path | ArchivedFile], name: str, label: str | None = None) -> ImageSequence:
    """Return the video whose frames are images, in the order of the numbers in their names."""
    paths = tuple(sorted(paths, key=_natural_key))
    return ImageSequence(name, sum(map(size_of, paths)), label, None, None, paths)


def is_of_ucf_101(video: SourceVideo) -> bool:
    """Return whether a video's name has UCF-101's form."""
    return video.scene is not None and _UCF.fullmatch(Path(video.name).stem) is not None


def is_company(path: Path | ArchivedFile) -> bool:
    """Return whether a file that is not a video is usual beside videos: sound, documents, and text of any kind."""
    if path.suffix.lower() in _COMPANY:
        return True
    try:
        with path.open("rb") as file:
            return b"\0" not in file.read(_HEAD)
    except OSError:
        return False


def text_of(path: str | PurePath) -> str:
    """Return a path as text, independent of the locale: UTF-8, with other bytes as surrogates."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def path_of(text: str) -> Path:
    """Return the path for a text from `text_of`."""
    return Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))


def size_of(path: Path | ArchivedFile) -> int:
    """Return the size of a file in bytes; 0 if it is unknown, since opening the file will report the error."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _natural_key(path):
    """Return a key that sorts frame2 before frame10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]
