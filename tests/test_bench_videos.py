"""The benchmark of the way from videos to clips measures what it says; the figures are their own business."""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from benchmarks import bench_videos as bench
from benchmarks import footage, results, suite
from benchmarks.results import NOT_MEASURED
from benchmarks.suite import Label, Run, Suite
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.data.sources import recognise
from tgan_fast.data.store import ClipStore

SMOKE = Run("cpu", smoke=True)
SCALE = bench.scale_of(SMOKE)
MPEG_4, _ = bench.DECODING
small_frames = bench.DECODERS[bench.OURS]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where results go."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def done():
    """Measures every case once."""
    return Suite(Run("cpu", smoke=True))


@pytest.fixture
def temporary(monkeypatch):
    """Paths of the temporary folders that are made."""
    paths = []

    class Folder(tempfile.TemporaryDirectory):
        def __enter__(self):
            paths.append(Path(self.name))
            return super().__enter__()

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Folder)
    return paths


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "video.avi"
    return footage.encode(path, footage.moving_scene(SCALE.length), "mpeg4")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return bench.write_store(tmp_path_factory.mktemp("stores") / "store", bench.WIDTH, SCALE)


def labels_of(rows):
    return [Label(row["contender"], row["part"]) for row in rows]


def rate(count, row):
    return pytest.approx(count / row["seconds"], rel=1e-3)


@pytest.mark.parametrize("case", bench.SECTION.cases(SMOKE))
def test_what_runs_is_what_was_announced_and_says_its_rates(case, done):
    record = done.record(bench.SECTION, case)
    rows = record["timings"]
    assert labels_of(rows) == bench.SECTION.labels(SMOKE, case)
    assert all(0 < row["p10"] <= row["seconds"] <= row["p90"] for row in rows)
    assert record["rivals"] == (list(bench.RIVALS) if case in bench.DECODING else [])
    details = list(bench.SECTION.details(record))
    for row, line in zip(rows, details, strict=False):
        assert str(Label.of(row)) in line
        assert ("frames/s" if case in (*bench.DECODING, bench.PREPARING) else "clips/s") in line
    payload = done.payload(bench.SECTION)
    assert payload["needed_clips_per_second"] == pytest.approx(32 / 3e-3, rel=1e-3)
    assert payload["processes"] == bench.PROCESSES
    assert json.loads(json.dumps(payload)) == payload


@pytest.mark.parametrize("case", [*bench.DECODING, bench.PREPARING])
def test_frames_are_those_of_all_files_and_are_compared_with_decoding_alone(case, done):
    record = done.record(bench.SECTION, case)
    count = SCALE.length * (SCALE.files if case == bench.PREPARING else 1)
    (alone,) = (row for row in record["timings"] if row["contender"] == bench.ALONE)
    for row in record["timings"]:
        assert row["frames_per_second"] == rate(count, row)
        if row is not alone:
            assert row["of_decoding_alone"] == pytest.approx(row["seconds"] / alone["seconds"], rel=2e-3)
    # Nobody is compared with it as if it did the same.
    assert (alone["part"], alone["ratio"]) == (bench.DROPPED, 1)
    if case == bench.PREPARING:
        assert record["stored_bytes"] == count * 64 * 85 * 3
        own, alone, *_ = bench.SECTION.details(record)
        assert "MB/s stored" in own
        assert "MB/s stored" not in alone


@pytest.mark.parametrize("case", [bench.CUTTING, bench.FEEDING])
def test_clips_are_those_of_batches_and_are_compared_with_what_steps_take(case, done):
    record = done.record(bench.SECTION, case)
    for row in record["timings"]:
        of_step = {"tiny": 8, "paper": 4}.get(row["contender"].partition(",")[0])
        assert row["clips_per_second"] == rate(of_step or 32, row)
        if of_step is None:
            # A step of 3 ms reads one batch.
            assert row["of_needed"] == pytest.approx(3e-3 / row["seconds"], rel=1e-3)
    if case == bench.FEEDING:
        (_, two, tiny, *_), (_, line, *_) = record["timings"], bench.SECTION.details(record)
        assert f"{two['clips_per_second'] / tiny['clips_per_second']:,.0f}× those of tiny, batch 8" in line


def test_files_are_gone_afterwards(temporary):
    Suite(Run("cpu", smoke=True)).record(bench.SECTION, bench.CUTTING)
    (path,) = temporary
    assert not path.exists()


def test_files_of_what_is_not_timed_are_gone_too(temporary, monkeypatch):
    monkeypatch.setitem(bench.DECODERS, bench.OURS, backwards)
    with pytest.raises(SystemExit, match="nothing is timed"):
        Suite(Run("cpu", smoke=True)).record(bench.SECTION, MPEG_4)
    (path,) = temporary
    assert not path.exists()


