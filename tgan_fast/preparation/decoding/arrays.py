"""Videos that are arrays."""

from collections.abc import Iterator

import numpy as np

from tgan_fast.preparation.decoding.batches import in_batches
from tgan_fast.preparation.decoding.fit import Fitter
from tgan_fast.preparation.decoding.form import Form


def fit_frames(frames: np.ndarray, form: Form) -> Iterator[np.ndarray]:
    """Yield the frames of an array as they are stored: batches uint8 [n, H, W, C], n at most 64.

    Args:
        frames: uint8 [T, H', W'], [T, H', W', 1] or [T, H', W', 3].
        form: see `Form`.

    Raises:
        ValueError: an array of another dtype or shape, or a form with `fps`, since arrays have no times.
    """
    form.refuse_fps()
    if frames.dtype != np.uint8 or not (frames.ndim == 3 or (frames.ndim == 4 and frames.shape[3] in (1, 3))):
        raise ValueError(f"frames are uint8 [T, H, W] or [T, H, W, C], C of 1 or 3, not {frames.dtype} {frames.shape}")
    return in_batches(frames[:: form.stride], Fitter().fit_array, form)
