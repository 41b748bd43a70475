"""Opening of video files with PyAV; failures become sentences for the user."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from tgan_fast.errors import UnreadableVideoError
from tgan_fast.preparation.archives import ArchivedFile

# Only containers that hold video: FFmpeg would open the files or addresses that playlists name.
_FORMATS = (
    "asf,av1,avi,dv,flv,gif,h263,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,vc1,wtv,"
    "yuv4mpegpipe"
)
_SAFE = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}

# A title in Latin-1 must not be an error; PyAV 19 has no such option, and never fails.
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


@contextmanager
def opened(path: Path | ArchivedFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file and its first video stream that is not a cover picture.

    Raises:
        UnreadableVideoError: The file is missing, cannot be opened, or has no video.
    """
    with _opened_file(path) as file:
        head = _head(file)
        try:
            # FFmpeg opens files of the disk itself. Without "file:", a name with a colon would be an address.
            container = av.open(f"file:{path}" if isinstance(path, Path) else file, container_options=_SAFE, **_LENIENT)
        except av.error.FFmpegError as error:
            raise UnreadableVideoError(_why_not_opened(error, head)) from None
        with container:
            yield container, _video_stream(container)


def promised_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the duration in seconds that a file's header states; None if it states no reliable one."""
    match container.format.name.split(","):
        case ["avi"] if stream.average_rate:
            # FFmpeg shortens an AVI file's duration to match the bytes that the file has.
            seconds = Fraction(stream.frames) / stream.average_rate
        case ["mov" | "ivf" | "gif", *_] if stream.duration:
            seconds = stream.duration * stream.time_base
        case ["matroska", *_]:
            seconds = _matroska_seconds(container, stream)
        case _:
            seconds = 0
    return float(seconds) or None


def _opened_file(path):
    try:
        return path.open("rb")
    except OSError as error:
        raise UnreadableVideoError(f"it cannot be read: {error.strerror}") from None


def _head(file):
    try:
        head = file.read(8)
        file.seek(0)
    except OSError as error:
        raise UnreadableVideoError(f"it cannot be read: {error.strerror}") from None
    if not head:
        raise UnreadableVideoError("it is empty")
    return head


def _why_not_opened(error, head):
    if isinstance(error, (OSError, MemoryError)):
        return f"it cannot be opened: {error.strerror}"
    if head[4:] == b"ftyp":
        return "its index is damaged or missing, as in a file that was cut off"
    return "it is not a video, or its format is unknown"


def _video_stream(container):
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        raise UnreadableVideoError("it has no video stream")
    if streams[0].codec_context is None:
        raise UnreadableVideoError("there is no decoder for its video")
    return streams[0]


def _matroska_seconds(container, stream):
    """Return the duration in the stream's own tag if it has one, since the file's duration may be that of its sound."""
    for name, value in stream.metadata.items():
        if name.startswith("DURATION") and (found := _DURATION.fullmatch(value)):
            hours, minutes, seconds = map(float, found.groups())
            return 3600 * hours + 60 * minutes + seconds
    alone = len(container.streams) == 1
    return Fraction(container.duration or 0, av.time_base) if alone else 0
