"""Feeds of every kind give the same videos, from any resumed position and for any number of processes."""

import itertools
import threading

import numpy as np
import pytest
import torch
from support.graphs import captured
from support.pairwise import covering

from tgan_fast.data import MovingDigits, PreparedVideos, VideoFrames, open_feed
from tgan_fast.data.feed import fits_memory
from tgan_fast.data.order import BatchOrder
from tgan_fast.errors import InputError
from tgan_fast.pixels import to_videos

OPTIONS = {"batch_size": 4, "channels": 3, "device": "cpu", "seed": 5}


class Clips:
    """Random clips made one by one."""

    def __init__(self, count=9, channels=3, shape=(16, 64, 64)):
        self.clips = np.random.default_rng(0).integers(256, size=(count, *shape, channels), dtype=np.uint8)

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        return self.clips[index], index


class Labeled:
    """Black clips with these labels."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return np.zeros((16, 64, 64, 3), np.uint8), self.labels[index]


def clip_threads():
    """Return the threads of feeds: those of other tests may not have been collected yet."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("clips")}


def first_videos(feed, count=7, start=0):
    return [feed.read(batch.clips).cpu() for batch in itertools.islice(feed.batches(start), count)]


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


CHOICES = {
    "stride": (1, 2),
    "weighting": ("videos", "windows"),
    "last_start": (False, True),
    "short": ("skip", "loop"),
    "crop": ("center", "random"),
    "flip": (False, True),
}


@pytest.mark.parametrize(
    "choices", covering(CHOICES, lambda row: True), ids=lambda row: "-".join(map(str, row.values()))
)
def test_resident_frames_and_others_feed_the_same_videos(device, make_videos, choices):
    videos = make_videos((1, 15, 40, 31, 16) if choices["short"] == "loop" else (31, 34, 55, 32, 38), **choices)
    options = OPTIONS | {"device": device, "dtype": torch.bfloat16}
    resident = open_feed(videos, **options, resident="on")
    clips, _ = next(resident.batches())
    assert (clips.device.type, clips.dtype, clips.shape) == (device.type, torch.int64, (4, 1, 16, 4))
    elsewhere = open_feed(videos, **options, resident="off", workers=3)
    clips, _ = next(elsewhere.batches())
    assert (clips.device.type, clips.dtype, clips.shape) == (device.type, torch.uint8, (4, 16, 64, 64, 3))
    on_host = open_feed(videos, **(options | {"device": "cpu"}))
    assert_same(first_videos(resident), first_videos(on_host))
    assert_same(first_videos(elsewhere), first_videos(on_host))


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_digits_drawn_on_the_device_are_those_of_the_data_set(device, digits, channels):
    dataset = MovingDigits(30, digits=digits, channels=channels, seed=2)
    options = OPTIONS | {"channels": channels, "device": device, "dtype": torch.bfloat16}
    drawn = open_feed(dataset, **options, resident="on")
    assert next(drawn.batches()).clips.shape == (4, digits, 16, 4)
    one_by_one = open_feed(dataset, **options, resident="off", workers=2)
    assert_same(first_videos(drawn), first_videos(one_by_one))


@pytest.mark.parametrize("workers", [1, 3])
def test_clips_made_one_by_one_come_in_the_order_of_their_epoch(device, workers):
    dataset = Clips()
    feed = open_feed(dataset, **(OPTIONS | {"device": device}), workers=workers)
    epochs = [np.random.default_rng((5, epoch)).permutation(9)[:8].reshape(2, 4) for epoch in range(5)]
    expected = [torch.from_numpy(dataset.clips[indices]) for indices in np.concatenate(epochs)[2:]]
    assert_same([batch.clips.cpu().clone() for batch in itertools.islice(feed.batches(2), 8)], expected)
    assert_same(first_videos(feed, 8, start=2), [to_videos(clips) for clips in expected])


DATASETS = {
    "frames": lambda make_videos: make_videos(crop="random", flip=True),
    "windows-of-frames": lambda make_videos: make_videos(weighting="windows", stride=2, short="loop", flip=True),
    "digits": lambda make_videos: MovingDigits(9, channels=3),
    "clips": lambda make_videos: Clips(),
}
datasets = pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
residences = pytest.mark.parametrize("resident", ["auto", "off"])


