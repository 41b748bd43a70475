"""Windows of videos: every possible window is drawn, and no others."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from tgan_fast.data import PreparedVideos, VideoFrames
from tgan_fast.data.video_frames import clip_span
from tgan_fast.errors import InputError
from tgan_fast.ops.windows import read_windows


def windows_of(videos, which, batches=400, seed=0):
    """Windows [batches · n, T, 4] of `batches` draws."""
    random = np.random.default_rng(seed)
    return np.concatenate([videos.windows(np.array(which), random) for _ in range(batches)])[:, 0]


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_windows_are_sixteen_frames_of_the_video_from_every_start_including_the_last(make_videos, stride):
    videos = make_videos(15 * stride + np.array([1, 4, 25, 2, 8]), stride=stride)
    for video, (first, length) in enumerate(zip(videos.first, videos.length, strict=True)):
        windows = windows_of(videos, [video], batches=1000)
        assert np.array_equal(windows[:, :, 0], windows[:, :1, 0] + stride * np.arange(16))
        starts = first + np.arange(length - 15 * stride)
        found, counts = np.unique(windows[:, 0, 0], return_counts=True)
        assert np.array_equal(found, starts)
        # Equal frequencies, within six standard deviations.
        expected = 1000 / len(starts)
        assert np.abs(counts - expected).max() <= 6 * np.sqrt(expected)


def test_without_the_last_start_windows_are_those_that_the_authors_draw(make_videos):
    videos = make_videos((16, 17, 18, 40), last_start=False)
    windows = windows_of(videos, range(4), batches=1000)[:, 0, 0].reshape(1000, 4)
    random = np.random.default_rng(1)
    for length, starts in zip(videos.length, (windows - videos.first).T, strict=True):
        theirs = [random.integers(length - 16) if length > 16 else 0 for _ in range(1000)]
        assert set(starts) == set(theirs)


@pytest.mark.parametrize(
    ("lengths", "options", "starts"),
    [
        ((16, 17, 40, 18), {}, (1, 2, 25, 3)),
        ((16, 17, 40, 18), {"last_start": False}, (1, 1, 24, 2)),
        ((46, 48, 50), {"stride": 3}, (1, 3, 5)),
        ((1, 15, 16, 20), {"short": "loop"}, (1, 1, 1, 5)),
        ((31, 33, 16, 1), {"stride": 2, "short": "loop", "last_start": False}, (1, 2, 1, 1)),
    ],
)
def test_weighted_by_windows_an_epoch_has_every_window_once(make_videos, lengths, options, starts):
    videos = make_videos(lengths, weighting="windows", crop="random", flip=True, **options)
    assert len(videos) == sum(starts)
    windows = videos.windows(np.arange(len(videos)), np.random.default_rng(0))
    expected = [first + start for first, count in zip(videos.first, starts, strict=True) for start in range(count)]
    assert windows[:, 0, 0, 0].tolist() == expected
    order = np.random.default_rng(1).permutation(len(videos))
    assert np.array_equal(videos.windows(order, np.random.default_rng(0))[:, 0, :, 0], windows[order, 0, :, 0])


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_a_video_of_a_clips_span_has_one_window_and_a_shorter_one_none(make_videos, stride):
    span = clip_span(stride)
    assert windows_of(make_videos([span], stride=stride), [0])[:, -1, 0].max() == 2 + span - 1
    with pytest.raises(InputError, match=f"none of the 1 videos of the data set has the {span} frames of"):
        make_videos([span - 1], stride=stride)


@pytest.mark.parametrize(("stride", "clip_frames", "span"), [(1, 8, 8), (1, 64, 64), (3, 9, 25), (2, 32, 63)])
def test_a_clip_of_more_or_fewer_frames_spans_as_many(make_videos, stride, clip_frames, span):
    options = {"stride": stride, "clip_frames": clip_frames}
    assert clip_span(**options) == span
    videos = make_videos([span, span + 4], weighting="windows", **options)
    windows = videos.windows(np.arange(len(videos)), np.random.default_rng(0))[:, 0, :, 0]
    starts = [2, *range(span + 4, span + 9)]
    assert np.array_equal(windows, np.array(starts)[:, None] + stride * np.arange(clip_frames))
    assert make_videos([span, span - 1], **options).length.tolist() == [span]


def test_all_windows_of_a_batch_are_drawn_apart(make_videos):
    videos = make_videos([200] * 3, crop="random", flip=True)
    windows = windows_of(videos, [0, 1, 2], batches=500).reshape(500, 3, 16, 4)[:, :, 0]
    starts = windows[:, :, 0] - videos.first
    for one, other in itertools.combinations(range(3), 2):
        assert abs(np.corrcoef(starts[:, one], starts[:, other])[0, 1]) < 0.3


def test_the_center_of_wide_frames_is_that_of_prepared_ucf_101(make_videos):
    windows = windows_of(make_videos(), range(5))
    assert (windows[..., 1:] == [0, 10, 1]).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 85), (70, 67)])
@pytest.mark.parametrize("flip", [False, True])
def test_random_crops_reach_every_place_and_never_leave_the_frame(make_videos, height, width, flip):
    windows = windows_of(make_videos(height=height, width=width, crop="random", flip=flip), range(5))
    assert (windows == windows[:, :1] + np.arange(16)[:, None] * [1, 0, 0, 0]).all()
    _, tops, lefts, steps = windows[:, 0].T
    assert set(tops) == set(range(height - 63))
    assert set(lefts - np.where(steps < 0, 63, 0)) == set(range(width - 63))
    assert set(steps) == ({1, -1} if flip else {1})
    assert not flip or 0.4 < (steps < 0).mean() < 0.6


@pytest.mark.parametrize(("size", "height", "width"), [(16, 16, 18), (32, 35, 33), (128, 130, 128)])
def test_random_crops_of_other_sizes_reach_every_place(make_videos, size, height, width):
    options = {"crop": "random", "flip": True, "image_size": size}
    windows = windows_of(make_videos(height=height, width=width, **options), range(5))
    _, tops, lefts, steps = windows[:, 0].T
    assert set(tops) == set(range(height - size + 1))
    assert set(lefts - np.where(steps < 0, size - 1, 0)) == set(range(width - size + 1))


def clip_by_definition(videos, window, clip_frames=16, size=64):
    """Return the clip uint8 [clip_frames, size, size, C] whose first frame has this window."""
    number, top, left, step = window.tolist()
    video = np.searchsorted(videos.first, number, side="right") - 1
    first, length = videos.first[video], videos.length[video]
    numbers = [number + t * videos.stride for t in range(clip_frames)]
    if length < 1 + (clip_frames - 1) * videos.stride:
        assert number == first
        numbers = [first + t * videos.stride % length for t in range(clip_frames)]
    assert max(numbers) < first + length
    left = left if step > 0 else left - size + 1
    clip = np.stack([videos.frames[k].numpy()[top : top + size, left : left + size] for k in numbers])
    return clip if step > 0 else clip[:, :, ::-1]


SHORT = {"lengths": (1, 2, 7, 15, 30, 31, 40)}
# Properties of the frames, and of the clips made from them.
CLIPS = {
    "plain": ({}, {}),
    "cropped-mirrored": ({"height": 70}, {"crop": "random", "flip": True}),
    "whole-rows": ({"width": 64}, {"flip": True}),
    "strided": ({"lengths": (31, 40, 33)}, {"stride": 2, "crop": "random", "flip": True}),
    "looped": (SHORT, {"short": "loop", "flip": True}),
    "looped-strided": (SHORT, {"short": "loop", "stride": 2, "crop": "random", "flip": True}),
    "looped-far-apart": (SHORT, {"short": "loop", "stride": 9, "weighting": "windows", "last_start": False}),
    "small": (
        {"lengths": (8, 9, 30), "height": 19, "width": 20},
        {"clip_frames": 8, "image_size": 16, "crop": "random", "flip": True},
    ),
    "long-looped": (SHORT, {"clip_frames": 32, "image_size": 32, "short": "loop", "stride": 2, "flip": True}),
    "large": (
        {"lengths": (9, 13), "height": 128, "width": 131},
        {"clip_frames": 9, "image_size": 128, "weighting": "windows", "crop": "random"},
    ),
}
all_clips = pytest.mark.parametrize(("shape", "options"), CLIPS.values(), ids=CLIPS)


def as_they_are(frames, path):
    return frames


def mapped(frames, path):
    """Return frames as a read-only memory map."""
    np.save(path, frames)
    return np.load(path, mmap_mode="r")


def mapped_with_the_channels_first(frames, path):
    """Return memory-mapped frames in the layout of the authors' HDF5 file."""
    np.save(path, np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    return np.load(path, mmap_mode="r").transpose(0, 2, 3, 1)


def every_second_column(frames, path):
    return np.repeat(frames, 2, axis=2)[:, :, ::2]


def size_of(options):
    """Frames of clips, and the size of their images."""
    return options.get("clip_frames", 16), options.get("image_size", 64)


@all_clips
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [as_they_are, mapped, mapped_with_the_channels_first, every_second_column])
def test_cut_copies_the_clips_of_windows(tmp_path, make_videos, shape, options, channels, stored):
    videos = make_videos(channels=channels, **shape, **options)
    frames = stored(videos.frames.numpy(), tmp_path / "frames.npy")
    others = VideoFrames(PreparedVideos(frames, videos.first, videos.length, videos.labels), **options)
    windows = windows_of(others, range(len(others)), batches=6)[:, None]
    clip_frames, size = size_of(options)
    assert others.clip_shape == (clip_frames, size, size, channels)
    clips = np.zeros((len(windows), *others.clip_shape), np.uint8)
    others.cut(windows, clips)
    for clip, window in zip(clips, windows[:, 0, 0], strict=True):
        assert np.array_equal(clip, clip_by_definition(videos, window, clip_frames, size))


