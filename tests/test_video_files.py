"""Every kind of file, read back by the libraries that users would read it with."""

import av
import numpy as np
import pytest
from PIL import Image, ImageFont, ImageSequence
from PIL._util import DeferredError

from tgan_fast.data.moving_digits import MovingDigits
from tgan_fast.errors import InputError
from tgan_fast.video_files import TitledGrid, arrangement, check_videos, stack_grids, write_videos


def smooth_clips(n, channels):
    """Gray levels that differ by video and rise by frame, so that a misplaced one shows; even codecs keep them."""
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


def played(path):
    """Frames [T, H, W, 3] and their durations in milliseconds, as Pillow reads them."""
    frames, durations = [], []
    with Image.open(path) as image:
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    return np.stack(frames), durations


def gradients(n):
    """Clips in which red rises to the right, green downwards, and blue from clip to clip and frame to frame."""
    place, time = np.arange(64), np.arange(16)
    clips = np.empty((n, 16, 64, 64, 3), np.uint8)
    clips[..., 0] = 4 * place
    clips[..., 1] = 4 * place[:, None]
    clips[..., 2] = (255 * np.arange(n)[:, None] // n + 8 * time)[:, :, None, None] % 256
    return clips


ANIMATIONS = [".gif", ".webp", ".apng"]


@pytest.mark.parametrize("suffix", ANIMATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_frames_stay(tmp_path, suffix, channels):
    still = np.full((4, 16, 64, 64, channels), 77, np.uint8)
    halting = smooth_clips(4, channels)[:, np.arange(16) // 3]
    for clips in (still, halting):
        path = tmp_path / f"x{suffix}"
        write_videos(path, clips)
        frames, durations = played(path)
        assert len(frames) == 16
        assert sum(durations) == 1000
        assert_grid(frames[..., 0], clips, tolerance=0)
        if suffix != ".webp":
            with av.open(path) as container:
                assert len(list(container.decode(video=0))) == 16


@pytest.mark.parametrize("suffix", ANIMATIONS)
@pytest.mark.parametrize("fps", [1, 7, 16, 24, 30, 50])
def test_frames_play_when_they_should(tmp_path, suffix, fps):
    write_videos(tmp_path / f"x{suffix}", smooth_clips(1, 1), fps=fps)
    _, durations = played(tmp_path / f"x{suffix}")
    unit = 10 if suffix == ".gif" else 1
    assert all(duration % unit == 0 for duration in durations)
    begins = np.cumsum([0, *durations])
    assert np.abs(begins - 1000 / fps * np.arange(17)).max() <= unit / 2


def test_sixteen_frames_of_a_gif_take_a_second(tmp_path):
    write_videos(tmp_path / "x.gif", smooth_clips(1, 1), fps=16)
    assert played(tmp_path / "x.gif")[1] == 4 * [60, 60, 70, 60]


@pytest.mark.parametrize("suffix", ANIMATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("frames", [1, 16])
def test_gray_levels_are_exact(tmp_path, suffix, channels, frames):
    clips = np.random.default_rng(0).integers(256, size=(1, frames, 64, 64, 1), dtype=np.uint8)
    clips = np.repeat(clips, channels, axis=-1)
    write_videos(tmp_path / f"x{suffix}", clips)
    with Image.open(tmp_path / f"x{suffix}") as image:
        for number in range(frames):
            image.seek(number)
            assert np.array_equal(np.asarray(image.convert("RGB"))[..., :channels], clips[0, number])


@pytest.mark.parametrize("suffix", [".webp", ".apng"])
def test_colors_without_a_palette_are_exact(tmp_path, suffix):
    clips = gradients(9)
    write_videos(tmp_path / f"x{suffix}", clips)
    frames, _ = played(tmp_path / f"x{suffix}")
    for place, clip in enumerate(clips):
        row, column = divmod(place, 3)
        assert np.array_equal(frames[:, 64 * row : 64 * row + 64, 64 * column : 64 * column + 64], clip)


def test_the_colors_of_a_gif_are_near_in_every_channel(tmp_path):
    # The mean error if 256 equal cubes fill the cube of all colors: a quarter of their side.
    tolerance = 256 / 256 ** (1 / 3) / 4
    clips = gradients(4)
    write_videos(tmp_path / "x.gif", clips)
    frames, _ = played(tmp_path / "x.gif")
    wanted = clips.reshape(2, 2, 16, 64, 64, 3).transpose(2, 0, 3, 1, 4, 5).reshape(frames.shape)
    errors = np.abs(frames.astype(int) - wanted).mean((0, 1, 2))
    assert errors.max() < tolerance


def test_a_frame_of_256_colors_keeps_them(tmp_path):
    colors = np.random.default_rng(0).integers(256, size=(16, 256, 3), dtype=np.uint8)
    clips = np.stack([colors[frame].reshape(16, 16, 3) for frame in range(16)])[None]
    write_videos(tmp_path / "x.gif", clips)
    assert np.array_equal(played(tmp_path / "x.gif")[0], clips[0])


def test_gray_gifs_have_one_palette(tmp_path):
    digits = MovingDigits(16, digits=2)
    clips = np.stack([digits[number][0] for number in range(16)])
    sizes = {}
    for channels in (1, 3):
        write_videos(tmp_path / "x.gif", np.repeat(clips, channels, axis=-1))
        sizes[channels] = (tmp_path / "x.gif").stat().st_size
    # Fifteen palettes of 256 colors less.
    assert sizes[3] - sizes[1] > 15 * 600


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.avi", {}, r"must end in \.gif, \.mp4, \.webp, \.apng, \.png, \.npy"),
        ("x.gif", {"channels": 2}, "cannot show videos of 2 channels"),
        ("x.gif", {"fps": 51}, r"fps is 51, but must be 1 to 50 for \.gif"),
        ("x.mp4", {"fps": 0}, r"fps is 0, but must be 1 to 1,000 for \.mp4"),
        ("x.npy", {"fps": 10**20}, "fps is 1"),
    ],
)
def test_what_a_format_does_not_take_is_refused(tmp_path, name, options, message):
    channels = options.pop("channels", 3)
    with pytest.raises(InputError, match=message):
        write_videos(tmp_path / name, smooth_clips(1, channels), **options)
    assert not list(tmp_path.iterdir())


def test_pictures_that_are_too_large_are_refused_before_they_are_made(tmp_path):
    shape = 16, 64, 64, 3
    check_videos(tmp_path / "x.mp4", (256**2, *shape))
    with pytest.raises(InputError, match=r"a picture of 16,448×16,448 pixels, but \.mp4 takes 16,384 at most"):
        check_videos(tmp_path / "x.mp4", (257**2, *shape))
    with pytest.raises(InputError, match=r"choose fewer, or \.npy"):
        check_videos(tmp_path / "x.png", (10**18, *shape))
    check_videos(tmp_path / "x.npy", (10**18, *shape))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.gif", "9 videos in a grid of 3 × 3"),
        ("X.PNG", "9 videos, each a row of its frames"),
        ("x.npy", "9 videos"),
    ],
)
def test_what_a_file_shows_in_words(tmp_path, name, text):
    assert arrangement(tmp_path / name, 9) == text


