"""Every kind of file, read back by the libraries that others would read it with."""

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from tgan_fast.data.video_files import write_videos
from tgan_fast.errors import InputError


def smooth_clips(n, channels):
    """Grey levels that differ by video and rise by frame, so that a misplaced one shows; even codecs keep them."""
    levels = 30 * np.arange(n)[:, None] + 3 * np.arange(16)[None, :] + 20
    clips = np.broadcast_to(levels[:, :, None, None, None], (n, 16, 64, 64, channels))
    return np.ascontiguousarray(clips).astype(np.uint8)


def assert_grid(frames, clips, tolerance):
    """`frames` [T, H, W] show the clips in rows of two, and black where there is none."""
    assert frames.shape == (16, 128, 128)
    for place in range(4):
        row, column = divmod(place, 2)
        cell = frames[:, 64 * row + 8 : 64 * row + 56, 64 * column + 8 : 64 * column + 56].astype(int)
        wanted = clips[place, :, 8:56, 8:56, 0].astype(int) if place < len(clips) else np.zeros_like(cell)
        assert np.abs(cell - wanted).max() <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [3, 4])
def test_gif(tmp_path, n, channels):
    clips = smooth_clips(n, channels)
    write_videos(tmp_path / "x.gif", clips, fps=10)
    with Image.open(tmp_path / "x.gif") as image:
        assert image.info["duration"] == 100
        assert image.info["loop"] == 0
        frames = np.stack([np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(image)])
    assert_grid(frames, clips, tolerance=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [3, 4])
def test_mp4(tmp_path, n, channels):
    clips = smooth_clips(n, channels)
    write_videos(tmp_path / "x.mp4", clips, fps=24)
    with av.open(tmp_path / "x.mp4") as container:
        assert container.streams.video[0].average_rate == 24
        frames = np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])
    assert_grid(frames, clips, tolerance=4)


def test_png_is_a_row_of_frames_for_each_video(tmp_path):
    clips = np.random.default_rng(0).integers(256, size=(3, 16, 64, 64, 3), dtype=np.uint8)
    write_videos(tmp_path / "x.png", clips)
    strip = np.asarray(Image.open(tmp_path / "x.png"))
    assert strip.shape == (3 * 64, 16 * 64, 3)
    for video in range(3):
        for frame in range(16):
            tile = strip[64 * video : 64 * video + 64, 64 * frame : 64 * frame + 64]
            assert np.array_equal(tile, clips[video, frame])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_npy_is_the_array(tmp_path, channels):
    clips = np.random.default_rng(0).integers(256, size=(3, 16, 64, 64, channels), dtype=np.uint8)
    write_videos(tmp_path / "x.npy", clips)
    assert np.array_equal(np.load(tmp_path / "x.npy"), clips)


def test_bad_names_and_channels_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"must end in .gif, .mp4, .png, .npy"):
        write_videos(tmp_path / "x.avi", smooth_clips(1, 3))
    with pytest.raises(InputError, match="cannot show videos of 2 channels"):
        write_videos(tmp_path / "x.gif", smooth_clips(1, 2))
    assert not list(tmp_path.iterdir())
