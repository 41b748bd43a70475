"""Prepared videos, opened for training."""

import json

import h5py
import numpy as np
import pytest
from support.stores import append, video_of

from tgan_fast.data import VideoFrames, open_feed, read_videos
from tgan_fast.data.clip_store import ClipStore, Header
from tgan_fast.errors import InputError
from tgan_fast.preparation.store_writer import StoreWriter

LENGTHS = (20, 5, 16, 31)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


VIDEOS = [noise(length, 64, 85, 3, seed=length) for length in LENGTHS]
LABELS = ("b", "a", "b", "c")


@pytest.fixture
def store(tmp_path):
    """Write a store of four videos, one of which is shorter than a clip."""
    folder = tmp_path / "store"
    writer = StoreWriter(folder, Header(64, 85, 3, 1, None, ("a", "b", "c")))
    for number, (frames, label) in enumerate(zip(VIDEOS, LABELS, strict=True)):
        append(writer, tmp_path / "spool", f"{number}.avi", frames, label=label)
    writer.close()
    return folder


def frames_of(videos, number):
    start = videos.first[number]
    return videos.frames[start : start + videos.length[number]].numpy()


def test_a_store_is_opened_without_reading_it_and_short_videos_are_counted(store):
    opened = VideoFrames(read_videos(store))
    assert opened.summary == (f"{store}: videos: 4; frames: 72; classes: 3; shorter than a clip and left out: 1")
    assert opened.videos.class_names == ("a", "b", "c")
    assert opened.labels.tolist() == [1, 1, 2]
    for number, frames in enumerate((VIDEOS[0], VIDEOS[2], VIDEOS[3])):
        assert np.array_equal(frames_of(opened, number), frames)


def test_the_checksum_of_a_store_is_that_of_its_index_and_others_have_none(store, tmp_path):
    assert read_videos(store).checksum == ClipStore(store).fingerprint
    np.save(tmp_path / "clips.npy", np.zeros((2, 16, 64, 64, 1), np.uint8))
    assert read_videos(tmp_path / "clips.npy").checksum is None


def test_videos_of_one_group_are_known(tmp_path):
    writer = StoreWriter(tmp_path / "store", Header(64, 85, 3, 1, None, ("a",)))
    for number, (frames, group) in enumerate(zip(VIDEOS, (7, 7, None, 7), strict=True)):
        append(writer, tmp_path / "spool", f"{number}.avi", frames, label="a", group=group)
    writer.close()
    first, lonely, other = VideoFrames(read_videos(tmp_path / "store")).videos.groups.tolist()
    assert first == other != lonely
    assert len(set(read_videos(tmp_path / "store").groups.tolist())) == 2


def test_short_videos_are_looped_on_request(store):
    opened = VideoFrames(read_videos(store), short="loop")
    assert opened.summary.endswith("; shorter than a clip and looped: 1")
    assert opened.labels.tolist() == [1, 0, 1, 2]
    windows = opened.windows(np.array([1]), np.random.default_rng(0))
    clips = np.empty((1, 16, 64, 64, 3), np.uint8)
    opened.cut(windows, clips)
    assert np.array_equal(clips[0], VIDEOS[1][np.arange(16) % 5][:, :, 10:74])


def test_a_stride_makes_more_videos_too_short(store):
    assert VideoFrames(read_videos(store), stride=2).labels.tolist() == [2]
    with pytest.raises(
        InputError, match=r"none of the 4 videos of .*store has the 46 frames of a clip: choose short_vid"
    ):
        VideoFrames(read_videos(store), stride=3)


@pytest.mark.parametrize(("clip_frames", "size", "labels"), [(8, 16, [1, 1, 2]), (20, 32, [1, 2]), (31, 64, [2])])
def test_clips_of_other_sizes_are_cut_out_of_what_is_long_enough(store, clip_frames, size, labels):
    opened = VideoFrames(read_videos(store), clip_frames=clip_frames, image_size=size)
    assert opened.labels.tolist() == labels
    assert len(opened.videos.groups) == len(labels)
    assert opened.summary.endswith(f"; shorter than a clip and left out: {4 - len(labels)}")
    assert opened.clip_shape == (clip_frames, size, size, 3)
    clips = np.empty((1, *opened.clip_shape), np.uint8)
    windows = opened.windows(np.array([len(labels) - 1]), np.random.default_rng(0))
    opened.cut(windows, clips)
    start, top, left = windows[0, 0, 0, 0] - opened.first[-1], (64 - size) // 2, (85 - size) // 2
    assert np.array_equal(clips[0], VIDEOS[3][start : start + clip_frames, top : top + size, left : left + size])


def test_clips_that_are_longer_than_all_videos_are_named(store):
    with pytest.raises(
        InputError, match=r"none of the 4 videos .* has the 32 frames of a clip: .* or clips of fewer frames"
    ):
        VideoFrames(read_videos(store), clip_frames=32)
    with pytest.raises(InputError, match="are 64 pixels high and 85 wide, but a clip needs 128 of each"):
        VideoFrames(read_videos(store), image_size=128)


