"""Moving digits: what a clip is, and that it is a function of seed and index."""

import numpy as np
import pytest

from tgan_fast.data import MovingDigits
from tgan_fast.data.moving_digits import DIGIT_SIZE, FASTEST


def place(frame):
    """Centre of mass of a frame [H, W]."""
    rows, columns = np.indices(frame.shape)
    return np.array([(rows * frame).sum(), (columns * frame).sum()]) / frame.sum()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("digits", [1, 2])
def test_clips_are_uint8_videos_with_a_digit_as_label(digits, channels):
    dataset = MovingDigits(50, digits=digits, channels=channels)
    assert len(dataset) == 50
    for i in range(50):
        clip, label = dataset[i]
        assert clip.dtype == np.uint8
        assert clip.shape == (16, 64, 64, channels)
        assert label in range(10)
        assert clip.reshape(16, -1).max(1).min() > 200
        assert (clip == clip[..., :1]).all()


def test_clips_depend_on_seed_and_index_alone():
    one, other, third = MovingDigits(seed=3), MovingDigits(seed=3, size=10), MovingDigits(seed=4)
    for i in (9, 0, 4):
        assert np.array_equal(one[i][0], other[i][0])
        assert one[i][1] == other[i][1]
        assert not np.array_equal(one[i][0], third[i][0])
    assert not np.array_equal(one[0][0], one[1][0])


def test_a_digit_moves_smoothly_and_stays_whole():
    for i in range(20):
        clip, _ = MovingDigits(seed=1)[i]
        frames = clip[..., 0].astype(float)
        # The same ink in every frame: nothing is cut off at an edge.
        np.testing.assert_allclose(frames.sum((1, 2)), frames[0].sum())
        steps = np.abs(np.diff([place(frame) for frame in frames], axis=0))
        assert steps.max() <= FASTEST + 1
        assert steps.sum() > 0


def test_the_digits_are_the_scanned_ones_and_their_labels_right():
    """At a quarter of the size again, the pixels are those of a scan of the clip's class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    for i in range(30):
        clip, label = MovingDigits()[i]
        rows, columns = np.nonzero(clip[0, :, :, 0])
        best = (np.inf, None)
        for scan, scan_label in zip(scans.images, scans.target, strict=True):
            image = Image.fromarray((scan * (255 / 16)).astype(np.uint8))
            enlarged = np.asarray(image.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC))
            r, c = np.nonzero(enlarged)
            if (np.ptp(r), np.ptp(c)) != (np.ptp(rows), np.ptp(columns)):
                continue
            cut = clip[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1, 0].astype(int)
            difference = np.abs(cut - enlarged[r.min() : r.max() + 1, c.min() : c.max() + 1]).sum()
            best = min(best, (difference, int(scan_label)))
        assert best == (0, label)


def test_two_digits_overlap_without_hiding_each_other():
    ink = {digits: np.mean([MovingDigits(digits=digits)[i][0].mean() for i in range(50)]) for digits in (1, 2)}
    assert 1.5 < ink[2] / ink[1] < 2.2


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one or two digits can move in a clip, not 3"):
        MovingDigits(digits=3)
    with pytest.raises(IndexError, match="clip 5 of 5"):
        MovingDigits(5)[5]