@datasets
@residences
def test_any_start_continues_with_the_same_videos(device, make_videos, dataset, resident):
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


# Lengths of videos, frames of clips, sizes of images.
SIZES = [((8, 9, 30, 12), 8, 16), ((32, 40, 64, 33), 32, 32), ((9, 12, 10, 11), 9, 128)]


@pytest.mark.parametrize(("lengths", "clip_frames", "size"), SIZES)
@residences
def test_clips_of_other_sizes_are_those_of_their_videos(device, make_videos, lengths, clip_frames, size, resident):
    shape = {"height": size + 5, "width": size + 2}
    videos = make_videos(
        lengths, **shape, crop="random", flip=True, clip_frames=clip_frames, image_size=size, weighting="windows"
    )
    options = OPTIONS | {"device": device, "resident": resident, "frames": clip_frames, "image_size": size}
    order = BatchOrder(len(videos), 4, seed=5)
    for k, found in enumerate(first_videos(open_feed(videos, **options), 3)):
        clips = np.empty((4, clip_frames, size, size, 3), np.uint8)
        videos.cut(videos.windows(order.indices(k), order.choices(k)), clips)
        assert found.shape == (4, 3, clip_frames, size, size)
        torch.testing.assert_close(found, to_videos(torch.from_numpy(clips)), rtol=2e-7, atol=0)


@pytest.mark.parametrize(("clip_frames", "size"), [case[1:] for case in SIZES])
@pytest.mark.parametrize("resident", ["on", "off"])
def test_digits_of_other_sizes_are_those_of_the_data_set(device, clip_frames, size, resident):
    digits = MovingDigits(9, digits=2, clip_frames=clip_frames, image_size=size)
    options = OPTIONS | {"device": device, "resident": resident, "frames": clip_frames, "image_size": size}
    order = BatchOrder(9, 4, seed=5)
    for k, found in enumerate(first_videos(open_feed(digits, **options), 3)):
        clips = np.stack([digits[i][0] for i in order.indices(k).tolist()])
        expected = to_videos(torch.from_numpy(clips)).expand(-1, 3, -1, -1, -1)
        torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)


class Renamed(MovingDigits):
    """Moving digits with other labels."""

    def __getitem__(self, index):
        clip, label = super().__getitem__(index)
        return clip, label + 100


LABELED = {
    "videos": (lambda make_videos: make_videos(crop="random"), ["on", "off"]),
    "windows": (lambda make_videos: make_videos(weighting="windows", flip=True), ["on", "off"]),
    "digits": (lambda make_videos: MovingDigits(9, digits=2), ["on", "off"]),
    "derived": (lambda make_videos: Renamed(9), ["off"]),
    "clips": (lambda make_videos: Clips(), ["off"]),
}


def label_of(dataset, clip):
    """Return the label by definition: the label of the video that has this window, or of this clip."""
    if not isinstance(dataset, VideoFrames):
        return dataset[clip][1]
    videos = np.arange(len(dataset.first))
    if dataset.weighting == "windows":
        videos = videos.repeat(dataset.length - 15)
    return dataset.labels[videos[clip]]


