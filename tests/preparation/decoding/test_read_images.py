"""Decoding of image sequences, from files that Pillow wrote in all its modes."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from support.encoding import moving_picture, numbered_frames, numbers_of

from tgan_fast.errors import UnreadableVideoError
from tgan_fast.preparation.decoding import FrameFormat, fit_frames, read_images

FRAME_FORMAT = FrameFormat(24, 32, 3)


def read(paths, frame_format=FRAME_FORMAT):
    return np.concatenate(list(read_images(paths, frame_format)))


def saved(folder, frames, suffix=".png", **options):
    paths = [folder / f"{number:03d}{suffix}" for number in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path, **options)
    return paths


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".jpg", ".webp", ".gif", ".jp2"])
@pytest.mark.parametrize("colors", [True, False])
def test_images_are_fitted_as_arrays_are(tmp_path, suffix, colors):
    frames = moving_picture(5, 48, 64)
    frames = frames if colors else frames[..., 0]
    suffix = ".pgm" if suffix == ".ppm" and not colors else suffix
    paths = saved(tmp_path, frames, suffix)
    exact = suffix in (".png", ".bmp", ".ppm", ".pgm", ".tif")
    for channels in (1, 3):
        frame_format = FrameFormat(24, 32, channels)
        expected = np.concatenate(list(fit_frames(frames, frame_format)))
        difference = np.abs(read(paths, frame_format).astype(int) - expected)
        assert difference.max() == 0 if exact else difference.mean() < 8


def test_images_come_in_the_order_that_is_given_in_batches(tmp_path):
    paths = saved(tmp_path, numbered_frames(150))
    batches = list(read_images(paths[::-1], FRAME_FORMAT))
    assert [batch.shape for batch in batches] == [(64, 24, 32, 3), (64, 24, 32, 3), (22, 24, 32, 3)]
    assert numbers_of(np.concatenate(batches)) == list(range(149, -1, -1))


def test_a_stride_passes_over_images_without_opening_them(tmp_path):
    paths = saved(tmp_path, numbered_frames(20))
    for number in range(20):
        if number % 7:
            paths[number].unlink()
    assert numbers_of(read(paths, FrameFormat(24, 32, 3, stride=7))) == [0, 7, 14]


def test_palettes_and_bits(tmp_path):
    picture = Image.fromarray(moving_picture(1, 24, 32)[0])
    for mode, name in (("P", "palette.png"), ("P", "palette.gif"), ("1", "bits.png")):
        image = picture.convert(mode)
        image.save(tmp_path / name)
        assert np.array_equal(read([tmp_path / name])[0], np.asarray(image.convert("RGB")))


def test_cyan_magenta_yellow_and_black(tmp_path):
    image = Image.new("CMYK", (32, 24), (0, 255, 255, 0))
    image.save(tmp_path / "image.jpg", quality=100)
    assert np.abs(read([tmp_path / "image.jpg"]) - np.array([255, 0, 0])).max() <= 3


def test_transparency_is_left_out(tmp_path):
    picture = moving_picture(1, 24, 32)[0]
    alpha = np.random.default_rng(0).integers(256, size=(24, 32, 1), dtype=np.uint8)
    (path,) = saved(tmp_path, np.concatenate([picture, alpha], -1)[None])
    assert np.array_equal(read([path])[0], picture)
    (path,) = saved(tmp_path, np.concatenate([picture[..., :1], alpha], -1)[None])
    assert np.array_equal(read([path])[0], picture[..., :1].repeat(3, -1))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_grays_of_16_bits_become_the_nearest_of_8(tmp_path, suffix):
    levels = np.linspace(0, 65535, 24 * 32).round().astype(np.uint16).reshape(24, 32)
    (path,) = saved(tmp_path, levels[None], suffix)
    expected = np.floor(levels / 257 + 0.5)
    assert np.array_equal(read([path])[0], expected[..., None].repeat(3, -1))
    assert np.array_equal(read([path], FrameFormat(24, 32, 1))[0], expected[..., None])


def test_what_is_more_than_16_bits_can_hold_is_white(tmp_path):
    (path,) = saved(tmp_path, np.full((1, 24, 32), 70_000, np.int32), ".tif")
    assert (read([path]) == 255).all()


def test_pillow_s_warnings_are_not_the_user_s(tmp_path):
    image = Image.fromarray(moving_picture(1, 24, 32)[0]).convert("P")
    image.save(tmp_path / "image.png", transparency=bytes(range(256)))
    with Image.open(tmp_path / "image.png") as saved_image, pytest.warns(UserWarning, match="Transparency"):
        expected = np.asarray(saved_image.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read([tmp_path / "image.png"])[0], expected)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda shown: shown),
        (2, lambda shown: shown[:, ::-1]),
        (3, lambda shown: shown[::-1, ::-1]),
        (4, lambda shown: shown[::-1]),
        (5, lambda shown: shown.swapaxes(0, 1)),
        (6, lambda shown: np.rot90(shown)),
        (7, lambda shown: np.rot90(shown.swapaxes(0, 1), 2)),
        (8, lambda shown: np.rot90(shown, -1)),
    ],
)
def test_images_are_turned_as_their_orientation_tells(tmp_path, orientation, turned):
    shown = moving_picture(1, 24, 32)[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned(shown))).save(tmp_path / "image.png", exif=exif)
    assert np.array_equal(read([tmp_path / "image.png"])[0], shown)


def test_images_of_different_sizes(tmp_path):
    paths = saved(tmp_path, [*moving_picture(70, 48, 64), moving_picture(1, 24, 32)[0]])
    expected = "its images have different sizes: 070.png is 32×24, but 000.png is 64×48"
    with pytest.raises(UnreadableVideoError, match=expected):
        read(paths)


def refused(path, before):
    """Return the reason why a file cannot be a frame after `before`."""
    with pytest.raises(UnreadableVideoError) as caught:
        read([*before, path])
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".gif", ".jp2", ".tga", ".ppm"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_a_file_that_was_cut_off(tmp_path, suffix, share):
    frames = np.random.default_rng(0).integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    before, path = saved(tmp_path, frames, suffix)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    reason = refused(path, [before])
    assert reason in (f"001{suffix} is damaged", f"001{suffix} is not an image, or its format is unknown")
    assert share or "its format is unknown" in reason


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".eps", ".pdf"])
def test_what_is_no_image(tmp_path, suffix):
    before = saved(tmp_path, moving_picture(1, 24, 32))
    path = tmp_path / f"file{suffix}"
    for content in (b"", b"text", np.random.default_rng(0).bytes(1000)):
        path.write_bytes(content)
        assert refused(path, before) == f"file{suffix} is not an image, or its format is unknown"


def test_programs_that_draw_are_not_run(tmp_path):
    """Refuse images for which Pillow would start Ghostscript."""
    path = tmp_path / "file.png"
    Image.fromarray(moving_picture(1, 24, 32)[0]).save(path, "EPS")
    assert refused(path, []) == "file.png is not an image, or its format is unknown"


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_an_image_that_would_fill_the_memory(tmp_path, size):
    def part(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = part(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    pixels = part(b"IDAT", zlib.compress(bytes(1000)))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + part(b"IEND", b""))
    assert refused(path, []) == "bomb.png has too many pixels"


def test_what_is_not_there_or_no_file(tmp_path):
    assert refused(tmp_path / "0.png", []) == "0.png cannot be read: No such file or directory"
    (tmp_path / "1.png").mkdir()
    assert refused(tmp_path / "1.png", []) == "1.png cannot be read: Is a directory"


def test_no_images_and_no_times(tmp_path):
    with pytest.raises(UnreadableVideoError, match="it has no images"):
        read_images([], FRAME_FORMAT)
    paths = saved(tmp_path, moving_picture(1, 24, 32))
    with pytest.raises(ValueError, match="frames without times cannot be resampled to 10 per second: choose"):
        read_images(paths, FrameFormat(24, 32, 3, fps=10))
