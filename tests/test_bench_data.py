"""The benchmark of the data measures what it says; the figures are their own business."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import bench_data as bench
from benchmarks import results, suite
from benchmarks.results import NOT_MEASURED
from benchmarks.suite import Label, Run, Suite

BATCH = 2
SMOKE = Run("cpu", smoke=True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where results go, of a machine that copies a byte a second; batches are small."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    monkeypatch.setattr(bench, "BATCH", BATCH)
    return tmp_path


@pytest.fixture(scope="module")
def datasets():
    return bench.make_datasets(bench.scale_of(SMOKE).frames)


def record_of(case, path=None):
    return Suite(Run("cpu", smoke=True), path).record(bench.SECTION, case)


def labels_of(rows):
    return [Label(row["contender"], row["part"]) for row in rows]


@pytest.mark.parametrize("case", bench.SECTION.cases(SMOKE))
def test_what_runs_is_what_was_announced_and_says_clips_a_second(case, folder):
    path = folder / "results.json"
    record = record_of(case, path)
    rows = record["timings"]
    assert labels_of(rows) == bench.SECTION.labels(SMOKE, case)
    for row in rows:
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
        assert row["clips_per_second"] == pytest.approx(BATCH / row["seconds"], rel=1e-3)
        # A step of 3 ms reads one batch.
        assert row["of_needed"] == pytest.approx(3e-3 / row["seconds"], rel=1e-3)
    details = list(bench.SECTION.details(record))
    assert len(details) == len(rows)
    assert all("clips/s" in line and "× needed" in line for line in details)
    section = json.loads(path.read_text())["sections"]["data"]
    assert section["needed_clips_per_second"] == pytest.approx(BATCH / 3e-3, rel=1e-3)
    assert (section["batch"], section["dtype"], section["workers"]) == (BATCH, "torch.float32", 2)
    assert [case["case"] for case in section["cases"]] == [case]


def test_feeds_say_where_clips_live_and_how_slow_they_were():
    rows = {row["contender"]: row for row in record_of(bench.FEEDING)["timings"]}
    for row in rows.values():
        assert row["slowest_clips_per_second"] == pytest.approx(BATCH / max(row["rounds"]), rel=1e-3)
        assert row["slowest_clips_per_second"] <= row["clips_per_second"]
    assert "videos live on cpu" in rows["frames, resident"]["description"]
    assert "made ahead of time" in rows["digits, prefetched"]["description"]


@pytest.mark.parametrize("case", bench.READING)
def test_bytes_are_those_of_the_pixels_that_are_read_and_written(case, datasets):
    source = bench.READING[case]
    reading = bench.make_reading(source, datasets, "cpu", 1)
    (read,) = reading.contenders.values()
    frames, windows = reading.inputs[0]
    if source == "two digits":
        digits = [crop(frames, window) for clip in windows for layer in clip for window in layer]
        nbytes_read = sum(digit.nbytes for digit in digits)
    elif source == "frames":
        clips = np.empty((BATCH, 16, 64, 64, 3), np.uint8)
        datasets["frames"].cut(windows.numpy(), clips)
        nbytes_read = clips.nbytes
    else:
        nbytes_read = frames.nbytes
    assert reading.nbytes == nbytes_read + read(frames, windows).nbytes
    for row in record_of(case)["timings"]:
        assert row["bytes"] == row["floor_seconds"] == results.rounded(reading.nbytes)
        assert row["flops"] == 0


def crop(frames, window):
    frame, top, left, step = window.tolist()
    assert step == 1
    return frames[frame, top : top + 64, left : left + 64].contiguous()


def test_a_smoke_run_writes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_data", "--device", "cpu", "--smoke"])
    suite.main(bench.SECTION)
    assert not list(folder.iterdir())
    printed = capsys.readouterr().out
    assert "digits, drawn" in printed
    assert "needed: 667 clips/s" in printed


def test_other_videos_are_not_timed(datasets):
    reading = bench.make_reading("frames", datasets, "cpu", 1)
    bench.check_reading("frames", reading)
    wrong = {"indexing": lambda frames, windows: bench.read_windows(frames, windows.flip(0), channels=3)}
    with pytest.raises(SystemExit, match="indexing reads other videos from frames: nothing is timed"):
        bench.check_reading("frames", reading._replace(contenders=wrong))


def test_feeds_of_other_videos_are_not_timed(datasets):
    feeds = bench.make_feeds(datasets, "cpu")
    bench.check_feeds(feeds)
    mixed = {"frames": feeds["frames, resident"], "digits": feeds["digits, drawn"]}
    with pytest.raises(SystemExit, match="frames and digits feed other videos: nothing is timed"):
        bench.check_feeds(mixed)


def test_a_batch_is_read_and_followed_by_the_work_as_often_as_asked_for():
    seen = []
    ahead = bench.batches_ahead(max(bench.WORKERS.values()))

    def read(batch):
        seen.append(batch)
        return torch.empty(0)

    assert bench.seconds_a_batch(read, iter(range(100)), 5, lambda: seen.append("work")) > 0
    assert seen == [step for k in range(ahead + 5) for step in (k, "work")]


def records(slowest, ratio):
    """As the suite keeps them, of made-up figures."""
    writing = {"windows of frames": 20.0, "windows of digits": slowest, "clips of digits, one by one": 0.1}
    beside = {bench.NO_FEED: 1.0, "frames, resident": 1.001, "digits, drawn": ratio, "digits, prefetched": 5.0}
    return [
        {
            "case": bench.WRITING,
            "timings": [{"part": None, "contender": name, "of_needed": share} for name, share in writing.items()],
        },
        {
            "case": bench.FEEDING,
            "timings": [{"part": bench.BESIDE, "contender": name, "ratio": ratio} for name, ratio in beside.items()],
        },
    ]


def test_goals_judge_the_slower_windows_and_the_slower_resident_feed():
    def verdicts(records, device):
        return [goal.verdict for goal in bench.SECTION.goals(records, device)]

    assert verdicts(records(1.5, 1.009), "cuda") == ["met", "met"]
    assert verdicts(records(0.9, 1.02), "cuda") == ["SHORT", "SHORT"]
    assert verdicts(records(1.5, 1.009)[:1], "cuda") == ["met", NOT_MEASURED]
    assert verdicts(records(0.9, 1.0), "cpu") == ["SHORT"]
    assert verdicts([], "cuda") == [NOT_MEASURED, NOT_MEASURED]
    assert [goal.measured for goal in bench.SECTION.goals(records(1.5, 1.009), "cuda")] == [1.5, 1.009]


@pytest.mark.gpu
@pytest.mark.alone
def test_the_work_keeps_a_gpu_busy_for_about_a_step():
    work = bench.busy_work("cuda")
    seconds = bench.seconds_a_batch(lambda batch: torch.empty(0, device="cuda"), iter(range(100)), 20, work)
    assert bench.STEP_SECONDS / 3 < seconds < 3 * bench.STEP_SECONDS


@pytest.mark.gpu
@pytest.mark.parametrize("case", bench.SECTION.cases(SMOKE))
def test_on_a_gpu_all_that_was_announced_is_timed(case):
    run = Run("cuda", smoke=True)
    record = Suite(run).record(bench.SECTION, case)
    assert labels_of(record["timings"]) == bench.SECTION.labels(run, case)
    assert all(row["seconds"] > 0 for row in record["timings"])
