"""What training takes as data, besides `VideoFrames`."""

from typing import Protocol

import numpy as np


class ClipDataset(Protocol):
    """Anything with a length and with clips by index.

    `dataset[i]` is a pair (clip, label): a uint8 array [T, H, W, C] of frames, and a class number (0 where there are no
    classes). The same `i` must always give the same pair, whichever thread asks: that is what makes an interrupted run
    resume exactly.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, int]: ...
