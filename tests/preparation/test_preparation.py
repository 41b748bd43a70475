"""From real video files to a store: the same bytes for any number of processes and interruptions."""

import json
import os
import signal
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
from support.encoding import encode, moving_picture
from support.full_disk import largest_file

from tgan_fast.data import read_videos
from tgan_fast.data.clip_store import ClipStore
from tgan_fast.errors import InputError
from tgan_fast.preparation import estimated_frames, prepare, worker
from tgan_fast.preparation.decoding import FrameFormat, read_video
from tgan_fast.preparation.sources import Collection, SourceVideo, recognize

FRAME_FORMAT = FrameFormat(32, 40, 3)
LENGTHS = {"a/1.mp4": 40, "a/2.avi": 7, "b/3.mp4": 90, "b/4.avi": 16, "b/5.mp4": 1, "c/6.mp4": 33}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Six videos in three folders."""
    root = tmp_path_factory.mktemp("source")
    for seed, (name, length) in enumerate(LENGTHS.items()):
        (root / name).parent.mkdir(exist_ok=True)
        codec = "libx264" if name.endswith("mp4") else "mpeg4"
        encode(root / name, moving_picture(length, 48, 64, seed), codec=codec)
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Prepare the store of all videos in one go, by one process."""
    folder = tmp_path_factory.mktemp("stores") / "whole"
    result = prepare(recognize(source), folder, FRAME_FORMAT)
    assert (result.stored, result.known, result.skipped, result.finished) == (6, 0, [], True)
    return folder


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reasons_in(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def test_the_store_has_the_frames_of_every_video_in_order(source, whole):
    store = ClipStore(whole)
    assert {entry.video: entry.length for entry in store.entries} == LENGTHS
    assert [entry.label for entry in store.entries] == ["a", "a", "b", "b", "b", "c"]
    assert read_videos(whole).labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert not list(store.damaged())
    for entry in store.entries:
        frames = np.concatenate(list(read_video(source / entry.video, FRAME_FORMAT)))
        assert np.array_equal(store.frames[entry.start : entry.start + entry.length], frames)
        assert entry.source_bytes == (source / entry.video).stat().st_size
    assert set(content_of(whole)) == {"index.jsonl", "frames.bin", "skipped.jsonl"}


@pytest.mark.slow
def test_the_store_does_not_depend_on_how_many_processes_there_are(source, whole, tmp_path):
    result = prepare(recognize(source), tmp_path / "store", FRAME_FORMAT, workers=3)
    assert result.frames == sum(LENGTHS.values())
    assert content_of(tmp_path / "store") == content_of(whole)


@pytest.mark.slow
def test_a_stopped_preparation_resumes_to_the_same_store(source, whole, tmp_path, monkeypatch):
    # Each video is its own job.
    monkeypatch.setattr("tgan_fast.preparation.pipeline._JOB_VIDEOS", 1)
    stop, collection, folder = threading.Event(), recognize(source), tmp_path / "store"
    first = prepare(collection, folder, FRAME_FORMAT, stop=stop, progress=lambda result, nbytes: stop.set())
    assert not first.finished
    assert 1 <= first.stored < 6
    assert len(ClipStore(folder).entries) == first.stored
    second = prepare(collection, folder, FRAME_FORMAT)
    assert second.known == first.stored
    assert second.finished
    assert content_of(folder) == content_of(whole)


def test_progress_counts_all_bytes_in_the_end(source, tmp_path):
    told = []
    prepare(recognize(source), tmp_path / "store", FRAME_FORMAT, progress=lambda result, nbytes: told.append(nbytes))
    assert sum(told) == sum(path.stat().st_size for path in source.rglob("*.*"))


@pytest.mark.slow
def test_another_source_is_added_behind(source, whole, tmp_path):
    more = tmp_path / "more"
    (more / "aa").mkdir(parents=True)
    encode(more / "aa" / "7.mp4", moving_picture(5, 48, 64, 9))
    folder = tmp_path / "store"
    prepare(recognize(source), folder, FRAME_FORMAT)
    result = prepare(recognize(more), folder, FRAME_FORMAT)
    assert (result.stored, result.known) == (1, 0)
    store = ClipStore(folder)
    assert store.header.classes == ("a", "b", "c", "aa")
    assert read_videos(folder).labels.tolist() == [0, 0, 1, 1, 1, 2, 3]
    assert np.array_equal(store.frames[: sum(LENGTHS.values())], ClipStore(whole).frames)
    assert not list(store.damaged())


def test_a_video_that_has_changed_since_is_not_passed_over(tmp_path):
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "1.mp4"
    encode(path, moving_picture(5, 48, 64, 0))
    prepare(recognize(tmp_path / "source"), tmp_path / "store", FRAME_FORMAT)
    before = content_of(tmp_path / "store")
    encode(path, moving_picture(5, 48, 64, 1))
    with pytest.raises(InputError, match=r"1.mp4 has changed since it was stored in .*store: choose another"):
        prepare(recognize(tmp_path / "source"), tmp_path / "store", FRAME_FORMAT)
    assert content_of(tmp_path / "store") == before


@pytest.fixture
def damaged(source, tmp_path):
    """Copy the source and add three files that are no videos."""
    root = tmp_path / "damaged"
    root.mkdir()
    for name in LENGTHS:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((source / name).read_bytes())
    (root / "a" / "0 empty.mp4").write_bytes(b"")
    (root / "a" / "9 text.avi").write_text("This is a diary.\n" * 100)
    (root / "c" / "8 cut.mp4").write_bytes((source / "c/6.mp4").read_bytes()[:500])
    return root


def test_videos_that_cannot_be_read_are_named_and_the_rest_is_done(damaged, whole, tmp_path):
    result = prepare(recognize(damaged), tmp_path / "store", FRAME_FORMAT)
    assert (result.stored, result.failed, result.finished) == (6, 3, True)
    assert (tmp_path / "store" / "frames.bin").read_bytes() == (whole / "frames.bin").read_bytes()
    rows = reasons_in(tmp_path / "store")
    assert [(row["video"], row["failed"]) for row in rows] == [
        ("a/0 empty.mp4", True),
        ("a/9 text.avi", True),
        ("c/8 cut.mp4", True),
    ]
    assert rows[0]["reason"] == "it is empty"
    assert all(row["reason"] for row in rows)


def test_strict_stops_at_the_first_one_and_keeps_what_was_stored(damaged, tmp_path):
    (damaged / "a" / "0 empty.mp4").unlink()
    with pytest.raises(InputError, match=r"a/9 text.avi: .*; leave out --strict to continue without it"):
        prepare(recognize(damaged), tmp_path / "store", FRAME_FORMAT, strict=True)
    assert [entry.video for entry in ClipStore(tmp_path / "store").entries] == ["a/1.mp4", "a/2.avi"]


def test_too_short_videos_are_left_out_and_are_no_failures(source, tmp_path):
    result = prepare(recognize(source), tmp_path / "store", FRAME_FORMAT, fewest=16, strict=True)
    assert (result.stored, result.failed) == (4, 0)
    assert reasons_in(tmp_path / "store") == [
        {"video": "a/2.avi", "reason": "it has 7 frames, fewer than 16", "failed": False},
        {"video": "b/5.mp4", "reason": "it has 1 frame, fewer than 16", "failed": False},
    ]
    store = ClipStore(tmp_path / "store")
    assert not list(store.damaged())
    assert len(store.frames) == 40 + 90 + 16 + 33


@dataclass(frozen=True)
class Deadly(SourceVideo):
    """A video whose decoder crashes, as a segmentation fault does."""

    def read(self, frame_format, threads=1):
        os.kill(os.getpid(), signal.SIGKILL)

    def count(self, frame_format):
        return 1

    def digest(self):
        return ""


@pytest.mark.slow
def test_a_decoder_that_crashes_costs_only_its_own_video(source, whole, tmp_path):
    collection = recognize(source)
    videos = list(collection.videos)
    videos.insert(2, Deadly("a/deadly.mp4", 1, "a", None, None))
    told = []
    result = prepare(
        replace(collection, videos=tuple(videos)),
        tmp_path / "store",
        FRAME_FORMAT,
        workers=2,
        progress=lambda result, nbytes: told.append(nbytes),
    )
    assert (result.stored, result.failed) == (6, 1)
    assert sum(told) == sum(video.nbytes for video in videos)
    assert reasons_in(tmp_path / "store") == [
        {"video": "a/deadly.mp4", "reason": "the decoder crashed", "failed": True}
    ]
    assert (tmp_path / "store" / "index.jsonl").read_bytes() == (whole / "index.jsonl").read_bytes()
    assert (tmp_path / "store" / "frames.bin").read_bytes() == (whole / "frames.bin").read_bytes()


@dataclass(frozen=True)
class Strange(SourceVideo):
    """A video on which the decoder raises an unexpected error."""

    def read(self, frame_format, threads=1):
        yield np.zeros((5, *frame_format.shape), np.uint8)
        raise OSError(5, "Input/output error")

    def count(self, frame_format):
        return 1

    def digest(self):
        return ""


def test_what_nobody_foresaw_costs_only_its_own_video(source, tmp_path):
    one, *_, last = recognize(source).videos
    videos = one, Strange("a/strange.mp4", 1, "a", None, None), last
    result = prepare(Collection("", videos, ("a", "c"), 3), tmp_path / "store", FRAME_FORMAT)
    assert (result.stored, result.failed) == (2, 1)
    assert reasons_in(tmp_path / "store") == [
        {"video": "a/strange.mp4", "reason": "OSError: [Errno 5] Input/output error", "failed": True}
    ]
    assert not list(ClipStore(tmp_path / "store").damaged())


@pytest.mark.usefixtures("whole")  # The fork server, which keeps running, must have begun without a limit.
def test_a_full_disk_keeps_what_was_stored_and_says_how_to_resume(source, tmp_path, monkeypatch):
    monkeypatch.setattr("tgan_fast.preparation.pipeline._JOB_VIDEOS", 1)
    message = r"cannot write to .*store: File too large; stored videos are kept: rerun to resume"
    with pytest.raises(InputError, match=message), largest_file(60 * 32 * 40 * 3):
        prepare(recognize(source), tmp_path / "store", FRAME_FORMAT)
    assert [entry.video for entry in ClipStore(tmp_path / "store").entries] == ["a/1.mp4", "a/2.avi"]
    assert not (tmp_path / "store" / ".spools").exists()


def test_a_full_disk_is_not_taken_for_a_damaged_video(source, tmp_path):
    job = worker.Job(recognize(source).videos[:1], {}, FRAME_FORMAT, 1, 1, tmp_path / "spool")
    with pytest.raises(worker.SpoolError, match="File too large"), largest_file(1000):
        worker.run_job(job)


@pytest.mark.parametrize(
    "frame_format", [FRAME_FORMAT, replace(FRAME_FORMAT, stride=3), replace(FRAME_FORMAT, fps=10.0)], ids=str
)
def test_the_estimate_is_within_a_fifth(source, frame_format):
    stored = sum(len(frames) for name in LENGTHS for frames in read_video(source / name, frame_format))
    estimate = estimated_frames(recognize(source).videos, frame_format)
    assert abs(estimate.frames - stored) <= 0.2 * stored
    longest = sum(map(len, read_video(source / "b/3.mp4", frame_format)))
    assert abs(estimate.longest - longest) <= 1


@dataclass(frozen=True)
class Telling(SourceVideo):
    """A video that reports this number of frames, and records each request."""

    frames: int
    asked: list

    def read(self, frame_format, threads=1):
        raise NotImplementedError

    def count(self, frame_format):
        self.asked.append(self.name)
        return self.frames

    digest = read


def telling(sizes, counts):
    asked = []
    pairs = zip(sizes, counts, strict=True)
    return [Telling(str(n), size, None, None, None, count, asked) for n, (size, count) in enumerate(pairs)], asked


def test_the_estimate_of_many_videos_looks_at_some_of_them():
    choices = np.random.default_rng(0)
    sizes = choices.lognormal(10, 1, 5000).astype(int)
    counts = (sizes * choices.uniform(0.003, 0.03, 5000)).astype(int) + 1
    videos, asked = telling(sizes.tolist(), counts.tolist())
    assert abs(estimated_frames(videos, FRAME_FORMAT).frames - counts.sum()) <= 0.2 * counts.sum()
    assert len(asked) < 300


def test_a_damaged_header_does_not_make_the_estimate_absurd():
    videos, _ = telling([1000] * 20, [100] * 19 + [10**12])
    assert estimated_frames(videos, FRAME_FORMAT) == (2000, 100)


def test_the_estimate_of_nothing_is_nothing():
    assert estimated_frames([], FRAME_FORMAT) == (0, 0)
    videos, _ = telling([0, 0], [0, 0])
    assert estimated_frames(videos, FRAME_FORMAT) == (0, 0)
