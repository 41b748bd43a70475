"""Writing clip stores: appending, crashes at any moment, a full disk, and other folders or formats."""

import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.full_disk import largest_file
from support.stores import HEADER, append, entry_of, video_of

from tgan_fast.data import read_videos
from tgan_fast.data.clip_store import ClipStore
from tgan_fast.errors import InputError
from tgan_fast.preparation.store_writer import StoreWriter


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_appending_later_gives_the_store_that_one_writer_gives(tmp_path, store, videos):
    whole = content_of(store)
    folder = tmp_path / "other"
    for name, frames in videos.items():
        writer = StoreWriter(folder, HEADER)
        append(writer, tmp_path / "spool", name, frames, label="Bowling" if name.startswith("b") else "Archery")
        writer.close()
    assert content_of(folder) == whole


def test_what_is_not_committed_is_not_part_of_the_store(tmp_path, store):
    writer = StoreWriter(store, HEADER)
    append(writer, tmp_path / "spool", "d", video_of(3, 0))
    assert len(ClipStore(store).entries) == 3
    writer.commit()
    assert len(ClipStore(store).entries) == 4
    assert not list(ClipStore(store).damaged())
    writer.close()


def test_an_index_that_ends_anywhere_is_continued_from_its_last_whole_line(tmp_path, store, videos):
    whole = content_of(store)
    lines = whole["index.jsonl"].splitlines(keepends=True)
    second = len(b"".join(lines[:3]))
    name, frames = list(videos.items())[-1]
    for end in (second, second + 1, second + len(lines[3]) // 2, len(whole["index.jsonl"]) - 1):
        (store / "index.jsonl").write_bytes(whole["index.jsonl"][:end])
        writer = StoreWriter(store, HEADER)
        assert list(writer.entries) == list(videos)[:2]
        append(writer, tmp_path / "spool", name, frames)
        writer.close()
        assert content_of(store) == whole


WRITES_FOREVER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from support.full_disk import largest_file
from support.stores import HEADER, append, entry_of, video_of
from tgan_fast.preparation.store_writer import StoreWriter
from tgan_fast.preparation import store_writer as writer
writer._COMMIT_SECONDS = 0.0
folder = Path({folder!r})
store = StoreWriter(folder, HEADER)
print("begun", flush=True)
number = len(store.entries)
while True:
    append(store, folder.parent / "spool", str(number), video_of(1 + number % 40, number))
    number += 1
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_whole_store_that_can_be_continued(tmp_path):
    folder, counts = tmp_path / "store", [0]
    script = WRITES_FOREVER.format(paths=sys.path, folder=str(folder))
    for seconds in (0.05, 0.2, 0.4, 0.1):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = ClipStore(folder)
        assert not list(store.damaged())
        assert [entry.video for entry in store.entries] == [str(number) for number in range(len(store.entries))]
        for number, entry in enumerate(store.entries):
            frames = store.frames[entry.start : entry.start + entry.length]
            assert np.array_equal(frames, video_of(1 + number % 40, number))
        counts.append(len(store.entries))
    assert all(before < after for before, after in itertools.pairwise(counts))


def test_a_full_disk_takes_nothing_of_a_video_and_leaves_what_was_stored(tmp_path, store):
    before = content_of(store)
    writer = StoreWriter(store, HEADER)
    frames, spool = video_of(40, 1), tmp_path / "spool"
    spool.write_bytes(frames)
    with pytest.raises(OSError, match="File too large"), largest_file(len(before["frames.bin"]) + 1000):
        append_from(writer, spool, frames)
    writer.close()
    assert content_of(store) == before


def append_from(writer, spool, frames):
    descriptor = os.open(spool, os.O_RDONLY)
    try:
        writer.append(entry_of("large", frames), descriptor)
    finally:
        os.close(descriptor)


def test_a_disk_that_is_full_when_the_index_is_written_leaves_the_older_store(tmp_path, store):
    before = content_of(store)
    writer = StoreWriter(store, HEADER)
    for number in range(100):
        append(writer, tmp_path / "spool", f"{number}", video_of(1, number))
    for save in (writer.commit, writer.close):
        with pytest.raises(OSError, match="File too large"), largest_file(len(before["index.jsonl"]) + 1000):
            save()
    assert (store / "index.jsonl").read_bytes() == before["index.jsonl"]
    assert not list(ClipStore(store).damaged())


def test_classes_keep_their_numbers_and_new_ones_come_after_them(tmp_path, store, videos):
    writer = StoreWriter(store, replace(HEADER, classes=("Archery", "Aaa", "Zzz")))
    assert writer.header.classes == ("Archery", "Bowling", "Aaa", "Zzz")
    append(writer, tmp_path / "spool", "new", video_of(2, 0), label="Aaa")
    writer.close()
    opened = ClipStore(store)
    assert read_videos(store).labels.tolist() == [0, 1, 0, 2]
    assert not list(opened.damaged())
    assert np.array_equal(opened.frames[:23], np.concatenate(list(videos.values())))


@pytest.mark.parametrize(
    ("changes", "described"),
    [
        ({"height": 7}, "frames of 7×8×3"),
        ({"channels": 1}, "frames of 6×8×1"),
        ({"stride": 2}, "frames of 6×8×3, stride 2"),
        ({"fps": 12.5}, "frames of 6×8×3, 12.5 per second"),
    ],
)
def test_frames_of_another_size_or_rate_are_refused(store, changes, described):
    before = content_of(store)
    with pytest.raises(InputError, match=f"has frames of 6×8×3, not {described}.*: choose another folder"):
        StoreWriter(store, replace(HEADER, **changes))
    assert content_of(store) == before


def test_only_one_writes_at_a_time(store):
    writer = StoreWriter(store, HEADER)
    with pytest.raises(InputError, match=r"another process is writing to .*store: wait for it, or end it"):
        StoreWriter(store, HEADER)
    writer.close()
    StoreWriter(store, HEADER).close()


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(InputError, match=r"holds other files, such as photo.jpg: choose another folder"):
        StoreWriter(tmp_path, HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    with pytest.raises(InputError, match=r"photo.jpg is a file: choose a folder"):
        StoreWriter(tmp_path / "photo.jpg", HEADER)
    with pytest.raises(InputError, match="cannot write to /proc/store"):
        StoreWriter(type(tmp_path)("/proc/store"), HEADER)


def test_a_damaged_store_is_not_continued(store):
    path = store / "frames.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"frames.bin is shorter than its index says"):
        StoreWriter(store, HEADER)


def test_too_few_frames_are_a_mistake_of_the_caller(tmp_path, store):
    writer = StoreWriter(store, HEADER)
    frames = video_of(2, 0)
    (tmp_path / "spool").write_bytes(frames.tobytes()[:-1])
    with pytest.raises(ValueError, match="fewer frames than the entry says"):
        append_from(writer, tmp_path / "spool", frames)
    writer.close()
    assert len(ClipStore(store).entries) == 3
