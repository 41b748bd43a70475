"""The data set that a config names, and the notice of a resumed run that it has changed."""

import gzip
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.stores import append

from tgan_fast.cli.compare import differing_settings
from tgan_fast.data import MovingDigits, PreparedVideos, VideoFrames
from tgan_fast.data.clip_store import Header
from tgan_fast.errors import InputError
from tgan_fast.preparation.store_writer import StoreWriter
from tgan_fast.training import TrainingConfig, train
from tgan_fast.training.checkpoint import read_run
from tgan_fast.training.dataset import classes_of, fingerprint_and_summary, open_data, with_data
from tgan_fast.training.resume import changed_settings

SMALL = {
    "width": 0.03125,
    "latent_dim": 4,
    "image_size": 16,
    "batch_size": 2,
    "steps": 2,
    "device": "cpu",
    "precision": "fp32",
    "log_interval": 1,
    "checkpoint_interval": 100,
    "sample_interval": 100,
    "workers": 1,
}


def noise(*shape):
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def extend(folder, spool, *lengths):
    writer = StoreWriter(folder, Header(16, 21, 3, 1, None, ()))
    for length in lengths:
        append(writer, spool, f"{len(writer.entries)}", noise(length, 16, 21, 3), label=None)
    writer.close()


@pytest.fixture
def store(tmp_path):
    """Write a store of three videos, one of which is shorter than a clip."""
    extend(tmp_path / "store", tmp_path / "spool", 20, 10, 30)
    return tmp_path / "store"


def test_settings_reach_the_videos(store):
    values = {"crop": "random", "flip": True, "weighting": "windows", "last_start": False, "frame_stride": 1}
    videos = open_data(TrainingConfig(data=str(store), image_size=16, **values))
    assert isinstance(videos, VideoFrames)
    assert (videos.crop, videos.flip, videos.weighting) == ("random", True, "windows")
    assert len(videos) == 4 + 14
    looped = open_data(TrainingConfig(data=str(store), image_size=16, short_videos="loop", frame_stride=2))
    assert (len(looped), looped.stride, looped.loop) == (3, 2, True)


def test_without_data_it_is_moving_digits():
    digits = open_data(TrainingConfig(digits=1, channels=1, seed=5))
    expected = MovingDigits(digits=1, channels=1, seed=5)
    assert np.array_equal(digits[7][0], expected[7][0])
    assert digits.summary == "1,797 handwritten digits"


def test_digits_of_mnists_own_files(tmp_path):
    images, labels = noise(40, 28, 28), np.arange(40) % 10
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">I3I", 0x803, 40, 28, 28) + images.tobytes()))
    labels_path = tmp_path / "train-labels-idx1-ubyte"
    labels_path.write_bytes(struct.pack(">II", 0x801, 40) + labels.astype(np.uint8).tobytes())
    digits = open_data(TrainingConfig(digit_images=str(path), channels=1))
    assert digits.summary == "40 handwritten digits"
    expected = MovingDigits(digits=2, channels=1, scans=(images, labels))
    assert np.array_equal(digits[3][0], expected[3][0])
    assert digits.fingerprint == expected.fingerprint != MovingDigits().fingerprint


def test_other_data_takes_the_settings_of_digits_and_of_their_scores_away(store):
    of_digits = {"digit_size": 0.75, "digit_speed": 0.0, "digit_images": "x", "evaluate_every": 5, "classifier": "c"}
    config = with_data(TrainingConfig(**of_digits, image_size=16, channels=1), store)
    assert config == TrainingConfig(data=str(store), image_size=16, channels=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip": True}, "flip is True, but it is for videos: give data, or leave it out"),
        ({"crop": "random"}, "crop is 'random', but it is for videos"),
        ({"frame_stride": 2}, "frame_stride is 2, but it is for videos"),
        ({"data": "x", "digit_images": "y"}, "digit_images is 'y', but it is for moving digits: leave out data"),
        ({"data": "x", "digit_size": 0.75}, "digit_size is 0.75, but it is for moving digits: leave out data"),
        ({"frame_stride": 0}, "frame_stride is 0, but it must be greater than or equal to 1"),
        ({"data": "x", "crop": "left"}, "crop is 'left', but it must be 'center' or 'random'"),
    ],
)
def test_settings_of_other_data_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig(**values)


def test_a_crop_of_earlier_files_is_the_same_setting(store):
    config = TrainingConfig(data=str(store), crop="centre", image_size=16)
    assert config == TrainingConfig(data=str(store), crop="center", image_size=16)
    assert open_data(config).crop == "center"
    earlier = config.model_dump() | {"crop": "centre"}
    assert changed_settings(config, earlier) == []
    runs = {name: SimpleNamespace(config=values) for name, values in (("new", config.model_dump()), ("old", earlier))}
    assert differing_settings(runs) == {}


