"""`python -m tgan_fast prepare` as its users run it."""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from support import commands
from support.commands import finish
from support.encoding import encode, moving_picture

from tgan_fast.cli import prepare as command
from tgan_fast.cli import train as train_command
from tgan_fast.data.clip_store import ClipStore
from tgan_fast.errors import InputError

LONG = 2000


def start(*arguments, cwd=None, **variables):
    return commands.start("prepare", *arguments, folder=cwd, environment=variables)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_videos(root, count, length=20):
    for number in range(count):
        path = root / ("cat", "dog")[number % 2] / f"{number:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, moving_picture(length, 72, 96, number))
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("source") / "videos", 40)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Return a video that takes some time to prepare."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    frames = np.tile(moving_picture(40, 192, 256), (LONG // 40, 1, 1, 1))
    return encode(path, frames, options={"preset": "ultrafast"})


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call the command line's main function in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command.main([str(argument) for argument in arguments])


def test_videos_become_a_store_that_training_takes(run, source, tmp_path, monkeypatch, capsys):
    run(source, "store", "--workers", "2")
    out, err = capsys.readouterr()
    first, space, stored, train = out.splitlines()
    assert first == "a folder: 40 video files; classes: 2"
    assert re.fullmatch(r"needs about [\d.]+ MB in store, [\d.]+ MB more while it runs; [\d,.]+ GB are free", space)
    assert stored == "40 videos of 800 frames stored"
    assert train == "train with: python -m tgan_fast.train --data store"
    assert re.search(r"store: 100%.*\[.*B/s, frames=800, skipped=0, videos=40\]", err)
    needed = float(re.search(r"about ([\d.]+) MB", space)[1])
    assert abs(needed - 800 * 64 * 64 * 3 / 1e6) < 0.2 * needed

    options = ["--preset", "tiny", "--width", "0.03125", "--latent-dim", "4", "--batch-size", "2", "--steps", "2"]
    options += ["--crop", "random", "--flip", "--device", "cpu", "--out", "run"]
    train_command.main([*train.split()[5:], *options])
    err = capsys.readouterr().err
    assert f"{tmp_path / 'store'}: videos: 40; frames: 800; classes: 2\n" in err
    assert "40 videos live in host memory: 0.0 GB of frames" in err
    assert (tmp_path / "run" / "loss.png").exists()
    # From anywhere: the run knows where its data is.
    monkeypatch.chdir("/")
    train_command.main(["--resume", str(tmp_path / "run"), "--steps", "3"])


@pytest.mark.slow
def test_after_kill_9_at_random_moments_a_rerun_resumes_to_the_same_store(run, source, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(source, whole, "--workers", "1")
    delay = random.SystemRandom()
    for _ in range(3):
        process = start(source, killed, "--workers", "2")
        while not (killed / "skipped.jsonl").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay.uniform(0, 1.5))
        process.kill()
        finish(process)
        if "\n" in (killed / "index.jsonl").read_text().partition("\n")[2]:
            assert not list(ClipStore(killed).damaged())
    run(source, killed, "--workers", "2")
    assert content_of(killed) == content_of(whole)


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_a_rerun_resumes(run, long, tmp_path):
    process = start(long, "store", cwd=tmp_path)
    wait_for_decoding(process, tmp_path / "store")
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130, err
    assert out.splitlines()[-1] == "interrupted; rerun to resume"
    run(long, "store")
    assert len(ClipStore(tmp_path / "store").frames) == LONG


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(long, tmp_path):
    process = start(long, "store", cwd=tmp_path)
    wait_for_decoding(process, tmp_path / "store")
    children = descendants(process.pid)
    # At least the server of forks and the worker.
    assert len(children) >= 2
    process.kill()
    finish(process)
    deadline = time.monotonic() + 60
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_decoding(process, store):
    while not (store / ".spools" / "0").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def descendants(pid):
    """Return the processes that have `pid` among their ancestors."""
    found, parents = [], {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    for child in parents:
        ancestor = child
        while ancestor in parents and ancestor != pid:
            ancestor = parents[ancestor]
        if ancestor == pid and child != pid:
            found.append(child)
    return found


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_more_than_one_in_twenty_that_fail_end_with_an_error_after_all_is_done(run, source, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(source, mixed)
    for number in range(2):
        (mixed / "cat" / f"broken{number}.mp4").write_text("This is a diary.\n" * 100)
    run(mixed, "store", "--workers", "2")
    assert "2 could not be read, 0 too short: store/skipped.jsonl says which" in capsys.readouterr().out
    (mixed / "cat" / "broken3.mp4").write_bytes(b"")
    reason = "3 of 43 videos could not be read, more than 5%: store/skipped.jsonl says why; the others are stored"
    with pytest.raises(InputError, match=f"^{reason}$"):
        run(mixed, "store", "--workers", "2")
    assert "0 videos of 0 frames stored, 40 stored before" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "store" / "skipped.jsonl").read_text().splitlines()]
    assert [row["video"] for row in rows] == ["cat/broken0.mp4", "cat/broken1.mp4", "cat/broken3.mp4"]


