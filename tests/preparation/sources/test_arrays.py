"""NumPy arrays as a source of videos."""

import hashlib

import numpy as np
import pytest

from tgan_fast.errors import InputError, UnreadableVideoError
from tgan_fast.preparation.decoding import FrameFormat
from tgan_fast.preparation.sources import recognize


def noise(*shape):
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def read(video, channels, size=64):
    return np.concatenate(list(video.read(FrameFormat(size, size, channels))))


CLIPS = noise(3, 5, 64, 64, 3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(CLIPS, CLIPS, id="NTHWC"),
        pytest.param(CLIPS.transpose(0, 1, 4, 2, 3), CLIPS, id="NTCHW"),
        pytest.param(CLIPS.transpose(0, 4, 1, 2, 3), CLIPS, id="NCTHW"),
        pytest.param(CLIPS[..., :1], CLIPS[..., :1], id="one channel"),
        pytest.param(CLIPS[:, :3], CLIPS[:, :3], id="three frames"),
        pytest.param(CLIPS[0], CLIPS[:1], id="THWC"),
        pytest.param(CLIPS[0, ..., 0], CLIPS[:1, ..., :1], id="THW"),
        pytest.param(np.asfortranarray(CLIPS), CLIPS, id="Fortran order"),
    ],
)
def test_clips_of_every_usual_layout_are_read_as_they_are(tmp_path, array, expected):
    np.save(tmp_path / "clips.npy", array)
    collection = recognize(tmp_path / "clips.npy")
    assert collection.channels == expected.shape[-1]
    assert len(collection.videos) == len(expected)
    for video, clip in zip(collection.videos, expected, strict=True):
        assert np.array_equal(read(video, expected.shape[-1]), clip)
        assert video.nbytes == clip.nbytes
        assert video.digest() == hashlib.sha256(np.ascontiguousarray(clip)).hexdigest()
        assert video.count(FrameFormat(64, 64, expected.shape[-1], stride=2)) == -(-len(clip) // 2)


def test_moving_mnist_has_time_before_videos(tmp_path):
    array = noise(20, 7, 64, 64)
    np.save(tmp_path / "mnist_test_seq.npy", array)
    collection = recognize(tmp_path / "mnist_test_seq.npy")
    assert [video.name for video in collection.videos] == [f"mnist_test_seq.npy/{i:05d}" for i in range(7)]
    assert collection.channels == 1
    for number, video in enumerate(collection.videos):
        assert np.array_equal(read(video, 1)[..., 0], array[:, number])


@pytest.mark.parametrize("count", [20, 21, 30, 100])
def test_a_part_of_moving_mnist_under_another_name_needs_its_axes(tmp_path, count):
    array = noise(20, count, 8, 8)
    np.save(tmp_path / "digits.npy", array)
    message = (
        rf"digits.npy holds uint8 \[20, {count}, 8, 8\], whose axes may be NTHW or TNHW \(N videos, T frames\): "
        "pass the right one to prepare or train, such as --axes NTHW"
    )
    with pytest.raises(InputError, match=message):
        recognize(tmp_path / "digits.npy")
    videos = recognize(tmp_path / "digits.npy", "TNHW").videos
    assert len(videos) == count
    for number, video in enumerate(videos):
        assert np.array_equal(read(video, 1, 8)[..., 0], array[:, number])
    assert len(recognize(tmp_path / "digits.npy", "NTHW").videos) == 20


@pytest.mark.parametrize(
    ("array", "orders"),
    [
        (CLIPS[..., 0], "NTHW or TNHW or CTHW"),
        (CLIPS[0].transpose(0, 3, 1, 2), "NTHW or TNHW or TCHW"),
        (CLIPS[:, :3].transpose(0, 1, 4, 2, 3), "NTCHW or NCTHW"),
        (CLIPS[:, :1].transpose(0, 1, 4, 2, 3), "NTCHW or NCTHW"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ambiguous_axes_are_asked_for(tmp_path, array, orders):
    np.save(tmp_path / "clips.npy", array)
    with pytest.raises(InputError, match=rf"whose axes may be {orders} \(N"):
        recognize(tmp_path / "clips.npy")


@pytest.mark.parametrize("axes", ["NTHW", "TNHW", "NTCHW", "NCTHW", "TNHWC", "TCHW", "CTHW", "HWT", "HWCTN"])
def test_given_axes_count(tmp_path, axes):
    # All axes but rows and columns have size 3, so that the shape is ambiguous.
    clips = noise(3, 3, 8, 9, 3)
    array = clips[tuple(slice(None) if axis in axes else 0 for axis in "NTHWC")]
    left = [axis for axis in "NTHWC" if axis in axes]
    np.save(tmp_path / "clips.npy", array.transpose([left.index(axis) for axis in axes]))
    collection = recognize(tmp_path / "clips.npy", axes)
    expected = clips[: None if "N" in axes else 1, ..., : None if "C" in axes else 1]
    for video, clip in zip(collection.videos, expected, strict=True):
        frame_format = FrameFormat(8, 9, clip.shape[-1])
        assert np.array_equal(np.concatenate(list(video.read(frame_format))), clip)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("NTHWC", r"\[3, 5, 64, 64\], whose axes may be NTHW or TNHW or CTHW"),
        ("TCHW", r"\[3, 5, 64, 64\], which --axes TCHW does not fit"),
        ("NT", "--axes is 'NT', but must list the axes"),
        ("NTHH", "--axes is 'NTHH', but must list"),
        ("THWX", "--axes is 'THWX', but must list"),
    ],
)
def test_axes_that_do_not_fit_are_refused(tmp_path, axes, message):
    np.save(tmp_path / "clips.npy", CLIPS[..., 0])
    with pytest.raises(InputError, match=message):
        recognize(tmp_path / "clips.npy", axes)


def test_axes_are_refused_for_videos(tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"--axes is the order of axes of arrays, but .*1.mp4 is a video file: leave"):
        recognize(tmp_path / "1.mp4", "NTHW")


@pytest.mark.parametrize(("labels", "count"), [(3, 3), (5, 5)])
def test_the_number_of_labels_decides_the_axes(tmp_path, labels, count):
    np.savez(tmp_path / "clips.npz", clips=CLIPS[..., 0], labels=np.arange(labels))
    assert len(recognize(tmp_path / "clips.npz").videos) == count
    np.savez(tmp_path / "square.npz", clips=CLIPS[:, :3, ..., 0], labels=np.arange(3))
    with pytest.raises(InputError, match="NTHW or TNHW"):
        recognize(tmp_path / "square.npz")


def test_moving_mnist_has_twenty_frames_whatever_its_name(tmp_path):
    np.save(tmp_path / "mnist_test_seq.npy", noise(7, 20, 8, 8))
    with pytest.raises(InputError, match="NTHW or TNHW"):
        recognize(tmp_path / "mnist_test_seq.npy")


def test_npz_files_hold_arrays_of_any_sizes_and_labels(tmp_path):
    clips = {"a": noise(4, 40, 50, 3), "b": noise(2, 5, 64, 64, 3), "labels": np.array([10, 2, 2])}
    np.savez_compressed(tmp_path / "clips.npz", **clips)
    collection = recognize(tmp_path / "clips.npz")
    assert [(video.name, video.label) for video in collection.videos] == [
        ("clips.npz/a", "10"),
        ("clips.npz/b/00000", "02"),
        ("clips.npz/b/00001", "02"),
    ]
    assert collection.classes == ("02", "10")
    assert np.array_equal(read(collection.videos[2], 3), clips["b"][1])
    assert read(collection.videos[0], 3).shape == (4, 64, 64, 3)


def test_gray_clips_among_colored_ones_get_equal_channels(tmp_path):
    np.savez(tmp_path / "clips.npz", a=noise(4, 64, 64), b=noise(4, 64, 64, 3))
    collection = recognize(tmp_path / "clips.npz")
    assert collection.channels == 3
    assert np.array_equal(read(collection.videos[0], 3), noise(4, 64, 64)[..., None].repeat(3, -1))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5, 8, 8, 3), np.float32), r"holds float32 \[2, 5, 8, 8, 3\], but clips are uint8"),
        (np.zeros((8, 8), np.uint8), r"holds uint8 \[8, 8\]"),
        (np.uint8(3), r"holds uint8 \[\], but clips are \[N, T, H, W, C\] or \[N, T, H, W\], with C = 1 or 3"),
        (np.zeros((2, 5, 8, 8, 4), np.uint8), r"holds uint8 \[2, 5, 8, 8, 4\]"),
        (np.zeros((0, 5, 8, 8), np.uint8), r"holds uint8 \[0, 5, 8, 8\], which is empty: it has no clips"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "clips.npy", array)
    with pytest.raises(InputError, match=message):
        recognize(tmp_path / "clips.npy")


