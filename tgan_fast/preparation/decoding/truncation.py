"""Detection of truncated video files, whose headers promise more than they hold."""

import math
from pathlib import Path

import av
from av.video.stream import VideoStream

from tgan_fast.preparation.archives import ArchivedFile

# This many frames, or this share, may be missing: headers round durations, and may count packets that hold no frame.
_FRAMES, _SHARE = 2, 0.01

# ID of the element that holds all of a Matroska file, and the largest number of bytes before it.
_SEGMENT, _BEFORE = bytes.fromhex("18538067"), 4096


class Extent:
    """Amount of a video that has been read from its file.

    Attributes:
        packets: Number of complete packets; usually each is a frame.
        frames: Number of decoded frames.
        is_cut: Whether the file ends within a packet.
    """

    def __init__(self):
        self.packets, self.frames, self.is_cut = 0, 0, False
        # `_end` is in units of the stream's time base, `_last_byte` in bytes.
        self._end = self._last_byte = 0

    def add(self, packet: av.Packet) -> None:
        """Count a packet."""
        if packet.is_corrupt:
            self.is_cut = True
        elif packet.size:
            self.packets += 1
            self._last_byte = max(self._last_byte, (packet.pos or 0) + packet.size)
            if packet.pts is not None:
                self._end = max(self._end, packet.pts)
            # Durations belong to decoding times: where frames are reordered, they stay in decoding order.
            if packet.dts is not None:
                self._end = max(self._end, packet.dts + (packet.duration or 0))

    def missing(self, path: Path | ArchivedFile, stream: VideoStream, promised: float | None) -> int:
        """Estimate how many frames of a video that has been read are missing; 0 if it is probably complete.

        Args:
            path: File.
            stream: Video stream.
            promised: Duration in the file's header, in seconds; None if it states none.
        """
        seconds = float(self._end * stream.time_base)
        if not promised or not seconds:
            return 0
        missing = round((promised - seconds) * self.packets / seconds)
        if missing <= _FRAMES:
            return 0
        share = missing / (self.packets + missing)
        if share <= _SHARE or self._ends_with_a_long_frame(path, stream, share):
            return 0
        return missing

    def _ends_with_a_long_frame(self, path, stream, share):
        """Return whether the last frame lasts for all the missing time, which Matroska does not record.

        In that case the file has its full size, and little follows that frame: tags and an index.
        """
        if not stream.container.format.name.startswith("matroska"):
            return False
        size = path.stat().st_size
        return size >= _promised_size(path) and size - self._last_byte < share / 2 * size


def _promised_size(path):
    """Return how many bytes a Matroska file should have; infinity if it does not say."""
    with path.open("rb") as file:
        before, _, rest = file.read(_BEFORE).partition(_SEGMENT)
    if not rest:
        return math.inf
    # The leading zero bits of the first byte, plus one, count the number's bytes, and the first set bit is a marker.
    digits = 9 - rest[0].bit_length()
    length = int.from_bytes(rest[:digits], "big") & ((1 << 7 * digits) - 1)
    return len(before) + len(_SEGMENT) + digits + length
