"""Held-out clips of a classifier: none was used for training, or looks like a clip that was."""

import numpy as np
import pytest
from support.stores import append

from tgan_fast.data.clip_store import Header
from tgan_fast.data.moving_digits import scikit_learn_scans
from tgan_fast.errors import InputError
from tgan_fast.metrics.held_out import hold_out, split_digits, split_videos
from tgan_fast.preparation.store_writer import StoreWriter

CLASSES = ("Archery", "Bowling", "Crawling", "Diving", "Empty", "Void")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def store_of(folder, *videos, classes=CLASSES):
    """Write a store of videos, each given as (class, group); all frames differ."""
    writer = StoreWriter(folder, Header(64, 64, 1, 1, None, classes))
    for number, (label, group) in enumerate(videos):
        frames = noise(17 + number, 64, 64, 1, seed=number)
        append(writer, folder.with_name("spool"), f"{number}.avi", frames, label=label, group=group)
    writer.close()
    return folder


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_groups_stay_whole_and_every_class_gives_its_share_of_them(share):
    random = np.random.default_rng(0)
    # Of 3 classes with 25, 4 and 2 groups; their numbers repeat from class to class, as in UCF-101.
    labels = random.integers(3, size=500)
    groups = random.integers(np.array([25, 4, 2])[labels])
    held_out = hold_out(labels, groups, share, seed=1)
    for label, count in enumerate((25, 4, 2)):
        is_held_out = [set(held_out[(labels == label) & (groups == group)]) for group in range(count)]
        assert all(len(values) == 1 for values in is_held_out)
        assert is_held_out.count({True}) == min(max(round(share * count), 1), count - 1)


def test_the_choice_depends_on_the_seed_and_is_made_anew_for_every_class():
    labels, groups = np.repeat([0, 1], 100), np.tile(np.arange(100), 2)
    first, again, other = (hold_out(labels, groups, 0.2, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[:100], first[100:])


@pytest.mark.parametrize(("count", "fewest", "given"), [(1, 1, 0), (2, 1, 1), (3, 2, 1), (2, 2, 0), (4, 2, 2)])
def test_a_class_keeps_the_fewest_before_it_gives_any(count, fewest, given):
    held_out = hold_out(np.zeros(count, int), np.arange(count), 0.5, seed=0, fewest=fewest)
    assert held_out.sum() == given


def test_digits_are_held_out_by_handwriting():
    clips = split_digits(0.2)
    (training, held_out), labels = (part.scans for part in (clips.training, clips.held_out)), scikit_learn_scans()[1]
    assert np.bincount(held_out[1]).tolist() == [round(0.2 * count) for count in np.bincount(labels)]
    assert len(training[1]) + len(held_out[1]) == len(labels)
    ours = {image.tobytes() for image in training[0]}
    # Some handwritings are equal to the last pixel.
    strangers = [image for image in held_out[0] if image.tobytes() not in ours]
    assert len(strangers) > 0.99 * len(held_out[0])
    assert clips.classes == tuple("0123456789")
    assert clips.summary == "moving digits: 1,438 handwritings to train on, 359 others held out"


def test_digits_that_are_held_out_move_in_their_own_ways():
    clips = split_digits(0.2)
    pairs = [(clips.training[number][0] > 0, clips.held_out[number][0] > 0) for number in range(20)]
    assert all(ours.shape == (16, 64, 64, 1) for ours, _ in pairs)
    assert not any(np.array_equal(ours.any((0, 3)), theirs.any((0, 3))) for ours, theirs in pairs)


def test_two_digits_need_two_handwritings_on_either_side():
    for share, part in ((1e-6, "held_out"), (1 - 1e-6, "training")):
        assert np.bincount(getattr(split_digits(share, digits=2), part).scans[1]).tolist() == [2] * 10


def frames_of(videos):
    return {
        videos.frames[first : first + length].numpy().tobytes()
        for first, length in zip(videos.first, videos.length, strict=True)
    }


def test_videos_are_held_out_by_group(tmp_path):
    grouped = [(label, group) for label in ("Archery", "Bowling") for group in (1, 2, 3, 4) for _ in range(3)]
    store = store_of(tmp_path / "store", *grouped)
    seen = set()
    for seed in range(8):
        clips = split_videos(store, 0.25, seed=seed)
        # Lengths tell the videos apart, one more from each to the next.
        held_out = clips.held_out.length - 17
        assert sorted([*held_out, *(clips.training.length - 17)]) == list(range(24))
        assert sorted(held_out // 3) == sorted(np.repeat(np.unique(held_out // 3), 3))
        assert clips.held_out.labels.tolist() == [0] * 3 + [1] * 3
        assert not frames_of(clips.held_out) & frames_of(clips.training)
        seen.add(tuple(held_out))
    assert len(seen) > 4
    assert clips.summary.endswith("; to train on: 18; held out: 6 of other groups")


def test_videos_without_groups_are_held_out_one_by_one(tmp_path):
    store = store_of(tmp_path / "store", *[("Archery", None)] * 5, *[("Bowling", None)] * 10)
    clips = split_videos(store, 0.2)
    assert clips.held_out.labels.tolist() == [0, 1, 1]
    assert clips.summary.endswith("; to train on: 12; held out: 3")
    assert (clips.training.flip, clips.held_out.flip) == (True, False)


def test_classes_that_cannot_be_tested_or_trained_get_a_notice(tmp_path):
    videos = [("Crawling", 1), ("Bowling", 1), ("Bowling", 1), ("Diving", 1), ("Diving", 2)]
    clips = split_videos(store_of(tmp_path / "store", *videos), 0.2)
    assert clips.classes == ("Bowling", "Crawling", "Diving")
    assert clips.training.labels.tolist() == [1, 0, 0, 2]
    assert clips.held_out.labels.tolist() == [2]
    assert clips.notices == (
        "classes without a video, which are left out: Archery, Empty, Void",
        "classes with only one group, which is not held out: Bowling, Crawling",
    )


def test_many_classes_are_not_all_named(tmp_path):
    names = tuple(f"class {number}" for number in range(1000, 1100))
    store = store_of(tmp_path / "store", *[(name, None) for name in names[:2] * 2], classes=names)
    assert split_videos(store, 0.5).notices == (
        "classes without a video, which are left out: class 1002, class 1003, class 1004 and 95 more",
    )


def test_fewer_than_two_classes_are_none(tmp_path):
    store = store_of(tmp_path / "store", ("Archery", 1), ("Archery", 2))
    with pytest.raises(InputError, match=r"store have one class, but .*: prepare a folder with a subfolder of"):
        split_videos(store, 0.2)
    np.save(tmp_path / "clips.npy", noise(4, 16, 64, 64, 1))
    with pytest.raises(InputError, match=r"clips\.npy have no classes, but a classifier needs two or more: prep"):
        split_videos(tmp_path / "clips.npy", 0.2)


@pytest.mark.parametrize(
    ("videos", "unit"), [([("Archery", 1), ("Bowling", 1)], "video"), ([("Archery", 1), ("Bowling", 1)] * 2, "group")]
)
def test_something_must_be_held_out(tmp_path, videos, unit):
    store = store_of(tmp_path / "store", *videos)
    with pytest.raises(InputError, match=f"every class of .*store has only one {unit}, so that none can be held out"):
        split_videos(store, 0.2)
