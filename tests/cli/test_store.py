"""`python -m tgan_fast store` as its users run it."""

import json
import re

import av
import h5py
import numpy as np
import pytest
from PIL import Image
from support.stores import append

from tgan_fast.cli import store as command
from tgan_fast.data.clip_store import ClipStore, Header
from tgan_fast.errors import InputError
from tgan_fast.preparation.sources import recognize
from tgan_fast.preparation.store_writer import StoreWriter

VIDEOS = [np.random.default_rng(n).integers(256, size=(n, 64, 85, 3), dtype=np.uint8) for n in (20, 5, 40)]


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    writer = StoreWriter(folder, Header(64, 85, 3, 1, None, ("a",)))
    for number, frames in enumerate(VIDEOS):
        append(writer, tmp_path / "spool", f"a/{number}.avi", frames, label="a")
    writer.close()
    return folder


def run(*arguments):
    command.main([str(argument) for argument in arguments])


def test_verify_names_damaged_videos_and_ends_with_an_error(store, capsys):
    run("verify", store)
    assert capsys.readouterr().out == "undamaged: 3 videos of 65 frames\n"
    frames = bytearray((store / "frames.bin").read_bytes())
    frames[22 * 64 * 85 * 3] ^= 16
    (store / "frames.bin").write_bytes(frames)
    message = f"{store} has 1 damaged video among 3: restore it from a copy, or prepare the videos again"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run("verify", store)
    assert capsys.readouterr().out == "damaged: a/1.avi, frames 20 to 24\n"


def test_previews_show_windows_of_the_videos(store, tmp_path):
    out = tmp_path / "clips.npy"
    run("preview", store, "--out", out, "--grid", str(10**9))
    clips = np.load(out)
    assert clips.shape == (2, 16, 64, 64, 3)
    windows = [
        frames[start : start + 16, :, 10:74] for frames in (VIDEOS[0], VIDEOS[2]) for start in range(len(frames) - 15)
    ]
    assert all(any(np.array_equal(clip, window) for window in windows) for clip in clips)
    run("preview", store, "--out", tmp_path / "looped.npy", "--short-videos", "loop", "--frame-stride", "2", "--flip")
    assert np.load(tmp_path / "looped.npy").shape == (3, 16, 64, 64, 3)


def test_previews_are_files_to_look_at(store, tmp_path):
    run("preview", store, "--out", tmp_path / "clips.gif", "--grid", "1")
    image = Image.open(tmp_path / "clips.gif")
    assert (image.size, image.n_frames) == ((64, 64), 16)
    run("preview", store, "--out", tmp_path / "clips.mp4", "--fps", "8")
    with av.open(str(tmp_path / "clips.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 16
        assert container.streams.video[0].average_rate == 8


def test_an_export_has_the_authors_format_and_can_be_prepared_again(store, tmp_path):
    run("export", store, "--out", tmp_path / "train.h5")
    with h5py.File(tmp_path / "train.h5") as file:
        assert file["image"].shape == (65, 3, 64, 85)
        assert file["image"].chunks is None
        assert np.array_equal(file["image"][:], ClipStore(store).frames.transpose(0, 3, 1, 2))
    rows = json.loads((tmp_path / "train.json").read_text())
    assert [(row["start"], row["end"], row["category"], row["video"]) for row in rows] == [
        (0, 20, "a", "a/0.avi"),
        (20, 25, "a", "a/1.avi"),
        (25, 65, "a", "a/2.avi"),
    ]
    assert [video.length for video in recognize(tmp_path / "train.h5").videos] == [20, 5, 40]
    assert not list(tmp_path.glob(".*partial"))


def test_names_of_any_bytes_are_verified_and_exported(tmp_path, capsys):
    folder, name = tmp_path / "store\udcff", "a/\udcff\n\x1b[31m é.avi"
    writer = StoreWriter(folder, Header(64, 85, 3, 1, None, ("\udcff",)))
    append(writer, tmp_path / "spool", name, VIDEOS[0], label="\udcff")
    writer.close()
    out = tmp_path / "\udcff.h5"
    run("export", folder, "--out", out)
    run("preview", folder, "--out", tmp_path / "clips.gif")
    (row,) = json.loads(out.with_suffix(".json").read_bytes())
    assert (row["video"], row["category"]) == (name, "\udcff")
    (video,) = recognize(out).videos
    assert (video.name, video.label) == (name, "\udcff")
    (folder / "frames.bin").write_bytes(bytes(VIDEOS[0].nbytes))
    with pytest.raises(InputError, match=r"store\\xff has 1 damaged video among 1"):
        run("verify", folder)
    assert r"damaged: a/\xff\n\x1b[31m é.avi, frames 0 to 19" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nothing"], "nothing is not a clip store"),
        (["preview", "nothing", "--out", "x.gif"], "there is no nothing"),
        (["preview", "STORE", "--out", "x.jpg"], "cannot write x.jpg: its name must end in"),
        (["preview", "STORE", "--out", "x.gif", "--grid", "0"], "--grid is 0, but must be at least 1"),
        (["preview", "STORE", "--out", "x.gif", "--seed", "-1"], "--seed is -1, but must be at least 0"),
        (["preview", "STORE", "--out", "x.gif", "--seed", str(10**20)], "--seed is 10+, but must be at most"),
        (["preview", "STORE", "--out", "x.gif", "--fps", "51"], "fps is 51, but must be 1 to 50 for .gif"),
        (["preview", "STORE", "--out", "x.gif", "--frame-stride", "0"], "--frame-stride is 0, but must be"),
        (
            ["preview", "STORE", "--out", "x.gif", "--frame-stride", str(10**20)],
            "none of the 3 videos",
        ),
        (["preview", "STORE", "--out", "/nowhere/x.gif"], "cannot write /nowhere/x.gif: No such file"),
        (["preview", "STORE", "--out", "x.gif", "--flop"], "there is no option --flop; did you mean --flip"),
        (["export", "STORE", "--out", "/nowhere/x.h5"], "cannot write /nowhere/x.h5"),
        (["export", "STORE", "--out", "x.json"], r"x.json is the name of the table: choose one that ends in .h5"),
    ],
)
def test_bad_input_is_one_sentence(store, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        run(*[store if argument == "STORE" else argument for argument in arguments])
    assert "\n" not in str(caught.value)