def test_the_authors_columns_contain_the_square_that_training_takes(run, tmp_path):
    (tmp_path / "videos").mkdir()
    encode(tmp_path / "videos" / "v_Archery_g01_c01.avi", moving_picture(17, 240, 320), codec="mpeg4")
    run("videos", "wide", "--columns", "85", "--workers", "1")
    run("videos", "square", "--workers", "1")
    wide, square = ClipStore(tmp_path / "wide"), ClipStore(tmp_path / "square")
    assert wide.frames.shape == (17, 64, 85, 3)
    assert np.array_equal(wide.frames[:, :, 10:74], square.frames)


def test_gray_arrays_make_a_gray_store_and_fit_a_colored_one(run, tmp_path):
    clips = np.random.default_rng(0).integers(256, size=(3, 20, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", clips.swapaxes(0, 1))
    np.save(tmp_path / "part.npy", clips.swapaxes(0, 1))
    (tmp_path / "videos").mkdir()
    encode(tmp_path / "videos" / "1.mp4", moving_picture(5, 64, 64))
    run("mnist_test_seq.npy", "gray", "--workers", "1")
    assert np.array_equal(ClipStore(tmp_path / "gray").frames, clips.reshape(60, 64, 64, 1))
    run("part.npy", "part", "--workers", "1", "--axes", "tnhw")
    assert np.array_equal(ClipStore(tmp_path / "part").frames, clips.reshape(60, 64, 64, 1))
    run("videos", "color", "--workers", "1")
    run("mnist_test_seq.npy", "color", "--workers", "1")
    color = ClipStore(tmp_path / "color")
    assert np.array_equal(color.frames[5:], clips.reshape(60, 64, 64, 1).repeat(3, -1))
    with pytest.raises(InputError, match="gray has gray frames, but the source may have colors"):
        run("videos", "gray", "--workers", "1")


# Names of files and output in ASCII; names in UTF-8 and output in Latin-1.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN_1_OUTPUT = {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"}


@pytest.mark.slow
def test_names_of_any_bytes_are_stored_and_printed_alike_in_every_locale(source, tmp_path):
    content = (source / "cat" / "000.mp4").read_bytes()
    names = [
        b"d\xffg/\xff\n\x1b[31m.mp4",
        "日本/é\u0301\u202e.mp4".encode(),
        b"d\xffg/'\"$(x).mp4",
        b"d\xffg/cut\xff.mp4",
    ]
    for name in names:
        path = tmp_path / "source" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[:500] if b"cut" in name else content)
    stores = []
    for number, variables in enumerate((ASCII, LATIN_1_OUTPUT)):
        store = os.fsdecode(b"st\xff\n%d" % number)
        code, out, err = finish(start("source", store, "--workers", "1", cwd=tmp_path, **variables))
        assert code == 2, err
        assert "Traceback" not in out + err
        assert out.splitlines()[0] == "a folder: 4 video files; classes: 2"
        assert out.splitlines()[2] == "3 videos of 60 frames stored"
        assert f"st\\xff\\n{number}/skipped.jsonl says why" in err.splitlines()[-1]
        stores.append(content_of(tmp_path / store))
    assert stores[0] == stores[1]
    entries = ClipStore(tmp_path / store).entries
    assert sorted(os.fsencode(entry.video) for entry in entries) == sorted(names[:3])
    assert {os.fsencode(entry.label) for entry in entries} == {b"d\xffg", "日本".encode()}
    (row,) = stores[0]["skipped.jsonl"].decode().splitlines()
    assert os.fsencode(json.loads(row)["video"]) == names[3]
    (tmp_path / "list.txt").write_bytes(b"\n".join(names[1:3]))
    options = ["--workers", "1", "--split", "list.txt"]
    code, out, err = finish(start("source", store, *options, cwd=tmp_path, **ASCII))
    assert code == 0, err
    assert "0 videos of 0 frames stored, 2 stored before" in out


def test_files_that_are_left_out_are_reported(run, source, tmp_path, capsys):
    shutil.copytree(source / "cat", tmp_path / "videos" / "cat")
    (tmp_path / "videos" / "stream.h264").write_bytes(b"\0")
    (tmp_path / "videos" / "other").mkdir()
    (tmp_path / "videos" / "other" / "more.zip").write_bytes(b"PK")
    np.save(tmp_path / "videos" / "other" / "clips.npy", np.zeros(3, np.uint8))
    run("videos", "store", "--workers", "1")
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["a folder: 21 video files; classes: 1", "only the videos are prepared, not 1 .npy"]
    assert out[3:6] == [
        "20 videos of 400 frames stored",
        "1 could not be read, 0 too short: store/skipped.jsonl says which",
        "1 other file left out: store/skipped.jsonl says which, and why",
    ]
    rows = [json.loads(line) for line in (tmp_path / "store" / "skipped.jsonl").read_text().splitlines()]
    assert [(row["video"], row["failed"]) for row in rows] == [("other/more.zip", False), ("stream.h264", True)]
    with pytest.raises(InputError, match=r"stream.h264: a raw stream does not tell .*; leave out --strict to continue"):
        run("videos", "strict", "--workers", "1", "--strict")


def test_too_small_a_disk_is_reported_before_anything_is_written(run, source, tmp_path):
    with pytest.raises(InputError, match=r"store needs about \d+,\d+\.\d GB, but only .* GB are free: make room, or"):
        run(source, "store", "--size", 200_000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "store"], "there is no nothing"),
        (["empty", "store"], "no videos in empty: looked at 0 files for videos"),
        (["VIDEOS", "store", "--size", "0"], "--size is 0, but must be at least 1"),
        (["VIDEOS", "store", "--fps", "-1"], "--fps is -1.0, but must be more than 0"),
        (["VIDEOS", "store", "--stride", "0"], "--stride is 0, but must be at least 1"),
        (["VIDEOS", "store", "--fps", "inf"], "--fps is inf, but must be more than 0 and at most 1,000,000"),
        (["VIDEOS", "store", "--fps", "nan"], "--fps is nan, but must be more than 0 and at most 1,000,000"),
        (
            ["VIDEOS", "store", "--size", "1" + "0" * 400],
            "--size is 10+, but must be at most 1,000,000",
        ),
        (
            ["VIDEOS", "store", "--axes", "nthw"],
            "--axes is the order of axes of arrays, but .* is a folder: 40 video files: leave",
        ),
        (["clips.npy", "store", "--axes", "nt"], "--axes is 'NT', but must list the axes"),
        (
            ["ambiguous.npy", "store"],
            "whose axes may be NTHW or TNHW .*: pass the right one to prepare or train, such as --axes NTHW",
        ),
        (["VIDEOS", "store", "--workers", "0"], "--workers is 0, but must be at least 1"),
        (["VIDEOS", "store", "--split", "empty/x.txt"], r"cannot read empty/x.txt: No such file"),
        (["VIDEOS", "store", "--sise", "64"], "there is no option --sise; did you mean --size"),
        (["VIDEOS", "other"], "other holds other files, such as notes.txt: choose another folder"),
        (["clips.npy", "store", "--fps", "8"], "images and arrays have no frame times, which --fps needs"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_written(run, source, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    np.save(tmp_path / "clips.npy", np.zeros((2, 20, 64, 64, 1), np.uint8))
    np.save(tmp_path / "ambiguous.npy", np.zeros((20, 30, 64, 64), np.uint8))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        run(*[source if argument == "VIDEOS" else argument for argument in arguments])
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