@all_clips
def test_windows_read_where_the_frames_lie_are_the_same_clips(make_videos, shape, options):
    videos = make_videos(**shape, **options)
    windows = windows_of(videos, range(len(videos)), batches=3)[:, None]
    clip_frames, size = size_of(options)
    arguments = {"image_size": size, "dtype": torch.float64, "backend": "torch"}
    read = read_windows(videos.frames, torch.from_numpy(windows), **arguments)
    clips = np.stack([clip_by_definition(videos, window, clip_frames, size) for window in windows[:, 0, 0]])
    expected = (torch.from_numpy(clips).double() - 127.5) / 127.5
    torch.testing.assert_close(read, expected.permute(0, 4, 1, 2, 3), rtol=1e-15, atol=0)


def test_frames_are_not_copied_wherever_they_come_from(tmp_path, make_videos):
    frames = make_videos().frames.numpy()
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (frames, mapped, torch.from_numpy(frames)):
            videos = VideoFrames(PreparedVideos(source, [0, 5], [16, 20], [7, 8]))
            address = source.data_ptr() if isinstance(source, torch.Tensor) else source.ctypes.data
            assert videos.frames.data_ptr() == address
            assert np.array_equal(videos.frames.numpy(), frames)
            assert len(videos) == 2
            assert videos.labels.tolist() == [7, 8]


