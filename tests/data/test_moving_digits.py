"""Moving digits: clips have the right content, and depend only on seed and index."""

import tracemalloc

import numpy as np
import pytest
import torch

from tgan_fast.data import MovingDigits, open_feed
from tgan_fast.data.moving_digits import DIGIT_SIZE

# Frames of clips, and the size of their images.
SIZES = [(8, 16), (32, 32), (9, 128)]


def place(frame):
    """Center of mass of a frame [H, W]."""
    rows, columns = np.indices(frame.shape)
    return np.array([(rows * frame).sum(), (columns * frame).sum()]) / frame.sum()


def inked(image):
    """Return the part of an image [H, W] that is not black."""
    rows, columns = np.nonzero(image)
    return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def scans_of(count):
    """Random images uint8 [count, 28, 28] without a black pixel, and labels of every class."""
    images = np.random.default_rng(0).integers(1, 256, size=(count, 28, 28), dtype=np.uint8)
    return images, np.arange(count) % 10


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


@pytest.mark.parametrize("digits", [1, 2])
def test_clips_depend_on_seed_and_index_alone(digits):
    options = ({"seed": 3}, {"seed": 3, "size": 10}, {"seed": 4})
    one, other, third = (MovingDigits(digits=digits, **option) for option in options)
    for i in (9, 0, 4):
        assert np.array_equal(one[i][0], other[i][0])
        assert one[i][1] == other[i][1]
        assert not np.array_equal(one[i][0], third[i][0])
    assert not np.array_equal(one[0][0], one[1][0])


def test_a_digit_moves_smoothly_and_stays_whole():
    dataset = MovingDigits(20, seed=1)
    for i in range(20):
        clip, _ = dataset[i]
        frames = clip[..., 0].astype(float)
        # Every frame has the same ink, so nothing is cut off at an edge.
        np.testing.assert_allclose(frames.sum((1, 2)), frames[0].sum())
        steps = np.abs(np.diff([place(frame) for frame in frames], axis=0))
        assert steps.max() <= 5 + 1
        assert steps.sum() > 0