@pytest.mark.parametrize(
    ("make", "resident"),
    [
        pytest.param(make, resident, id=f"{name}-{resident}")
        for name, (make, residences) in LABELED.items()
        for resident in residences
    ],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_labels_are_those_of_the_clips_in_the_batch(device, make_videos, make, resident, world_size):
    dataset = make(make_videos)
    options = OPTIONS | {"device": device, "resident": resident, "world_size": world_size, "workers": 2}
    order, rows = BatchOrder(len(dataset), 4, seed=5), 4 // world_size
    for rank in range(world_size):
        labeled, plain = (open_feed(dataset, **options, rank=rank, labeled=labeled) for labeled in (True, False))
        batches = itertools.islice(labeled.batches(2), 7)
        for k, (batch, unlabeled) in enumerate(zip(batches, plain.batches(2), strict=False), start=2):
            assert unlabeled.labels is None
            assert torch.equal(batch.clips, unlabeled.clips)
            assert (batch.labels.dtype, batch.labels.device.type) == (torch.int64, device.type)
            own = order.indices(k)[rank * rows : (rank + 1) * rows].tolist()
            assert batch.labels.tolist() == [label_of(dataset, clip) for clip in own]


@pytest.mark.parametrize("workers", [1, 3])
def test_labels_belong_to_what_the_videos_show(device, make_videos, workers):
    """Give every pixel of a video a level that tells its label."""
    videos = make_videos(weighting="windows", flip=True)
    for start, length, label in zip(videos.first, videos.length, videos.labels, strict=True):
        videos.frames[start : start + length] = 50 * int(label)
    for resident in ("on", "off"):
        feed = open_feed(videos, **(OPTIONS | {"device": device, "resident": resident}), workers=workers, labeled=True)
        for batch in itertools.islice(feed.batches(), 30):
            levels = (feed.read(batch.clips) * 127.5 + 127.5).round()
            assert torch.equal(levels, 50.0 * batch.labels.view(-1, 1, 1, 1, 1).expand_as(levels))


@pytest.mark.parametrize("labels", [[2, 0, 7, 1, 5], list(np.arange(5)), list(torch.arange(5)), [True] * 5], ids=str)
def test_class_numbers_may_be_integers_of_any_kind(device, labels):
    feed = open_feed(Labeled(labels), **(OPTIONS | {"device": device}), labeled=True)
    order = BatchOrder(5, 4, seed=5)
    for k, batch in enumerate(itertools.islice(feed.batches(), 3)):
        assert batch.labels.tolist() == [int(labels[index]) for index in order.indices(k)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("cat", "the label of clip 3 of the data set is 'cat', but must be an integer"),
        (1.0, r"the label of clip 3 of the data set is 1\.0, but must be an integer"),
        (None, "the label of clip 3 of the data set is None, but must be an integer"),
        (-1, "the label of clip 3 of the data set is -1, but classes are numbered from 0"),
    ],
)
def test_a_label_that_is_no_class_number_is_named_where_labels_are_asked_for(device, label, message):
    dataset, options = Labeled([0, 1, 2, label]), OPTIONS | {"device": device}
    before = clip_threads()
    feed = open_feed(dataset, **options, labeled=True)
    with pytest.raises(InputError, match=message):
        next(feed.batches())
    assert not clip_threads() - before
    assert len(first_videos(open_feed(dataset, **options), 2)) == 2


def test_a_negative_label_of_a_video_is_named_where_labels_are_asked_for(make_videos):
    videos = make_videos()
    videos.labels[2] = -4
    with pytest.raises(InputError, match="the label of video 2 is -4, but classes are numbered from 0"):
        open_feed(videos, **OPTIONS, labeled=True)
    assert len(first_videos(open_feed(videos, **OPTIONS), 1)) == 1


