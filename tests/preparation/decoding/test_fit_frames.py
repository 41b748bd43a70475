"""Fitting of the frames of arrays."""

import re

import numpy as np
import pytest
from support.encoding import moving_picture, numbered_frames, numbers_of

from tgan_fast.preparation.decoding import FrameFormat, fit_frames


def fitted(frames, frame_format):
    return np.concatenate(list(fit_frames(frames, frame_format)))


@pytest.mark.parametrize("shape", [(150, 24, 32), (150, 24, 32, 1), (150, 24, 32, 3)])
def test_frames_of_the_stored_size_stay_bit_for_bit_in_batches(shape):
    frames = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    batches = list(fit_frames(frames, FrameFormat(24, 32, 3)))
    assert [batch.shape for batch in batches] == [(64, 24, 32, 3), (64, 24, 32, 3), (22, 24, 32, 3)]
    assert np.array_equal(np.concatenate(batches), np.broadcast_to(frames.reshape(150, 24, 32, -1), (150, 24, 32, 3)))
    assert not any(np.shares_memory(batch, frames) for batch in batches)


@pytest.mark.parametrize("channels", [1, 3])
def test_larger_frames_are_fitted_one_by_one(channels):
    frames = moving_picture(70, 50, 70)
    together = fitted(frames, FrameFormat(24, 32, channels))
    assert together.shape == (70, 24, 32, channels)
    for frame, found in zip(frames, together, strict=True):
        assert np.array_equal(fitted(frame[None], FrameFormat(24, 32, channels))[0], found)


def test_a_stride_takes_every_stride_th_frame_from_the_first_on():
    assert numbers_of(fitted(numbered_frames(50), FrameFormat(24, 32, 3, stride=7))) == list(range(0, 50, 7))


def test_arrays_on_disk_are_read_as_they_are_needed(tmp_path):
    frames = moving_picture(100, 24, 32)
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    assert np.array_equal(fitted(mapped, FrameFormat(24, 32, 3)), frames)
    small = FrameFormat(12, 16, 3)
    assert np.array_equal(fitted(mapped[::-1, :, ::-1], small), fitted(frames[::-1, :, ::-1], small))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5, 8, 8, 2), "uint8"), ((8, 8), "uint8"), ((2, 5, 8, 8, 3), "uint8"), ((5, 8, 8, 3), "float64")],
)
def test_other_arrays_are_refused(shape, dtype):
    with pytest.raises(ValueError, match=rf"are uint8 \[T, H, W\] or .*, not {dtype} {re.escape(str(shape))}"):
        fit_frames(np.zeros(shape, dtype), FrameFormat(8, 8, 3))


def test_arrays_have_no_times():
    with pytest.raises(ValueError, match=r"frames without times cannot be resampled to 12\.5 per second"):
        fit_frames(moving_picture(3, 8, 8), FrameFormat(8, 8, 3, fps=12.5))
