"""What is stored of a video."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """What a stored frame is, and which of a video's frames are stored.

    Attributes:
        height, width: of a frame, in pixels.
        channels: 3 for red, green and blue, or 1 for grey.
        stride: of the frames, every so manieth is stored, the first one included.
        fps: frames a second, by the times at which they are shown, out of which `stride` then chooses; None: all there
            are. See `resampled`.

    Raises:
        ValueError: a value that makes no sense.
    """

    height: int
    width: int
    channels: int
    stride: int = 1
    fps: float | None = None

    def __post_init__(self):
        if min(self.height, self.width) < 1:
            raise ValueError(f"frames have at least one pixel, not {self.height} rows of {self.width}")
        if self.channels not in (1, 3):
            raise ValueError(f"frames have 1 or 3 channels, not {self.channels}")
        if self.stride < 1:
            raise ValueError(f"a stride is at least 1, not {self.stride}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"frames a second are more than 0, not {self.fps}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a frame."""
        return self.height, self.width, self.channels

    def refuse_fps(self) -> None:
        """Raises ValueError for `fps`, where frames have no times."""
        if self.fps is not None:
            raise ValueError(f"{self.fps:g} frames a second cannot be taken of frames without times: choose a stride")
