"""Prepared videos in HDF5, in the format of TGAN's authors."""

import hashlib
import json
import sys

import h5py
import numpy as np
import pytest

from tgan_fast.errors import InputError
from tgan_fast.preparation.decoding import FrameFormat
from tgan_fast.preparation.sources import recognize

IMAGES = np.random.default_rng(0).integers(256, size=(30, 3, 64, 85), dtype=np.uint8)
ROWS = [
    {"category": "Archery", "group": 1, "scene": 2, "start": 0, "end": 18},
    {"category": "Bowling", "group": 10, "scene": 1, "start": 18, "end": 30},
]
COLUMNS = {name: {str(number): row[name] for number, row in enumerate(ROWS)} for name in ROWS[0]}
LISTS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def write(path, images=IMAGES, **others):
    with h5py.File(path, "w") as file:
        file["image"] = images
        for name, values in others.items():
            file[name] = values
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "train.h5")


def read(video, width=85):
    return np.concatenate(list(video.read(FrameFormat(64, width, 3))))


@pytest.mark.parametrize("table", [ROWS, COLUMNS, LISTS], ids=["records", "columns", "lists"])
@pytest.mark.parametrize("name", ["train.json", "train_conf.json", "train_conf_pd.json"])
def test_a_table_of_pandas_gives_the_starts_and_classes_of_videos(file, table, name):
    file.with_name(name).write_text(json.dumps(table))
    collection = recognize(file)
    assert [(v.name, v.label, v.group, v.scene) for v in collection.videos] == [
        ("Archery/v_Archery_g01_c02", "Archery", 1, 2),
        ("Bowling/v_Bowling_g10_c01", "Bowling", 10, 1),
    ]
    for video, (start, end) in zip(collection.videos, [(0, 18), (18, 30)], strict=True):
        frames = IMAGES[start:end].transpose(0, 2, 3, 1)
        assert np.array_equal(read(video), frames)
        # Training uses these columns of the authors' frames.
        assert np.array_equal(read(video, 64), frames[:, :, 10:74])
        assert video.digest() == hashlib.sha256(np.ascontiguousarray(frames)).hexdigest()
        assert video.count(FrameFormat(64, 85, 3)) == end - start


def test_pairs_are_enough(file):
    file.with_suffix(".json").write_text(json.dumps([[0, 18], [18, 30]]))
    collection = recognize(file)
    assert [(v.name, v.label) for v in collection.videos] == [("train.h5/00000", None), ("train.h5/00001", None)]
    assert np.array_equal(read(collection.videos[1]), IMAGES[18:].transpose(0, 2, 3, 1))


@pytest.mark.parametrize("names", [("start", "end"), ("starts", "ends")])
def test_arrays_in_the_same_file_are_enough(tmp_path, names):
    file = write(tmp_path / "own.hdf5", **dict(zip(names, ([0, 18], [18, 30]), strict=True)))
    assert [video.count(FrameFormat(64, 64, 3)) for video in recognize(file).videos] == [18, 12]


def test_frames_may_be_compressed_and_have_their_channels_last(tmp_path):
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=IMAGES.transpose(0, 2, 3, 1), compression="gzip", chunks=(4, 64, 85, 3))
        file["start"], file["end"] = [3], [20]
    (video,) = recognize(path).videos
    assert np.array_equal(read(video), IMAGES[3:20].transpose(0, 2, 3, 1))


def test_columns_of_other_types_name_no_videos(file):
    row = {"start": 0, "end": 5, "category": 3, "group": "1", "scene": "2"}
    file.with_suffix(".json").write_text(json.dumps([row, {**row, "start": 5, "end": 9}]))
    assert [(v.name, v.label) for v in recognize(file).videos] == [("train.h5/00000", "3"), ("train.h5/00001", "3")]


def test_a_pickle_is_not_loaded_and_the_error_says_how_to_convert_it(file):
    (file.parent / "train_conf_pd.pkl").write_bytes(b"code")
    message = (
        r"train_conf_pd.pkl is a pickle.* python -c \"import pandas; pandas.read_pickle\('.*'\).to_json\('.*train.json"
    )
    with pytest.raises(InputError, match=message):
        recognize(file)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0, 31]], r"video 0 of .*train.json goes from frame 0 to 31, but .*train.h5 has 30 frames"),
        ([[0, 5], [-1, 5]], "video 1 of .* goes from frame -1 to 5"),
        ([[5, 5]], "video 0 of .* goes from frame 5 to 5"),
        ({"begin": [1]}, "must be a table of start and end|must have an integer start and end"),
        ([["a", "b"]], "must have an integer start and end for every video"),
        ([], "must be a table of start and end"),
        ("hello", "must be a table of start and end"),
        ({"start": [0, 5], "end": [5]}, "must have the same number of values, one for each video"),
        ({"start": [0], "end": [5], "category": ["a", "b"]}, "must have the same number of values"),
        ({"start": 0, "end": 5}, "must be a table of start and end"),
        ({"start": [[0]], "end": [[5]]}, "must have the same number of values"),
        ([{"start": 1}, {"end": 2}], "must be a table of start and end"),
    ],
)
def test_tables_that_do_not_fit_are_named(file, table, message):
    file.with_suffix(".json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=message):
        recognize(file)


def test_files_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"x.h5 cannot be read as HDF5 with a data set 'image'"):
        recognize(path)
    with h5py.File(path, "w") as file:
        file["other"] = IMAGES
    with pytest.raises(InputError, match="cannot be read as HDF5 with a data set 'image'"):
        recognize(path)
    write(path, IMAGES.astype(np.float32))
    with pytest.raises(InputError, match=r"'image' of .* is float32 \[30, 3, 64, 85\], but frames are uint8"):
        recognize(path)
    write(path)
    with pytest.raises(InputError, match=r"no table of where the videos of .*x.h5 begin: put x.json .* arrays start"):
        recognize(path)


def test_the_error_names_h5py_where_it_is_missing(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"HDF5 files need h5py: run pip install '\.\[video\]'"):
        recognize(file)
