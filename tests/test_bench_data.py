"""The benchmark of the data measures what it says; the figures are their own business."""

import pytest
import torch

from benchmarks import bench_data as bench
from benchmarks.results import NOT_MEASURED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_videos_that_differ_by_a_level_are_not_timed(dtype):
    levels = torch.arange(256, dtype=torch.float64)
    exact = (2 * levels - 255) / 255
    bench.check_videos("case", {"rounded": exact.to(dtype)}, exact)
    with pytest.raises(SystemExit, match=r"error: case: moved is off by .*: nothing is timed"):
        bench.check_videos("case", {"moved": exact.roll(1).to(dtype)}, exact)


def test_goals_judge_the_slower_windows_and_the_slower_resident_feed():
    writing = {"windows of frames": 20.0, "windows of digits": 0.9}
    beside = {bench.NO_FEED: 1.0, "frames, resident": 1.001, "digits, drawn": 1.009, "digits, prefetched": 5.0}
    rows = [{"part": None, "contender": name, "of_needed": share} for name, share in writing.items()]
    records = [{"case": bench.WRITING, "timings": rows}]
    rows = [{"part": bench.BESIDE, "contender": name, "ratio": ratio} for name, ratio in beside.items()]
    records.append({"case": bench.FEEDING, "timings": rows})
    goals = bench.SECTION.goals(records, "cuda")
    assert [(goal.measured, goal.verdict) for goal in goals] == [(0.9, "SHORT"), (1.009, "met")]
    assert [goal.verdict for goal in bench.SECTION.goals([], "cpu")] == [NOT_MEASURED]