@pytest.mark.parametrize("resident", ["on", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_videos_are_as_asked_for(device, make_videos, dtype, resident):
    videos = make_videos(channels=1)
    feed = open_feed(videos, **(OPTIONS | {"device": device, "dtype": dtype, "resident": resident}))
    (video,) = (feed.read(batch.clips) for batch in itertools.islice(feed.batches(), 1))
    assert video.shape == (4, 3, 16, 64, 64)
    assert video.dtype == dtype
    assert video.device.type == device.type
    assert video.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(video, video[:, :1].expand_as(video))
    assert video.abs().max() <= 1


def test_windows_of_an_epoch_are_those_of_all_videos(make_videos):
    """Identify videos by frame numbers, since their windows change from epoch to epoch."""
    videos = make_videos([30, 40, 50, 60])
    feed = open_feed(videos, **(OPTIONS | {"batch_size": 2, "resident": "on"}))
    starts = torch.cat([batch.clips for batch in itertools.islice(feed.batches(), 40)])[:, 0, 0, 0].view(20, 4).numpy()
    videos_of_starts = np.searchsorted(videos.first, starts, side="right") - 1
    assert (np.sort(videos_of_starts) == range(4)).all()
    assert len({tuple(epoch) for epoch in videos_of_starts}) > 5
    assert len(np.unique(starts)) > 40


def test_weighted_by_windows_an_epoch_takes_every_window_once(make_videos):
    videos = make_videos([18, 24], weighting="windows")
    feed = open_feed(videos, **(OPTIONS | {"resident": "on"}))
    starts = torch.cat([batch.clips for batch in itertools.islice(feed.batches(), 9)])[:, 0, 0, 0].view(3, 12)
    every = [*range(2, 5), *range(22, 31)]
    assert [sorted(epoch) for epoch in starts.tolist()] == [every] * 3
    assert len({tuple(epoch) for epoch in starts.tolist()}) == 3


def test_memory_mapped_frames_with_the_channels_first(tmp_path, make_videos, device):
    """Use the layout of prepared UCF-101."""
    videos = make_videos()
    frames = np.ascontiguousarray(videos.frames.numpy().transpose(0, 3, 1, 2))
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r").transpose(0, 2, 3, 1)
    others = VideoFrames(PreparedVideos(mapped, videos.first, videos.length, videos.labels))
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
    assert fits_memory(40 * 2**30, 80 * 2**30)
    assert not fits_memory(40 * 2**30 + 1, 80 * 2**30)
    assert fits_memory(0, 0)


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
        assert next(open_feed(dataset, **options).batches()).clips.dtype == torch.int64


@pytest.mark.gpu
def test_frames_that_are_to_be_resident_and_cannot_are_refused(tmp_path):
    frames = torch.cuda.mem_get_info()[1] // (64 * 64) + 1
    mapped = np.memmap(tmp_path / "sparse", np.uint8, "w+", shape=(frames, 64, 64, 1))
    videos = VideoFrames(PreparedVideos(mapped, np.arange(4), np.full(4, 16), np.zeros(4, int)))
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
    static = next(batches).clips.clone()
    graph, videos = captured(lambda: feed.read(static))  # while threads go on copying
    for k, batch in enumerate(itertools.islice(feed.batches(), 7)):
        static.copy_(batch.clips)
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
    before = clip_threads()
    feed = open_feed(Broken(clip), **(OPTIONS | {"device": device}), workers=2)
    with pytest.raises(InputError, match=message):
        first_videos(feed)
    assert not clip_threads() - before


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Clips(0), {}, "the data set has no clips"),
        (Clips(3), {}, "3 clips, fewer than a batch of 4"),
        (Clips(), {"channels": 1}, r"takes clips of uint8 \[16, 64, 64, 1\] .* yields uint8 \[16, 64, 64, 3\]"),
        (Clips(), {"frames": 8, "channels": 1}, r"takes .*\[8, 64, 64, 1\].*: choose frames 16, channels 3$"),
        (MovingDigits(9, image_size=32), {}, r"yields uint8 \[16, 32, 32, 1\]: choose image_size 32$"),
        (MovingDigits(9), {"frames": 8, "image_size": 16}, r"\[16, 64, 64, 1\]: choose frames 16, image_size 64$"),
        (MovingDigits(9, channels=3), {"channels": 1}, r"yields uint8 \[16, 64, 64, 3\]"),
        (Clips(channels=2), {}, r"yields uint8 \[16, 64, 64, 2\]"),
        (Clips(shape=(4, 64, 64)), {}, r"yields uint8 \[4, 64, 64, 3\]$"),
        (Clips(shape=(16, 64, 32)), {}, r"yields uint8 \[16, 64, 32, 3\]$"),
        (Clips(shape=(16, 60, 60)), {}, r"yields uint8 \[16, 60, 60, 3\]$"),
        (Clips(shape=(16, 64)), {}, r"yields uint8 \[16, 64, 3\]$"),
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


def test_frames_for_clips_of_another_size_are_named(make_videos):
    videos = make_videos(clip_frames=8, image_size=32)
    with pytest.raises(InputError, match=r"yields uint8 \[8, 32, 32, 3\]: choose frames 8, image_size 32$"):
        open_feed(videos, **OPTIONS)
    assert len(first_videos(open_feed(videos, **OPTIONS, frames=8, image_size=32), 1)) == 1
