"""The benchmark of the data measures what it says; the figures are their own business."""

import json

import pytest
import torch

from benchmarks import bench_data as bench
from benchmarks import harness


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results go, of a machine that copies a byte a second."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "copy_bandwidth", lambda device: 1.0)
    monkeypatch.setattr(bench, "BATCH", 2)
    return tmp_path


@pytest.fixture
def datasets():
    return bench.make_datasets(bench.SMOKE)


def test_what_runs_writes_what_was_measured(results, monkeypatch, capsys):
    monkeypatch.setitem(bench.SCALES, "cpu", bench.SMOKE)
    monkeypatch.setattr(harness, "input_set_count", lambda nbytes, device: 2)
    bench.main("cpu")
    (path,) = results.iterdir()
    section = json.loads(path.read_text())["sections"]["data"]
    assert [row["batch"] for row in section["writing"]] == [
        "windows of frames",
        "windows of digits",
        "clips cut out of frames",
        "clips of digits, one by one",
        "windows of frames again",
    ]
    for row in section["writing"] + section["reading"]:
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
        assert row["clips_per_second"] == pytest.approx(2 / row["seconds"], rel=1e-3)
    pixels = 2 * 16 * 64 * 64
    nbytes = {"frames": pixels * (3 + 12), "two digits": pixels * (2 + 12), "whole clips": pixels * (3 + 12)}
    for row in section["reading"]:
        assert row["share_of_copy"] == pytest.approx(nbytes[row["from"]] / row["seconds"], rel=1e-3)
    assert {row["from"] for row in section["reading"]} == nbytes.keys()
    for row in section["feeds"]:
        assert 0 < row["slowest_clips_per_second"] <= row["clips_per_second"]
        assert row["seconds_an_iteration"] is row["seconds_an_iteration_without"] is None
    printed = capsys.readouterr().out
    assert bench.NOT_MEASURED in printed
    assert printed.count("digits, drawn") == 1


def test_a_smoke_run_writes_nothing(results):
    bench.main("cpu", smoke=True)
    assert not list(results.iterdir())


def test_other_videos_are_not_timed(results, datasets):
    found = bench.readings(*datasets, "cpu", 1)
    bench.check_readings(found)
    wrong = {"indexing": lambda frames, windows: bench.read_windows(frames, windows.flip(0), channels=3)}
    with pytest.raises(SystemExit, match="indexing reads other videos from frames: nothing is timed"):
        bench.check_readings([found[0]._replace(contenders=wrong)])


def test_feeds_of_other_videos_are_not_timed(results, datasets):
    feeds = bench.make_feeds(*datasets, "cpu")
    bench.check_feeds(feeds)
    mixed = {"frames": feeds["frames, resident"], "digits": feeds["digits, drawn"]}
    with pytest.raises(SystemExit, match="frames and digits feed other videos: nothing is timed"):
        bench.check_feeds(mixed)


def test_a_batch_is_read_and_followed_by_the_work_as_often_as_asked_for(results):
    seen = []
    ahead = bench.batches_ahead(max(bench.WORKERS.values()))

    def read(batch):
        seen.append(batch)
        return torch.empty(0)

    assert bench.seconds_a_batch(read, iter(range(100)), 5, lambda: seen.append("work")) > 0
    assert seen == [step for k in range(ahead + 5) for step in (k, "work")]


@pytest.mark.gpu
def test_the_work_keeps_a_gpu_busy_for_about_a_step(results):
    work = bench.busy_work("cuda")
    seconds = bench.seconds_a_batch(lambda batch: torch.empty(0, device="cuda"), iter(range(100)), 20, work)
    assert bench.STEP_SECONDS / 3 < seconds < 3 * bench.STEP_SECONDS


@pytest.mark.gpu
def test_on_a_gpu_iterations_are_timed_with_a_feed_and_without(results, datasets):
    feeds = bench.make_feeds(*datasets, "cuda")
    bench.check_feeds(feeds)
    for row in bench.time_feeds(feeds, "cuda", bench.SMOKE):
        assert row["seconds_an_iteration"] > 0
        assert row["seconds_an_iteration_without"] > 0