@pytest.mark.parametrize(("image_size", "side", "speed"), [(32, 24, 0.75), (32, 30, 3.0), (16, 4, 0.0)])
def test_digits_have_the_size_and_speed_that_are_asked_for(image_size, side, speed):
    options = {"digit_size": side / image_size, "digit_speed": speed / image_size, "image_size": image_size}
    dataset = MovingDigits(20, **options, scans=scans_of(30), seed=1)
    for i in range(20):
        frames = dataset[i][0][..., 0]
        assert all(inked(frame).shape == (side, side) for frame in frames)
        corners = np.array([np.argwhere(frame)[0] for frame in frames])
        # Positions are rounded to whole pixels.
        assert np.abs(np.diff(corners, axis=0)).max() <= speed + 1
        assert speed > 0 or (corners == corners[0]).all()
    feed = open_feed(dataset, batch_size=4, channels=1, device="cpu", image_size=image_size, resident="on")
    drawn = feed.read(next(iter(feed.batches())).clips)
    known = {dataset[i][0].tobytes() for i in range(20)}
    for clip in ((drawn + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy():
        assert clip.tobytes() in known


@pytest.mark.parametrize(("name", "value"), [("digit_size", 1.0), ("digit_size", 0.2), ("digit_speed", -0.1)])
def test_digits_of_impossible_sizes_and_speeds_are_refused(name, value):
    with pytest.raises(ValueError, match=f"digits have a size of 0.25 to 0.9375 of the frame.* not {value}"):
        MovingDigits(2, **{name: value})


@pytest.mark.parametrize(("clip_frames", "image_size"), SIZES)
@pytest.mark.parametrize("digits", [1, 2])
def test_clips_of_other_sizes_are_as_asked_for(clip_frames, image_size, digits):
    options = {"digits": digits, "channels": 3, "clip_frames": clip_frames, "image_size": image_size}
    dataset, usual = MovingDigits(30, **options), MovingDigits(30, digits=digits)
    assert (dataset.clip_frames, dataset.image_size) == (clip_frames, image_size)
    for i in range(30):
        clip, label = dataset[i]
        assert clip.dtype == np.uint8
        assert clip.shape == (clip_frames, image_size, image_size, 3)
        assert label == usual[i][1]
        assert clip.reshape(clip_frames, -1).max(1).min() > 100


@pytest.mark.parametrize("image_size", [16, 32, 128])
def test_in_images_of_other_sizes_a_digit_takes_the_same_way(image_size):
    """Compare paths up to the rounding to pixels."""
    scale, scans = image_size / 64, [np.full((10, 28, 28), 255, np.uint8), np.arange(10)]
    usual, scaled = (MovingDigits(20, seed=1, scans=scans, image_size=size) for size in (64, image_size))
    for i in range(20):
        for frame, other in zip(usual[i][0], scaled[i][0], strict=True):
            expected = scale * corner(frame)
            assert np.abs(corner(other) - expected).max() <= (1 + scale) / 2
            assert inked(other[..., 0]).shape == (28 * image_size // 64,) * 2


def corner(frame):
    """Return the top left corner of the pixels of a frame [H, W, 1] that are not black."""
    return np.argwhere(frame[..., 0]).min(0)


def test_longer_clips_begin_as_shorter_ones_do():
    short, usual, long = (MovingDigits(10, clip_frames=frames) for frames in (8, 16, 64))
    for i in range(10):
        assert np.array_equal(long[i][0][:16], usual[i][0])
        assert np.array_equal(usual[i][0][:8], short[i][0])


@pytest.mark.parametrize(("image_size", "digit_size"), [(16, 7), (32, 14), (128, 56)])
def test_scans_are_resized_for_images_of_other_sizes(image_size, digit_size):
    images, labels = scans_of(20)
    # These digits have no dark pixels, since bicubic weights fall below black at the edges of bright areas.
    images = images // 4 + 128
    dataset = MovingDigits(50, scans=(images, labels), image_size=image_size)
    assert dataset.scans[0] is images
    resized = {resize(image, digit_size).tobytes(): label for image, label in zip(images, labels, strict=True)}
    for clip, label in map(dataset.__getitem__, range(50)):
        for frame in clip[..., 0]:
            assert inked(frame).shape == (digit_size, digit_size)
            assert resized[inked(frame).tobytes()] == label


def resize(image, size):
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("digits", [1, 2])
def test_labels_of_clips_are_their_digits(digits):
    dataset = MovingDigits(60, digits=digits, seed=3)
    clips = np.random.default_rng(0).permutation(60)[:40]
    labels = dataset.labels_of(clips)
    assert labels.dtype == np.int64
    assert labels.tolist() == [dataset[i][1] for i in clips]
    assert dataset.classes == 10


def enlarged_scans():
    """scikit-learn's digits, uint8 [1797, 28, 28], and their labels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = [Image.fromarray((scan * (255 / 16)).astype(np.uint8)) for scan in scans.images]
    size = DIGIT_SIZE, DIGIT_SIZE
    return np.stack([np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in images]), scans.target


def test_the_digits_are_the_scanned_ones_and_their_labels_right():
    """The pixels are those of a scan of the clip's class, enlarged."""
    (images, labels), dataset = enlarged_scans(), MovingDigits(30)
    cuts = [inked(image) for image in images]
    for i in range(30):
        clip, label = dataset[i]
        cut = inked(clip[0, :, :, 0])
        alike = {int(of) for scan, of in zip(cuts, labels, strict=True) if np.array_equal(scan, cut)}
        assert alike == {label}


@pytest.mark.parametrize("digits", [1, 2])
def test_the_scanned_ones_are_moved_where_none_are_given(digits):
    options = {"size": 20, "digits": digits, "seed": 3}
    clips, given = MovingDigits(**options), MovingDigits(**options, scans=enlarged_scans())
    for i in range(20):
        assert np.array_equal(clips[i][0], given[i][0])
        assert clips[i][1] == given[i][1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_scans_that_are_given_move_unchanged_with_their_labels(dtype):
    images, labels = scans_of(37)
    dataset = MovingDigits(400, scans=(images, labels.astype(dtype)))
    number = {image.tobytes(): i for i, image in enumerate(images)}
    shown = set()
    for clip, label in map(dataset.__getitem__, range(400)):
        (image,) = {number[inked(frame).tobytes()] for frame in clip[..., 0]}
        assert labels[image] == label
        shown.add(image)
    assert shown == set(range(37))


def test_two_scans_of_a_class_are_enough_for_two_digits():
    images, labels = scans_of(20)
    dataset = MovingDigits(100, digits=2, scans=(images, labels))
    pairs = dataset.windows(np.arange(100))[:, :, 0, 0]
    assert {frozenset(pair) for pair in pairs.tolist()} == {frozenset((i, i + 10)) for i in range(10)}
    assert all(dataset[i][1] == pair[0] % 10 for i, pair in enumerate(pairs))


def test_many_scans_are_fed_from_where_they_lie():
    """Scans are not copied, and on a CPU not padded with black."""
    images, labels = scans_of(20_000)
    tracemalloc.start()
    try:
        dataset = MovingDigits(100, digits=2, scans=(images, labels))
        feed = open_feed(dataset, batch_size=4, channels=1, device="cpu")
        batches = feed.batches()
        assert next(batches).clips.amax() > 200
        batches.close()
        assert tracemalloc.get_traced_memory()[1] < images.nbytes / 5
    finally:
        tracemalloc.stop()


def test_two_digits_overlap_without_hiding_each_other():
    one, two = (MovingDigits(50, digits=digits) for digits in (1, 2))
    ink = [np.mean([dataset[i][0].mean() for i in range(50)]) for dataset in (one, two)]
    assert 1.5 < ink[1] / ink[0] < 2.2


def test_both_digits_are_of_one_class_and_of_all_pairs_of_handwritings():
    from sklearn.datasets import load_digits

    scanned = load_digits().target
    dataset = MovingDigits(100_000, digits=2)
    images, labels = dataset.windows(np.arange(100_000))[:, :, 0, 0], [dataset[i][1] for i in range(50)]
    assert (scanned[images[:, 0]] == scanned[images[:, 1]]).all()
    assert (scanned[images[:50, 0]] == labels).all()
    assert (images[:, 0] != images[:, 1]).all()
    for digit in range(2):
        counts = np.bincount(images[:, digit], minlength=1797)
        # Each comes about 56 times; the tolerance is six standard deviations.
        assert counts.min() > 10
        assert counts.max() < 102


def test_windows_show_the_clips():
    dataset = MovingDigits(40, digits=2, seed=1)
    frames, windows = dataset.frames[..., 0].numpy(), dataset.windows(np.arange(40))
    for index in range(40):
        shown = [[frames[i, y : y + 64, x : x + 64] for i, y, x, _ in layer] for layer in windows[index]]
        assert np.array_equal(np.max(shown, 0), dataset[index][0][..., 0])
    assert (windows[..., 3] == 1).all()


@pytest.mark.parametrize(("clip_frames", "size"), SIZES)
def test_windows_of_other_sizes_show_the_clips(clip_frames, size):
    dataset = MovingDigits(20, digits=2, seed=1, clip_frames=clip_frames, image_size=size)
    frames, windows = dataset.frames[..., 0].numpy(), dataset.windows(np.arange(20))
    assert windows.shape == (20, 2, clip_frames, 4)
    for index in range(20):
        shown = [[frames[i, y : y + size, x : x + size] for i, y, x, _ in layer] for layer in windows[index]]
        assert np.array_equal(np.max(shown, 0), dataset[index][0][..., 0])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one or two digits can move in a clip, not 3"):
        MovingDigits(digits=3)
    with pytest.raises(ValueError, match="images are squares of 16, 32, 64, 128 pixels, not 60"):
        MovingDigits(image_size=60)
    with pytest.raises(ValueError, match="a video has 8 to 64 frames, not 65"):
        MovingDigits(clip_frames=65)
    with pytest.raises(IndexError, match="clip 5 of 5"):
        MovingDigits(5)[5]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda images, labels: (images / 255, labels), r"are uint8 \[n, 28, 28\], not float64 \[20, 28, 28\]"),
        (lambda images, labels: (images[:, :, :27], labels), r"are uint8 \[n, 28, 28\], not uint8 \[20, 28, 27\]"),
        (lambda images, labels: (images[..., None], labels), r"are uint8 \[n, 28, 28\], not uint8 \[20, 28, 28, 1\]"),
        (lambda images, labels: (images, labels[1:]), r"an integer for each of 20 images, not int64 \[19\]"),
        (lambda images, labels: (images, labels[:, None]), r"an integer for each of 20 images, not int64 \[20, 1\]"),
        (lambda images, labels: (images, labels / 1), r"an integer for each of 20 images, not float64 \[20\]"),
        (lambda images, labels: (images, labels + 1), "labels of scans are 0 to 9, not 1 to 10"),
        (lambda images, labels: (images, labels - 1), "labels of scans are 0 to 9, not -1 to 8"),
        (lambda images, labels: (images[:19], labels[:19]), "class 9 has 1 scan, but a clip shows 2: give more"),
        (lambda images, labels: (images[:0], labels[:0]), "class 0 has 0 scans, but a clip shows 2: give more"),
    ],
)
def test_bad_scans_are_named(change, problem):
    with pytest.raises(ValueError, match=problem):
        MovingDigits(digits=2, scans=change(*scans_of(20)))


def test_one_scan_of_a_class_is_enough_for_one_digit():
    assert MovingDigits(10, scans=scans_of(10))[9][0].any()
    with pytest.raises(ValueError, match="class 9 has 0 scans, but a clip shows 1: give more scans"):
        MovingDigits(10, scans=scans_of(9))
