"""Windows of videos: every one that there is comes up, none that there is not."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from tgan_fast.data import VideoFrames
from tgan_fast.errors import InputError


def windows_of(videos, which, batches=400, seed=0):
    """Windows [batches · n, 16, 4] of `batches` draws."""
    random = np.random.default_rng(seed)
    return np.concatenate([videos.windows(np.array(which), random) for _ in range(batches)])[:, 0]


def test_windows_are_sixteen_frames_of_the_video_from_every_start_including_the_last(make_videos):
    videos = make_videos()
    for video, (first, length) in enumerate(zip(videos.first, videos.length, strict=True)):
        windows = windows_of(videos, [video], batches=1000)
        assert np.array_equal(windows[:, :, 0], windows[:, :1, 0] + np.arange(16))
        starts = first + np.arange(length - 15)
        found, counts = np.unique(windows[:, 0, 0], return_counts=True)
        assert np.array_equal(found, starts)
        # Six standard deviations: equally often.
        expected = 1000 / len(starts)
        assert np.abs(counts - expected).max() <= 6 * np.sqrt(expected)


def test_all_windows_of_a_batch_are_drawn_apart(make_videos):
    videos = make_videos([200] * 3, crop="random", flip=True)
    windows = windows_of(videos, [0, 1, 2], batches=500).reshape(500, 3, 16, 4)[:, :, 0]
    starts = windows[:, :, 0] - videos.first
    for one, other in itertools.combinations(range(3), 2):
        assert abs(np.corrcoef(starts[:, one], starts[:, other])[0, 1]) < 0.3


def test_the_centre_of_wide_frames_is_that_of_prepared_ucf_101(make_videos):
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


@pytest.mark.parametrize("options", [{}, {"crop": "random", "flip": True}], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_cut_copies_the_pixels_of_windows(make_videos, channels, options):
    videos = make_videos(channels=channels, **options)
    windows = windows_of(videos, range(5), batches=4)[:, None]
    clips = np.zeros((len(windows), 16, 64, 64, channels), np.uint8)
    videos.cut(windows, clips)
    for clip, (start, top, left, step) in zip(clips, windows[:, 0, 0], strict=True):
        for t in range(16):
            frame = videos.frames[start + t, top : top + 64].numpy()
            assert all(np.array_equal(clip[t, :, x], frame[:, left + step * x]) for x in range(64))


def test_frames_are_not_copied_wherever_they_come_from(tmp_path, make_videos):
    frames = make_videos().frames.numpy()
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (frames, mapped, torch.from_numpy(frames)):
            videos = VideoFrames(source, [0, 5], [16, 20], [7, 8])
            address = source.data_ptr() if isinstance(source, torch.Tensor) else source.ctypes.data
            assert videos.frames.data_ptr() == address
            assert np.array_equal(videos.frames.numpy(), frames)
            assert len(videos) == 2
            assert videos.labels.tolist() == [7, 8]


FRAMES = np.zeros((50, 64, 85, 3), np.uint8)


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
        ({"crop": "left"}, ValueError, "a crop is 'centre' or 'random', not 'left'"),
        ({"frames": FRAMES[:, :60]}, InputError, "are 60 pixels high and 85 wide, but a clip needs 64 of each"),
        ({"frames": FRAMES[:, :, :63]}, InputError, "are 64 pixels high and 63 wide"),
        ({"length": [16, 15]}, InputError, "video 1 has 15 frames, but a clip needs 16: leave it out"),
        ({"first": [-1, 20]}, InputError, "video 0 goes from frame -1 to 14, but there are 50 frames"),
        ({"first": [0, 35]}, InputError, "video 1 goes from frame 35 to 50, but there are 50 frames"),
        ({"first": np.zeros(0, int), "length": np.zeros(0, int), "labels": np.zeros(0, int)}, InputError, "no videos"),
    ],
)
def test_what_does_not_fit_is_named(changes, error, message):
    given = {"frames": FRAMES, "first": [0, 20], "length": [16, 16], "labels": [0, 1]}
    assert len(VideoFrames(**given)) == 2
    with pytest.raises(error, match=message):
        VideoFrames(**(given | changes))


@pytest.mark.gpu
def test_frames_on_a_gpu_are_refused():
    with pytest.raises(ValueError, match=r"in host memory, not .* on cuda:0"):
        VideoFrames(torch.from_numpy(FRAMES).cuda(), [0], [16], [0])
