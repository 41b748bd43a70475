"""Feeds: the same videos from every kind of them, from wherever a run goes on, however many processes share them."""

import itertools
import threading

import numpy as np
import pytest
import torch

from tgan_fast.data import MovingDigits, VideoFrames, open_feed, to_videos
from tgan_fast.data.feed import fits
from tgan_fast.errors import InputError

OPTIONS = {"batch_size": 4, "channels": 3, "device": "cpu", "seed": 5}


class Clips:
    """Random clips made one by one."""

    def __init__(self, count=9, channels=3):
        self.clips = np.random.default_rng(0).integers(256, size=(count, 16, 64, 64, channels), dtype=np.uint8)

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        return self.clips[index], index


def first_videos(feed, count=7, start=0):
    return [feed.read(batch).cpu() for batch in itertools.islice(feed.batches(start), count)]


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


CHOICES = {
    "stride": (1, 2),
    "weighting": ("videos", "windows"),
    "last_start": (False, True),
    "loop": (False, True),
    "crop": ("centre", "random"),
    "flip": (False, True),
}


@pytest.mark.parametrize("chosen", list(itertools.product(*CHOICES.values())), ids=str)
def test_resident_frames_and_others_feed_the_same_videos(device, make_videos, chosen):
    choices = dict(zip(CHOICES, chosen, strict=True))
    videos = make_videos((1, 15, 40, 31, 16) if choices["loop"] else (31, 34, 55, 32, 38), **choices)
    options = OPTIONS | {"device": device, "dtype": torch.bfloat16}
    resident = open_feed(videos, **options, resident="on")
    batch = next(resident.batches())
    assert (batch.device.type, batch.dtype, batch.shape) == (device.type, torch.int64, (4, 1, 16, 4))
    elsewhere = open_feed(videos, **options, resident="off", workers=3)
    batch = next(elsewhere.batches())
    assert (batch.device.type, batch.dtype, batch.shape) == (device.type, torch.uint8, (4, 16, 64, 64, 3))
    on_host = open_feed(videos, **(options | {"device": "cpu"}))
    assert_same(first_videos(resident), first_videos(on_host))
    assert_same(first_videos(elsewhere), first_videos(on_host))


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_digits_drawn_on_the_device_are_those_of_the_data_set(device, digits, channels):
    dataset = MovingDigits(30, digits=digits, channels=channels, seed=2)
    options = OPTIONS | {"channels": channels, "device": device, "dtype": torch.bfloat16}
    drawn = open_feed(dataset, **options, resident="on")
    assert next(drawn.batches()).shape == (4, digits, 16, 4)
    one_by_one = open_feed(dataset, **options, resident="off", workers=2)
    assert_same(first_videos(drawn), first_videos(one_by_one))


@pytest.mark.parametrize("workers", [1, 3])
def test_clips_made_one_by_one_come_in_the_order_of_their_epoch(device, workers):
    dataset = Clips()
    feed = open_feed(dataset, **(OPTIONS | {"device": device}), workers=workers)
    epochs = [np.random.default_rng((5, epoch)).permutation(9)[:8].reshape(2, 4) for epoch in range(5)]
    expected = [torch.from_numpy(dataset.clips[indices]) for indices in np.concatenate(epochs)[2:]]
    assert_same([batch.cpu().clone() for batch in itertools.islice(feed.batches(2), 8)], expected)
    assert_same(first_videos(feed, 8, start=2), [to_videos(clips, "cpu") for clips in expected])


DATASETS = {
    "frames": lambda make_videos: make_videos(crop="random", flip=True),
    "windows-of-frames": lambda make_videos: make_videos(weighting="windows", stride=2, loop=True, flip=True),
    "digits": lambda make_videos: MovingDigits(9, channels=3),
    "clips": lambda make_videos: Clips(),
}
datasets = pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
residences = pytest.mark.parametrize("resident", ["auto", "off"])


@datasets
@residences
def test_any_start_goes_on_with_the_same_videos(device, make_videos, dataset, resident):
    options = OPTIONS | {"device": device, "resident": resident}
    whole = first_videos(open_feed(dataset(make_videos), **options), 9)
    for start in (1, 2, 5):
        feed = open_feed(dataset(make_videos), **options, workers=2)
        assert_same(first_videos(feed, 9 - start, start), whole[start:])
    other = first_videos(open_feed(dataset(make_videos), **(options | {"seed": 6})), 9)
    assert not any(torch.equal(one, another) for one, another in zip(whole, other, strict=True))