@pytest.mark.parametrize("case", bench.DECODING)
def test_videos_are_of_the_kind_of_ucf_101(case, folder):
    codec, suffix = bench.DECODING[case]
    count = bench.scale_of(Run("cpu")).length
    path = footage.encode(folder / f"video{suffix}", footage.moving_scene(count), codec)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.width, stream.height, stream.average_rate) == (320, 240, 25)
        assert stream.codec_context.name == {"mpeg4": "mpeg4", "libx264": "h264"}[codec]
        assert sum(1 for _ in container.decode(stream)) == count
    assert 400 < 8 * path.stat().st_size / (count / 25) / 1e3 < 600


def test_in_a_scene_all_moves():
    first, later = itertools.islice(footage.moving_scene(11), 0, None, 10)
    assert (abs(later.astype(int) - first).mean((1, 2)) > 3).all()
    assert first.std() > 20


def test_all_decoders_come_to_about_the_same(video):
    assert 0 < bench.check_decoding(video, SCALE.length) < bench.MOST_LEVELS_OFF


def brighter(path):
    return (np.minimum(frame, 250) + np.uint8(5) for frame in small_frames(path))


def backwards(path):
    return list(small_frames(path))[::-1]


def in_other_colours(path):
    return (frame[..., ::-1] for frame in small_frames(path))


@pytest.mark.parametrize("wrong", [brighter, backwards, in_other_colours])
@pytest.mark.parametrize("name", [bench.OURS, bench.ARRAYS])
def test_other_pixels_are_not_timed(wrong, name, video, monkeypatch):
    monkeypatch.setitem(bench.DECODERS, name, wrong)
    with pytest.raises(SystemExit, match=rf"error: {name} is off by \d+\.\d grey levels: nothing is timed"):
        bench.check_decoding(video, SCALE.length)


def test_fewer_frames_are_not_timed(video, monkeypatch):
    def all_but_one(path):
        return list(bench.decoded(path))[1:]

    monkeypatch.setitem(bench.DECODERS, bench.ALONE, all_but_one)
    with pytest.raises(SystemExit, match=r"PyAV, decoding alone yields 35 of 36 frames: nothing is timed"):
        bench.check_decoding(video, SCALE.length)


@pytest.fixture
def videos(folder, video):
    path = folder / "videos"
    path.mkdir()
    for number in range(2):
        (path / f"{number}.avi").write_bytes(video.read_bytes())
    return path


def test_a_folder_is_prepared_before_it_is_timed(videos, folder):
    bench.check_preparing(videos, folder / "store", SCALE.length)
    assert ClipStore(folder / "store").length.tolist() == [SCALE.length] * 2


def test_a_store_that_lacks_a_video_is_not_timed(videos, folder):
    (videos / "1.avi").write_bytes(b"no video")
    with pytest.raises(SystemExit, match="36 frames are stored of 2 × 36: nothing is timed"):
        bench.check_preparing(videos, folder / "store", SCALE.length)


def test_a_store_of_other_frames_is_not_timed(videos, folder, monkeypatch):
    other = folder / "other" / "0.avi"
    other.parent.mkdir()
    footage.encode(other, footage.moving_scene(SCALE.length, seed=1), "mpeg4")
    (other.parent / "1.avi").write_bytes(other.read_bytes())
    monkeypatch.setattr(bench, "recognise", lambda source: recognise(other.parent))
    with pytest.raises(SystemExit, match=r"error: 0\.avi is stored as something else: nothing is timed"):
        bench.check_preparing(videos, folder / "store", SCALE.length)


def test_processes_that_decode_less_are_not_timed(videos, folder, monkeypatch):
    decode_files = bench.decode_files
    monkeypatch.setattr(bench, "decode_files", lambda paths: decode_files(paths[1:]))
    with pytest.raises(SystemExit, match="PyAV, decoding alone yields 36 of 72 frames: nothing is timed"):
        bench.check_preparing(videos, folder / "store", SCALE.length)


def test_a_store_holds_videos_that_differ(store):
    opened = ClipStore(store)
    assert opened.length.tolist() == [SCALE.length] * SCALE.stored
    assert not list(opened.damaged())
    assert len({entry.sha256 for entry in opened.entries}) == SCALE.stored


@pytest.mark.parametrize("name", [name for name, (width, _) in bench.CUTS.items() if width == bench.WIDTH])
def test_other_clips_are_not_timed(name, store):
    cutter, frames = bench.Cutter(store, bench.CUTS[name][1]), ClipStore(store).frames
    bench.check_cutting(name, cutter, frames)
    with pytest.raises(SystemExit, match=f"error: {name}: other clips are cut out of the store: nothing is timed"):
        bench.check_cutting(name, cutter, frames[:, ::-1])


