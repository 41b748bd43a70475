"""The benchmark of the data measures what it claims; the figures are not checked."""

import pytest
import torch

from benchmarks import bench_data as bench
from benchmarks.result_files import NOT_MEASURED
from benchmarks.suite import Run, Suite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_videos_may_be_rounded_but_not_be_a_level_off(dtype):
    clips = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1)
    videos = ((2 * clips.movedim(-1, 1).double() - 255) / 255).to(dtype)
    bench.check_reads("case", {"rounded": lambda: videos}, clips)
    with pytest.raises(SystemExit, match=r"error: case: moved is off by .*: nothing is timed"):
        bench.check_reads("case", {"moved": lambda: videos + 2 / 255}, clips)


@pytest.mark.parametrize(("case", "name"), [(bench.READING, "read_windows"), (bench.FEEDING, "first_videos")])
def test_mirrored_videos_are_not_timed(case, name, monkeypatch):
    read = getattr(bench, name)
    monkeypatch.setattr(bench, name, lambda *args, **options: read(*args, **options).flip(-1))
    with pytest.raises(SystemExit, match=rf"error: {case}: .* is off by .*: nothing is timed"):
        Suite(Run("cpu", smoke=True)).record(bench.SECTION, case)


def test_goals_are_of_the_slower_windows_and_the_slower_resident_feed():
    beside = {bench.NO_FEED: 1.0, "frames, resident": 1.001, "digits, drawn": 1.009, "frames, prefetched": 5.0}
    rows = [{"part": bench.BESIDE, "contender": name, "ratio": ratio} for name, ratio in beside.items()]
    rows += [{"part": None, "contender": name, "seconds": 1e-3 * n} for n, name in enumerate(bench.WINDOWS, 3)]
    goals = bench.SECTION.goals([{"timings": rows}], "cuda")
    assert [(goal.measured, goal.verdict) for goal in goals] == [(0.75, "SHORT"), (1.009, "met")]
    assert [goal.verdict for goal in bench.SECTION.goals([], "cpu")] == [NOT_MEASURED]