@datasets
@residences
def test_processes_see_together_what_one_sees(device, make_videos, dataset, resident):
    options = OPTIONS | {"device": device, "resident": resident}
    whole = first_videos(open_feed(dataset(make_videos), **options), 3)
    parts = [first_videos(open_feed(dataset(make_videos), **options, rank=rank, world_size=2), 3) for rank in range(2)]
    assert {len(videos) for part in parts for videos in part} == {2}
    assert_same([torch.cat(videos) for videos in zip(*parts, strict=True)], whole)


@pytest.mark.parametrize("resident", ["on", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_videos_are_as_asked_for(device, make_videos, dtype, resident):
    videos = make_videos(channels=1)
    feed = open_feed(videos, **(OPTIONS | {"device": device, "dtype": dtype, "resident": resident}))
    (video,) = (feed.read(batch) for batch in itertools.islice(feed.batches(), 1))
    assert video.shape == (4, 3, 16, 64, 64)
    assert video.dtype == dtype
    assert video.device.type == device.type
    assert video.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(video, video[:, :1].expand_as(video))
    assert video.abs().max() <= 1


def test_windows_of_an_epoch_are_those_of_all_videos(make_videos):
    """Frame numbers tell the videos apart; what comes from them changes from epoch to epoch."""
    videos = make_videos([30, 40, 50, 60])
    feed = open_feed(videos, **(OPTIONS | {"batch_size": 2, "resident": "on"}))
    starts = torch.cat(list(itertools.islice(feed.batches(), 40)))[:, 0, 0, 0].view(20, 4).numpy()
    videos_of_starts = np.searchsorted(videos.first, starts, side="right") - 1
    assert (np.sort(videos_of_starts) == range(4)).all()
    assert len({tuple(epoch) for epoch in videos_of_starts}) > 5
    assert len(np.unique(starts)) > 40


def test_weighted_by_windows_an_epoch_takes_every_window_once(make_videos):
    videos = make_videos([18, 24], weighting="windows")
    feed = open_feed(videos, **(OPTIONS | {"resident": "on"}))
    starts = torch.cat(list(itertools.islice(feed.batches(), 9)))[:, 0, 0, 0].view(3, 12)
    every = [*range(2, 5), *range(22, 31)]
    assert [sorted(epoch) for epoch in starts.tolist()] == [every] * 3
    assert len({tuple(epoch) for epoch in starts.tolist()}) == 3


def test_memory_mapped_frames_with_the_channels_first(tmp_path, make_videos, device):
    """As prepared UCF-101 holds them."""
    videos = make_videos()
    frames = np.ascontiguousarray(videos.frames.numpy().transpose(0, 3, 1, 2))
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r").transpose(0, 2, 3, 1)
    others = VideoFrames(mapped, videos.first, videos.length, videos.labels)
    expected = first_videos(open_feed(videos, **OPTIONS))
    for resident in ("on", "off"):
        assert_same(first_videos(open_feed(others, **(OPTIONS | {"device": device}), resident=resident)), expected)


class Inverted(MovingDigits):
    def __getitem__(self, index):
        clip, label = super().__getitem__(index)
        return 255 - clip, label


def test_clips_of_a_derived_data_set_are_its_own(device):
    options = OPTIONS | {"channels": 1, "device": device, "batch_size": 2}
    digits, inverted = (first_videos(open_feed(kind(8), **options)) for kind in (MovingDigits, Inverted))
    assert_same(inverted, [-videos for videos in digits])


def test_frames_take_at_most_half_of_the_free_memory():
    assert fits(40 * 2**30, 80 * 2**30)
    assert not fits(40 * 2**30 + 1, 80 * 2**30)
    assert fits(0, 0)


def test_one_line_says_where_clips_live(device, make_videos):
    options = OPTIONS | {"device": device}
    ahead = "made ahead of time" if device.type == "cpu" else "copied to cuda ahead of time"
    frames = "5 videos live in host memory: 0.0 GB of frames; batches are"
    assert open_feed(make_videos(), **options, resident="off").description == f"{frames} {ahead} by 1 thread"
    assert open_feed(Clips(), **options, workers=2).description == (
        f"9 clips are made in host memory, one by one; batches are {ahead} by 2 threads"
    )
    drawn = open_feed(MovingDigits(2000), **options, resident="on").description
    assert drawn == f"2,000 clips of moving digits are drawn on {device}"
    resident = open_feed(make_videos(), **options, resident="on").description
    assert resident == f"5 videos live on {device}: 0.0 GB of frames"
    weighted = make_videos([16, 1015], weighting="windows")
    resident = open_feed(weighted, **options, resident="on").description
    assert resident == f"2 videos (1,001 windows) live on {device}: 0.0 GB of frames"
    elsewhere = open_feed(weighted, **options, resident="off").description
    assert elsewhere.startswith("2 videos (1,001 windows) live in host memory: 0.0 GB")


@pytest.mark.gpu
def test_what_fits_lives_on_the_gpu(make_videos):
    options = OPTIONS | {"device": "cuda"}
    for dataset in (make_videos(), MovingDigits(30)):
        assert next(open_feed(dataset, **options).batches()).dtype == torch.int64


@pytest.mark.gpu
def test_frames_that_are_to_be_resident_and_cannot_are_refused(tmp_path):
    frames = torch.cuda.mem_get_info()[1] // (64 * 64) + 1
    mapped = np.memmap(tmp_path / "sparse", np.uint8, "w+", shape=(frames, 64, 64, 1))
    videos = VideoFrames(mapped, np.arange(4), np.full(4, 16), np.zeros(4, int))
    with pytest.raises(InputError, match=r"the frames take .* GB, but cuda has .* GB free: choose resident='auto'"):
        open_feed(videos, **(OPTIONS | {"device": "cuda"}), resident="on")
    assert "live in host memory" in open_feed(videos, **(OPTIONS | {"device": "cuda"})).description


@pytest.mark.gpu
@datasets
@residences
def test_a_cuda_graph_can_hold_what_a_feed_reads(make_videos, dataset, resident):
    feed = open_feed(dataset(make_videos), **(OPTIONS | {"device": "cuda", "dtype": torch.bfloat16}), resident=resident)
    expected = first_videos(feed)
    batches = feed.batches()
    static = next(batches).clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        feed.read(static)
        graph = torch.cuda.CUDAGraph()
        # While threads go on copying.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            videos = feed.read(static)
    torch.cuda.current_stream().wait_stream(stream)
    for k, batch in enumerate(itertools.islice(feed.batches(), 7)):
        static.copy_(batch)
        graph.replay()
        assert torch.equal(videos.cpu(), expected[k])
    batches.close()


class Broken(Clips):
    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def __getitem__(self, index):
        return (self.clip, 0) if index == 3 else super().__getitem__(index)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (
            np.zeros((16, 64, 64, 1), np.uint8),
            r"clip 3 of the data set is uint8 \[16, 64, 64, 1\], but clip 0 is uint8",
        ),
        (np.zeros((16, 64, 64, 3)), r"clip 3 of the data set is float64 \[16, 64, 64, 3\]"),
    ],
)
def test_a_clip_unlike_the_first_is_named_and_no_thread_is_left(device, clip, message):
    feed = open_feed(Broken(clip), **(OPTIONS | {"device": device}), workers=2)
    with pytest.raises(InputError, match=message):
        first_videos(feed)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clips")]


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Clips(0), {}, "the data set has no clips"),
        (Clips(3), {}, "3 clips, fewer than a batch of 4"),
        (Clips(), {"channels": 1}, r"takes clips of uint8 \[16, 64, 64, 1\] .* yields uint8 \[16, 64, 64, 3\]"),
        (MovingDigits(9, channels=3), {"channels": 1}, r"yields uint8 \[16, 64, 64, 3\]"),
        (Clips(channels=2), {}, r"yields uint8 \[16, 64, 64, 2\]"),
        (Clips(), {"world_size": 3}, "a batch of 4 cannot be shared equally by 3 processes"),
        (Clips(), {"resident": "on"}, "cannot be resident: choose resident='auto'"),
    ],
)
def test_what_does_not_fit_is_named(dataset, options, message):
    with pytest.raises(InputError, match=message):
        open_feed(dataset, **(OPTIONS | options))


def test_too_few_videos_for_a_batch_may_have_enough_windows(make_videos):
    with pytest.raises(InputError, match="has 3 videos, fewer than a batch of 4: choose weighting='windows'"):
        open_feed(make_videos([16, 17, 16]), **OPTIONS)
    assert len(first_videos(open_feed(make_videos([16, 17, 16], weighting="windows"), **OPTIONS))) == 7
    for weighting in ("videos", "windows"):
        with pytest.raises(InputError, match="3 clips, fewer than a batch of 4"):
            open_feed(make_videos([16] * 3, weighting=weighting), **OPTIONS)


def test_frames_of_too_many_channels_are_named(make_videos):
    with pytest.raises(InputError, match=r"takes clips of uint8 \[16, 64, 64, 1\] .* yields uint8 \[16, 64, 64, 3\]"):
        open_feed(make_videos(), **(OPTIONS | {"channels": 1}))