def test_batches_are_those_of_the_definition(store):
    opened = VideoFrames(read_videos(store), crop="random", flip=True, weighting="windows")
    feed = open_feed(opened, batch_size=4, channels=3, device="cpu", seed=7)
    batches = feed.batches()
    first = [feed.read(next(batches).clips).clone() for _ in range(3)]
    batches.close()
    again = feed.batches(2)
    assert np.array_equal(feed.read(next(again).clips), first[2])
    again.close()


def test_hdf5_of_the_authors_is_mapped_into_memory(tmp_path):
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file["image"] = np.concatenate(VIDEOS).transpose(0, 3, 1, 2)
    ends = np.cumsum(LENGTHS)
    rows = [
        {"category": label, "group": group, "start": int(end - length), "end": int(end)}
        for label, group, length, end in zip(LABELS, ("g1", "g1", None, "g1"), LENGTHS, ends, strict=True)
    ]
    path.with_suffix(".json").write_text(json.dumps(rows))
    opened = VideoFrames(read_videos(path))
    assert opened.videos.class_names == ("a", "b", "c")
    assert opened.labels.tolist() == [1, 1, 2]
    assert opened.videos.groups[0] == opened.videos.groups[2] != opened.videos.groups[1]
    assert np.array_equal(frames_of(opened, 2), VIDEOS[3])
    clips = np.empty((1, 16, 64, 64, 3), np.uint8)
    opened.cut(opened.windows(np.array([1]), np.random.default_rng(0)), clips)
    assert np.array_equal(clips[0], VIDEOS[2][:, :, 10:74])
    other = dict(rows[0], end=19)
    path.with_suffix(".json").write_text(json.dumps([other, *rows[1:]]))
    assert read_videos(path).fingerprint != opened.fingerprint


def test_compressed_hdf5_has_to_be_prepared(tmp_path):
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=noise(20, 3, 64, 64), compression="gzip")
        file["start"], file["end"] = [0], [20]
    with pytest.raises(
        InputError, match=r"compressed or in chunks: make .* python -m tgan_fast prepare .*train.h5 STORE"
    ):
        read_videos(path)


def test_moving_mnist_is_trained_on_as_it_is(tmp_path):
    array = noise(20, 6, 64, 64)
    np.save(tmp_path / "mnist_test_seq.npy", array)
    opened = VideoFrames(read_videos(tmp_path / "mnist_test_seq.npy"))
    assert opened.frames.shape[3] == 1
    assert len(opened) == 6
    assert opened.videos.class_names == ()
    assert len(set(opened.videos.groups.tolist())) == 6
    for number in range(6):
        assert np.array_equal(frames_of(opened, number)[..., 0], array[:, number])


@pytest.mark.parametrize("shape", [(3, 20, 64, 64, 1), (3, 20, 64, 64, 3), (20, 64, 64, 3)], ids=str)
def test_arrays_that_lie_as_training_reads_them_are_mapped_into_memory(tmp_path, shape):
    array = noise(*shape)
    np.save(tmp_path / "clips.npy", array)
    prepared = read_videos(tmp_path / "clips.npy")
    assert np.array_equal(prepared.frames.ravel(), array.ravel())
    # A copy could be written to.
    assert not prepared.frames.flags.writeable


def test_axes_that_are_not_known_are_asked_for(tmp_path):
    np.save(tmp_path / "clips.npy", noise(20, 16, 64, 64))
    with pytest.raises(InputError, match=r"pass the right one to prepare or train, such as --axes NTHW"):
        read_videos(tmp_path / "clips.npy")
    assert len(read_videos(tmp_path / "clips.npy", "nthw").first) == 20
    assert len(read_videos(tmp_path / "clips.npy", "TNHW").first) == 16
    with pytest.raises(InputError, match=r"--axes is 'NHW', but must list the axes"):
        read_videos(tmp_path / "clips.npy", "NHW")


def test_labels_of_arrays_are_their_classes(tmp_path):
    np.savez(tmp_path / "clips.npz", clips=noise(3, 20, 64, 64), labels=np.array([7, 2, 7]))
    opened = VideoFrames(read_videos(tmp_path / "clips.npz"))
    assert (opened.videos.class_names, opened.labels.tolist()) == (("2", "7"), [1, 0, 1])


def test_arrays_of_different_sizes_have_to_be_prepared(tmp_path):
    np.savez(tmp_path / "clips.npz", a=noise(20, 64, 64, 3), b=noise(2, 20, 64, 70, 3))
    with pytest.raises(InputError, match=r"different sizes: make a clip store with python -m tgan_fast prepare"):
        read_videos(tmp_path / "clips.npz")


def test_files_that_are_not_prepared_raise_an_error_with_the_command(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*nothing: check the path"):
        read_videos(tmp_path / "nothing")
    (tmp_path / "UCF-101").mkdir()
    with pytest.raises(InputError, match=r"UCF-101 is not a clip store: make one with python -m tgan_fast prepare"):
        read_videos(tmp_path / "UCF-101")


def test_small_frames_have_to_be_prepared_anew(tmp_path):
    writer = StoreWriter(tmp_path / "store", Header(6, 8, 3, 1, None, ()))
    append(writer, tmp_path / "spool", "1", video_of(20, 0), label=None)
    writer.close()
    with pytest.raises(InputError, match="are 6 pixels high and 8 wide, but a clip needs 64 of each"):
        VideoFrames(read_videos(tmp_path / "store"))