def test_a_run_says_what_it_trains_on_and_when_that_has_changed(store, tmp_path, capfd):
    config = TrainingConfig(**SMALL, data=str(store))
    step = train(config, tmp_path / "run")
    said = capfd.readouterr().err
    assert f"{store}: videos: 3; frames: 60; classes: 0; shorter than a clip and left out: 1" in said
    assert step.iteration == 2
    checkpoint = tmp_path / "run" / "checkpoints" / "iteration-00000002.pt"
    assert read_run(checkpoint)["data"] == open_data(config).fingerprint

    more = config.model_copy(update={"steps": 3})
    train(more, tmp_path / "same", resume=checkpoint)
    assert "the data has changed" not in capfd.readouterr().err
    extend(store, tmp_path / "spool", 25)
    train(more, tmp_path / "other", resume=checkpoint)
    assert "the data has changed since the checkpoint was made" in capfd.readouterr().err


@pytest.mark.parametrize("weighting", ["videos", "windows"])
def test_a_run_on_videos_resumes_exactly(store, tmp_path, weighting):
    options = {"crop": "random", "flip": True, "short_videos": "loop", "weighting": weighting}
    config = TrainingConfig(**SMALL, data=str(store), **options)
    longer = config.model_copy(update={"steps": 4})
    train(longer, tmp_path / "whole")
    train(config, tmp_path / "parts")
    train(longer, tmp_path / "parts", resume=tmp_path / "parts" / "checkpoints" / "iteration-00000002.pt")
    one, other = (
        read_run(tmp_path / name / "checkpoints" / "iteration-00000004.pt")["step"] for name in ("whole", "parts")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_gray_store_trains_a_network_with_colors(tmp_path):
    writer = StoreWriter(tmp_path / "store", Header(16, 16, 1, 1, None, ()))
    for name in "ab":
        append(writer, tmp_path / "spool", name, noise(20, 16, 16, 1), label=None)
    writer.close()
    assert train(TrainingConfig(**SMALL, data=str(tmp_path / "store"), channels=3), tmp_path / "run").iteration == 2


def test_a_store_with_colors_needs_a_network_with_them(store, tmp_path):
    with pytest.raises(InputError, match=r"uint8 \[16, 16, 16, 1\].* but the data set .*: choose channels 3"):
        train(TrainingConfig(**SMALL, data=str(store), channels=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Clips:
    """Data set of black clips that does not say how many classes it has."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.zeros((16, 64, 64, 3), np.uint8), index % 2


def videos_of(labels):
    frames = np.zeros((16 * len(labels), 64, 64, 3), np.uint8)
    return VideoFrames(PreparedVideos(frames, 16 * np.arange(len(labels)), np.full(len(labels), 16), labels))


@pytest.mark.parametrize(
    ("dataset", "classes", "found"),
    [(MovingDigits(20), None, 10), (videos_of([0, 4]), None, 5), (videos_of([0, 4]), 7, 7), (Clips(), 3, 3)],
    ids=["digits", "videos", "more", "clips"],
)
def test_how_many_classes_a_conditional_run_has(dataset, classes, found):
    config = TrainingConfig(conditional=True, classes=classes)
    assert classes_of(config, dataset) == found


@pytest.mark.parametrize(
    ("dataset", "classes", "message"),
    [
        (
            videos_of([0, 0]),
            None,
            "conditional needs videos of at least two classes, which the data does not have: leave",
        ),
        (videos_of([0, 4]), 3, "classes is 3, but the data has 5: leave it out"),
        (Clips(), None, "the data set does not say how many classes it has: set classes"),
    ],
    ids=["one", "fewer", "unknown"],
)
def test_labels_that_are_missing_are_one_sentence_before_anything_is_written(dataset, classes, message, tmp_path):
    config = TrainingConfig(conditional=True, classes=classes, batch_size=2, device="cpu")
    with pytest.raises(InputError, match=message):
        train(config, tmp_path / "run", dataset=dataset)
    assert not (tmp_path / "run").exists()


def test_a_data_set_may_have_a_fingerprint_and_a_summary_as_texts():
    class Own(Clips):
        fingerprint, summary = "0123", "two squares"

    class Other(Clips):
        def summary(self):
            raise AssertionError

    assert fingerprint_and_summary(Own()) == ("0123", "two squares")
    assert fingerprint_and_summary(Other()) == fingerprint_and_summary(Clips()) == (None, None)
    assert fingerprint_and_summary(MovingDigits(8))[1] == "1,797 handwritten digits"