def test_objects_are_not_loaded_since_that_would_run_code(tmp_path):
    np.save(tmp_path / "clips.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"cannot read the array in .*clips.npy: .*Python objects"):
        recognize(tmp_path / "clips.npy")


def test_broken_files_and_wrong_labels_are_named(tmp_path):
    (tmp_path / "clips.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(InputError, match=r"cannot read the array in .*clips.npz"):
        recognize(tmp_path / "clips.npz")
    np.savez(tmp_path / "clips.npz", a=noise(2, 5, 8, 8, 1), labels=np.array([1, 2, 3]))
    with pytest.raises(InputError, match=r"has labels int64 \[3\], but there are 2 clips: each clip needs one integer"):
        recognize(tmp_path / "clips.npz")
    np.savez(tmp_path / "clips.npz", labels=np.array([1, 2, 3]))
    with pytest.raises(InputError, match=r"clips.npz holds no array of clips: give one that does"):
        recognize(tmp_path / "clips.npz")


def test_a_file_that_changes_after_it_was_recognized_is_unreadable(tmp_path):
    np.save(tmp_path / "unlike_any_other.npy", noise(2, 5, 8, 8, 1))
    videos = recognize(tmp_path / "unlike_any_other.npy").videos
    (tmp_path / "unlike_any_other.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UnreadableVideoError, match="it cannot be read"):
        videos[0].digest()
