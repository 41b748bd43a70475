"""Detection of video files that are cut off: their headers promise more than they hold."""

import math
from pathlib import Path

import av
from av.video.stream import VideoStream

# So many frames, and so large a share, may be missing: headers round, and count what never was a frame.
_FRAMES, _SHARE = 2, 0.01

# The name of the element in which all of a Matroska file is, and of what comes before it, the most there is.
_SEGMENT, _BEFORE = bytes.fromhex("18538067"), 4096


class Extent:
    """Amount of a video that has come out of its file.

    Attributes:
        packets: Number of whole packets; most often each is a frame.
        frames: Number of decoded frames.
        is_cut: Whether the file ends within a packet.
    """

    def __init__(self):
        self.packets, self.frames, self.is_cut = 0, 0, False
        # In units of the stream, and of the file.
        self._end = self._last_byte = 0

    def add(self, packet: av.Packet) -> None:
        """Take a packet into account."""
        if packet.is_corrupt:
            self.is_cut = True
        elif packet.size:
            self.packets += 1
            self._last_byte = max(self._last_byte, (packet.pos or 0) + packet.size)
            if packet.pts is not None:
                self._end = max(self._end, packet.pts)
            # Not from when it is shown: where frames are reordered, durations stay in the order of decoding.
            if packet.dts is not None:
                self._end = max(self._end, packet.dts + (packet.duration or 0))

    def missing(self, path: Path, stream: VideoStream, promised: float | None) -> int:
        """Estimate how many frames are missing of a video that has been read; 0 if it may well be whole.

        Args:
            path: File.
            stream: Video.
            promised: Duration by the file's header, in seconds; None where that does not tell.
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
        """Return whether the last frame is shown for all the missing time, which Matroska does not record.

        Then the file is as long as it should be, and little comes after that frame: tags, and an index.
        """
        if not stream.container.format.name.startswith("matroska"):
            return False
        size = path.stat().st_size
        return size >= _promised_size(path) and size - self._last_byte < share / 2 * size


def _promised_size(path):
    """Return how many bytes a Matroska file should have; infinity where it does not tell."""
    with path.open("rb") as file:
        before, _, rest = file.read(_BEFORE).partition(_SEGMENT)
    if not rest:
        return math.inf
    # A number of as many bytes as the first one has leading zeros, and one more; the first bit that is set is no digit.
    digits = 9 - rest[0].bit_length()
    length = int.from_bytes(rest[:digits], "big") & ((1 << 7 * digits) - 1)
    return len(before) + len(_SEGMENT) + digits + length