FRAMES = np.zeros((50, 64, 85, 3), np.uint8)


@pytest.mark.parametrize(
    ("labels", "classes"), [([0, 0, 0], 0), ([7, 7, 7], 0), ([0, 1, 0], 2), ([5, 2, 2], 6), ([3, 3, 0], 4)]
)
def test_classes_are_numbered_from_0_and_a_single_one_is_none(labels, classes):
    prepared = PreparedVideos(FRAMES, [0, 10, 20], [16, 17, 18], labels)
    videos = VideoFrames(prepared)
    assert videos.classes == classes
    assert videos.labels_of(np.array([2, 0, 1])).tolist() == [labels[2], labels[0], labels[1]]
    weighted = VideoFrames(prepared, weighting="windows")
    assert weighted.classes == classes
    assert weighted.labels_of(np.arange(6)).tolist() == [labels[video] for video in (0, 1, 1, 2, 2, 2)]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"frames": FRAMES.astype(np.float32)},
            ValueError,
            r"frames are uint8 \[F, H, W, C\].* not torch.float32 \[50",
        ),
        ({"frames": FRAMES[0]}, ValueError, r"not torch.uint8 \[64, 85, 3\]"),
        ({"first": [0.0, 20.0]}, ValueError, r"first holds an integer for each of 2 videos, not float64 \[2\]"),
        ({"length": [16]}, ValueError, r"length holds an integer for each of 2 videos, not int64 \[1\]"),
        ({"labels": [[0, 1]]}, ValueError, r"labels holds an integer for each of 2 videos, not int64 \[1, 2\]"),
        ({"stride": 0}, ValueError, "a stride must be at least 1, not 0"),
        ({"weighting": "frames"}, ValueError, "weighting is 'videos' or 'windows', not 'frames'"),
        ({"crop": "left"}, ValueError, "crop is 'center' or 'random', not 'left'"),
        ({"frames": FRAMES[:, :60]}, InputError, "are 60 pixels high and 85 wide, but a clip needs 64 of each"),
        ({"frames": FRAMES[:, :, :63]}, InputError, "are 64 pixels high and 63 wide"),
        ({"stride": 2}, InputError, "none of the 2 videos of the data set has the 31 frames of a clip: choose"),
        ({"clip_frames": 7}, ValueError, "a video has 8 to 64 frames, not 7"),
        ({"image_size": 48}, ValueError, "images are squares of 16, 32, 64, 128 pixels, not 48"),
        ({"image_size": 128}, InputError, "are 64 pixels high and 85 wide, but a clip needs 128 of each"),
        ({"clip_frames": 17}, InputError, "has the 17 frames of a clip"),
        ({"clip_frames": 8, "stride": 3}, InputError, "has the 22 frames of a clip"),
        ({"short": "leave out"}, ValueError, "short is 'skip' or 'loop', not 'leave out'"),
        ({"length": [16, 0]}, InputError, "video 1 goes from frame 20 to 19, but there are 50 frames"),
        ({"first": [-1, 20]}, InputError, "video 0 goes from frame -1 to 14, but there are 50 frames"),
        ({"first": [0, 35]}, InputError, "video 1 goes from frame 35 to 50, but there are 50 frames"),
        ({"first": np.zeros(0, int), "length": np.zeros(0, int), "labels": np.zeros(0, int)}, InputError, "no videos"),
    ],
)
def test_what_does_not_fit_is_named(changes, error, message):
    videos = {"frames": FRAMES, "first": [0, 20], "length": [16, 16], "labels": [0, 1]}
    assert len(VideoFrames(PreparedVideos(**videos))) == 2
    options = {name: value for name, value in changes.items() if name not in videos}
    with pytest.raises(error, match=message):
        VideoFrames(PreparedVideos(**videos | {name: changes[name] for name in videos & changes.keys()}), **options)


@pytest.mark.gpu
def test_frames_on_a_gpu_are_refused():
    with pytest.raises(ValueError, match=r"in host memory, not .* on cuda:0"):
        VideoFrames(PreparedVideos(torch.from_numpy(FRAMES).cuda(), [0], [16], [0]))