def test_a_store_that_is_mapped_anew_gives_the_same_clips(store):
    cutter = bench.Cutter(store, bench.AT_RANDOM)
    cutter(1)
    before = cutter.clips.copy()
    cutter.map_anew()
    cutter.clips.fill(0)
    cutter(1)
    assert np.array_equal(cutter.clips, before)


def test_feeds_of_other_videos_are_not_timed(store):
    feeds = bench.make_feeds(store, "cpu")
    bench.check_feeds(feeds, bench.Cutter(store, bench.AT_RANDOM))
    with pytest.raises(SystemExit, match="error: 1 thread: other videos are fed: nothing is timed"):
        bench.check_feeds(feeds, bench.Cutter(store, {}))


@pytest.mark.parametrize(("preset", "width"), [("tiny", 0.125), ("paper", 1.0)])
def test_the_steps_are_those_of_the_presets_in_colours(preset, width):
    step = bench.make_step(Run("cpu"), preset)
    networks = (step.generator, VideoGenerator(width)), (step.discriminator, VideoDiscriminator(width))
    for network, expected in networks:
        shapes = [[value.shape for value in of.state_dict().values()] for of in (network, expected)]
        assert shapes[0] == shapes[1]


def test_rivals_can_be_left_out_of_the_timing():
    run = Run("cpu", smoke=True, own_only=True)
    for case in (MPEG_4, bench.PREPARING):
        rows = Suite(run).record(bench.SECTION, case)["timings"]
        assert labels_of(rows) == bench.SECTION.labels(run, case) == [Label("tgan_fast"), Label("tgan_fast again")]


def test_a_smoke_run_writes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_videos", "--device", "cpu", "--smoke", "--only", "H.264"])
    suite.main(bench.SECTION)
    assert not list(folder.iterdir())
    printed = capsys.readouterr().out
    assert "PyAV, scaled by Pillow" in printed
    assert "needed: 10,670 clips/s" in printed


def records(of_arrays=(1.0, 1.0), needed=1.0, times=20.0):
    """As the suite keeps them, of made-up figures."""

    def record(case, *rows):
        return {"case": case, "timings": [{"part": None, **row} for row in rows]}

    decoding = [
        record(case, {"contender": bench.OURS, "ratio": 1.0}, {"contender": bench.ARRAYS, "ratio": 1 / ratio})
        for case, ratio in zip(bench.DECODING, of_arrays, strict=True)
    ]
    cuts = [{"contender": name, "of_needed": 10 * needed} for name in bench.CUTS]
    cuts[-1]["of_needed"] = needed
    feeds = [
        {"contender": "1 thread", "clips_per_second": 1.0},
        {"contender": "2 threads", "clips_per_second": 100 * times},
        {"contender": "tiny, batch 8", "clips_per_second": 100.0},
        {"contender": "paper, batch 4", "clips_per_second": 4.0},
        {"contender": "tiny, batch 8 again", "clips_per_second": 1e6},
    ]
    return [*decoding, record(bench.CUTTING, *cuts), record(bench.FEEDING, *feeds)]


def test_goals_judge_the_slower_codec_the_slowest_cut_and_the_faster_step():
    def verdicts(records, device="cpu"):
        return [goal.verdict for goal in bench.SECTION.goals(records, device)]

    assert [goal.measured for goal in bench.SECTION.goals(records((1.1, 1.15), 0.5, 21), "cpu")] == [1.15, 2.0, 21.0]
    assert verdicts(records()) == ["met", "met", "met"]
    assert verdicts(records((1.0, 1.3))) == verdicts(records((1.3, 1.0))) == ["SHORT", "met", "met"]
    assert verdicts(records(needed=0.2)) == ["met", "SHORT", "met"]
    assert verdicts(records(times=19)) == ["met", "met", "SHORT"]
    assert verdicts(records(), "cuda") == ["met", "met"]
    assert verdicts([]) == [NOT_MEASURED] * 3
    assert verdicts(records()[2:]) == [NOT_MEASURED, "met", "met"]


@pytest.mark.gpu
@pytest.mark.parametrize("case", bench.SECTION.cases(SMOKE))
def test_on_a_gpu_all_that_was_announced_is_timed(case):
    run = Run("cuda", smoke=True)
    record = Suite(run).record(bench.SECTION, case)
    assert labels_of(record["timings"]) == bench.SECTION.labels(run, case)
    assert all(row["seconds"] > 0 for row in record["timings"])


@pytest.mark.gpu
def test_on_a_gpu_feeds_of_other_videos_are_not_timed(store):
    feeds = bench.make_feeds(store, "cuda")
    bench.check_feeds(feeds, bench.Cutter(store, bench.AT_RANDOM))
    assert torch.device("cuda").type in feeds[bench.RESIDENT].description
    with pytest.raises(SystemExit, match="other videos are fed"):
        bench.check_feeds({bench.RESIDENT: feeds[bench.RESIDENT]}, bench.Cutter(store, {}))
