"""The benchmark of the way from videos to clips measures what it says; the figures are their own business."""

import av
import numpy as np
import pytest

from benchmarks import bench_videos as bench
from benchmarks.results import NOT_MEASURED
from benchmarks.suite import Run, Suite
from tgan_fast.data.loading import open_videos
from tgan_fast.data.store import ClipStore

SMOKE = Run("cpu", smoke=True)


@pytest.mark.parametrize("case", bench.DECODING)
def test_videos_are_of_the_kind_of_ucf_101(case, tmp_path):
    codec, suffix = bench.DECODING[case]
    path = bench.encode(tmp_path / f"video{suffix}", 75, codec)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.width, stream.height, stream.average_rate) == (320, 240, 25)
        assert stream.codec_context.name == {"mpeg4": "mpeg4", "libx264": "h264"}[codec]
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)]
    assert len(frames) == 75
    assert abs(frames[-1] - frames[0]).mean() > 3
    assert 350 < 8 * path.stat().st_size / 3 / 1e3 < 650


def brighter(frames):
    return [np.minimum(frame, 250) + np.uint8(5) for frame in frames]


@pytest.mark.parametrize("wrong", [brighter, lambda frames: frames[::-1], lambda frames: frames[1:]])
def test_other_frames_are_not_timed(wrong, monkeypatch):
    decode = bench.DECODERS[bench.OURS]
    monkeypatch.setitem(bench.DECODERS, bench.OURS, lambda path: wrong(list(decode(path))))
    with pytest.raises(SystemExit, match=r"error: .*: tgan_fast is off by .*: nothing is timed"):
        Suite(SMOKE).record(bench.SECTION, next(iter(bench.DECODING)))


def test_first_clips_are_those_that_lie_in_a_store(tmp_path):
    store = bench.write_store(SMOKE, tmp_path)
    assert len({entry.sha256 for entry in ClipStore(store).entries}) == bench.BATCH
    videos = open_videos(store, **bench.AT_RANDOM).videos
    clips = np.empty((bench.BATCH, 16, 64, 64, 3), np.uint8)
    videos.cut(bench.windows_of(videos)(0), clips)
    assert np.array_equal(bench.first_clips(videos, store), clips)
    assert bench.share_wrong(clips[:, ::-1], clips) > 0.9


def test_goals_judge_the_slower_codec_and_the_slowest_cut():
    rows = [{"contender": bench.OURS, "ratio": 1.0}, {"contender": bench.ARRAYS, "ratio": 0.5}]
    faster = [{"contender": bench.OURS, "ratio": 1.0}, {"contender": bench.ARRAYS, "ratio": 0.8}]
    cuts = [{"contender": name, "of_needed": 10 / number} for number, name in enumerate(bench.CUTS, 1)]
    feed = [{"contender": "2 threads", "clips_per_second": 210.0}, {"contender": bench.TINY, "clips_per_second": 10.0}]
    timings = [*zip(bench.DECODING, (rows, faster), strict=True), (bench.CUTTING, cuts), (bench.FEEDING, feed)]
    records = [{"case": case, "timings": timings} for case, timings in timings]
    assert [goal.measured for goal in bench.SECTION.goals(records, "cpu")] == [2.0, 0.5, 21.0]
    assert [goal.verdict for goal in bench.SECTION.goals([], "cpu")] == [NOT_MEASURED] * 3
