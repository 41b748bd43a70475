"""The benchmark of the way from videos to clips measures what it claims; the figures are not checked."""

import numpy as np
import pytest

from benchmarks import bench_videos as bench
from benchmarks.result_files import NOT_MEASURED
from benchmarks.suite import Run, Suite

SMOKE = Run("cpu", smoke=True)


@pytest.mark.parametrize("case", bench.DECODING)
def test_videos_have_the_size_motion_and_bits_of_ucf_101(case, tmp_path):
    codec, suffix = bench.DECODING[case]
    path = bench.encode(tmp_path / f"video{suffix}", 75, codec)
    frames = [frame.to_ndarray(format="gray").astype(int) for frame in bench.decoded(path)]
    assert np.shape(frames) == (75, 240, 320)
    assert abs(frames[-1] - frames[0]).mean() > 3
    assert 350 < 8 * path.stat().st_size / 3 / 1e3 < 650


@pytest.mark.parametrize("wrong", [lambda x: np.minimum(x, 250) + np.uint8(5), lambda x: x[::-1], lambda x: x[1:]])
def test_other_frames_are_not_timed(wrong, monkeypatch):
    decode = bench.DECODERS[bench.OURS]
    monkeypatch.setitem(bench.DECODERS, bench.OURS, lambda path: wrong(np.stack([*decode(path)])))
    with pytest.raises(SystemExit, match=r"error: .*: tgan_fast is off by .*: nothing is timed"):
        Suite(SMOKE).record(bench.SECTION, next(iter(bench.DECODING)))


def test_other_clips_are_not_timed(monkeypatch):
    monkeypatch.setattr(bench, "first_clips", lambda videos: bench.bench_data.first_clips(videos).flip(1))
    with pytest.raises(SystemExit, match=rf"error: {bench.CUTTING}: .* is off by .*: nothing is timed"):
        Suite(SMOKE).record(bench.SECTION, bench.CUTTING)


def test_goals_are_of_the_slower_codec_and_the_slowest_cut():
    rows = [{"contender": bench.ARRAYS, "ratio": ratio} for ratio in (0.5, 0.8)]
    rows += [{"contender": name, "seconds": 3e-3 * number} for number, name in enumerate(bench.CUTS, 1)]
    rows += [{"contender": "2 threads", "seconds": 0.1}, {"contender": "narrow, batch 8", "seconds": 0.5}]
    goals = bench.SECTION.goals([{"timings": rows}], "cpu")
    assert [goal.measured for goal in goals] == [2.0, 3.0, 20.0]
    assert [goal.verdict for goal in bench.SECTION.goals([], "cpu")] == [NOT_MEASURED] * 3
