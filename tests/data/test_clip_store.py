"""Clip stores: everything written is read back, and damage is detected anywhere."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tgan_fast.data import read_videos
from tgan_fast.data.clip_store import ClipStore, line_of, read_index
from tgan_fast.errors import InputError


def test_what_was_written_is_read(store, videos):
    opened = ClipStore(store)
    assert [entry.video for entry in opened.entries] == list(videos)
    assert isinstance(opened.frames, np.memmap)
    assert not opened.frames.flags.writeable
    assert np.array_equal(opened.frames, np.concatenate(list(videos.values())))
    for entry, frames in zip(opened.entries, videos.values(), strict=True):
        assert np.array_equal(opened.frames[entry.start : entry.start + entry.length], frames)
    assert read_videos(store).labels.tolist() == [0, 1, 0]
    assert list(opened.damaged()) == []


def test_the_index_is_lines_of_json_that_anyone_can_read(store, videos):
    first, *lines = (store / "index.jsonl").read_text(encoding="utf-8").splitlines()
    header = json.loads(first)
    assert (header["format"], header["version"]) == ("tgan_fast clip store", 1)
    assert (header["height"], header["width"], header["classes"]) == (6, 8, ["Archery", "Bowling"])
    rows = [json.loads(line) for line in lines]
    assert [(row["video"], row["start"], row["length"]) for row in rows] == [
        ("a é.avi", 0, 5),
        ("b é.avi", 5, 1),
        ("c é.avi", 6, 17),
    ]
    assert "a é.avi" in lines[0]


def test_progress_counts_every_byte_that_verifying_reads(store):
    opened, counted = ClipStore(store), []
    assert list(opened.damaged(counted.append, workers=3)) == []
    assert sum(counted) == opened.frames.nbytes


def test_every_flipped_byte_of_the_frames_is_found_and_named(store):
    path = store / "frames.bin"
    whole = path.read_bytes()
    entries = ClipStore(store).entries
    for place in [0, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 20)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        (damaged,) = ClipStore(store).damaged()
        frame = place // (6 * 8 * 3)
        assert damaged == next(e for e in entries if e.start <= frame < e.start + e.length)


def test_every_flipped_byte_of_the_index_is_refused(store):
    path = store / "index.jsonl"
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"damaged|is not, or no longer|version"):
            ClipStore(store)


def test_the_fingerprint_is_that_of_the_videos_and_their_order(store, tmp_path):
    one = ClipStore(store)
    shutil.copytree(store, tmp_path / "copy")
    assert ClipStore(tmp_path / "copy").fingerprint == one.fingerprint
    lines = (store / "index.jsonl").read_bytes().splitlines(keepends=True)
    (store / "index.jsonl").write_bytes(b"".join(lines[:-1]))
    assert ClipStore(store).fingerprint != one.fingerprint


def test_a_last_line_that_was_not_finished_is_not_there(store):
    path = store / "index.jsonl"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        opened = ClipStore(store)
        assert len(opened.entries) == 2
        assert len(opened.frames) == 6


def test_a_path_that_is_no_store_raises_an_error_with_the_command_that_makes_one(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"is not a clip store: make one with python -m tgan_fast prepare SOURCE "):
            ClipStore(path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="is not a clip store"):
        ClipStore(file)


@pytest.mark.parametrize(
    "content", ["", "\n", "{}\n", "[]\n", "hello\n", "[" * 99999 + "\n", '{"format": "other", "version": 1}\n']
)
def test_another_file_of_that_name_is_no_index(tmp_path, content):
    (tmp_path / "index.jsonl").write_text(content)
    with pytest.raises(InputError, match="is not, or no longer, the index of a clip store"):
        read_index(tmp_path)


def test_a_store_of_a_newer_version_asks_for_a_newer_tgan_fast(store):
    path = store / "index.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(InputError, match="of version 2, but this tgan_fast reads version 1: install a newer tgan_fast"):
        ClipStore(store)


def test_lost_frames_are_detected_by_the_file_size(store):
    path = store / "frames.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"frames.bin has 3,311 bytes, but its index expects 3,312"):
        ClipStore(store)
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*frames.bin: No such file"):
        ClipStore(store)


@pytest.mark.parametrize(
    "changes",
    [{"length": 0}, {"length": "5"}, {"length": 5.0}, {"sha256": 3}, {"label": ["a"]}, {"video": {}}, {"start": None}],
    ids=str,
)
def test_lines_that_say_nothing_sensible_are_damaged_though_their_checksum_is_right(store, changes):
    index = read_index(store)
    entries = [replace(index.entries[0], **changes), *index.entries[1:]]
    (store / "index.jsonl").write_bytes(b"".join(map(line_of, [index.header, *entries])))
    with pytest.raises(InputError, match=r"line 2 of .*index.jsonl is damaged"):
        ClipStore(store)


@pytest.mark.parametrize("changes", [{"height": 0}, {"channels": -1}, {"width": "8"}, {"classes": ([],)}], ids=str)
def test_a_header_that_says_nothing_sensible_is_damaged(store, changes):
    index = read_index(store)
    header = replace(index.header, **changes)
    (store / "index.jsonl").write_bytes(b"".join(map(line_of, [header, *index.entries])))
    with pytest.raises(InputError, match=r"line 1 of .*index.jsonl is damaged"):
        ClipStore(store)


def test_a_lost_line_is_seen(store):
    path = store / "index.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(InputError, match=r"line 3 of .* is damaged"):
        ClipStore(store)


def test_a_store_without_videos_is_of_no_use(store):
    path = store / "index.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="has no videos yet"):
        ClipStore(store)


def test_videos_without_a_class_have_the_label_0(store):
    index = read_index(store)
    header, entries = replace(index.header, classes=()), [replace(entry, label=None) for entry in index.entries]
    (store / "index.jsonl").write_bytes(b"".join(map(line_of, [header, *entries])))
    assert read_videos(store).labels.tolist() == [0, 0, 0]