STRIP = 15


@pytest.fixture(params=[True, False], ids=["freetype", "no freetype"])
def _font(request, monkeypatch):
    """Pillow with and without FreeType."""
    if not request.param:
        monkeypatch.setattr(ImageFont, "core", DeferredError.new(ImportError("no FreeType")))


@pytest.mark.usefixtures("_font")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "factor"), [(16, 4), (32, 2), (64, 1), (128, 1)])
def test_titled_grids_show_every_pixel_as_a_square(tmp_path, size, factor, channels):
    # Few colors, so that a GIF keeps them exactly.
    clips = np.random.default_rng(0).integers(2, size=(5, 8, size, size, channels), dtype=np.uint8) * 255
    write_videos(tmp_path / "x.gif", stack_grids([TitledGrid("real", clips[:1]), TitledGrid("é 日本", clips[1:])], 3))
    frames, _ = played(tmp_path / "x.gif")
    side = factor * size
    assert frames.shape == (8, 3 * side + 2 * STRIP, 3 * side, 3)
    squares = np.kron(clips, np.ones((1, 1, factor, factor, 1), np.uint8))
    cells = [(0, 0), (STRIP + side, 0), (STRIP + side, 1), (STRIP + side, 2), (STRIP + 2 * side, 0)]
    for clip, (top, column) in zip(squares, cells, strict=True):
        top, left = top + STRIP, column * side
        assert np.array_equal(
            frames[:, top : top + side, left : left + side], np.broadcast_to(clip, (8, side, side, 3))
        )
    assert not frames[:, STRIP : STRIP + side, side:].any()
    for top in (0, STRIP + side):
        assert frames[:, top : top + STRIP].min() == 64
        assert frames[:, top : top + STRIP].max() > 200
        assert (frames[:, top : top + STRIP] == frames[0, top : top + STRIP]).all()


@pytest.mark.usefixtures("_font")
def test_captions_stand_above_their_clips_and_are_cut_before_the_next(tmp_path):
    clips = np.full((3, 8, 64, 64, 1), 100, np.uint8)
    long = "a name that is much longer than its clip is wide"
    (picture,) = stack_grids([TitledGrid("", clips, ["", long, "c"])], 2)
    assert picture.shape == (8, STRIP + 2 * (STRIP + 64), 128, 1)
    assert (picture[:, :STRIP] == 64).all()
    first, second = picture[:, STRIP : 2 * STRIP], picture[:, 2 * STRIP + 64 : 3 * STRIP + 64]
    assert not first[:, :, :64].any()
    assert min(first[:, :, 64:].max(), second[:, :, :64].max()) > 200
    assert not first[:, :, 126:].any()
    assert (picture[:, 2 * STRIP : 2 * STRIP + 64] == 100).all()
    assert not picture[:, 2 * STRIP + 64 :, 64:].any()
