"""Fitting of frames to a size, compared with means over areas in float64."""

import itertools
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
from support.encoding import encode, moving_picture

from tgan_fast.preparation.decoding import FrameFormat, fit_frames, read_video
from tgan_fast.preparation.decoding.fit import Fitter, covering_size

# Weights of red and blue in the luma.
BT_601, BT_709 = (0.299, 0.114), (0.2126, 0.0722)

COLORS = np.array(
    [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [200, 150, 100], [30, 60, 200]]
)


def areas(size, wanted):
    """Return the matrix [wanted, size] of means over equal intervals."""
    edges = np.arange(wanted + 1) * size / wanted
    overlap = np.minimum(edges[1:, None], np.arange(size) + 1) - np.maximum(edges[:-1, None], np.arange(size))
    return overlap.clip(0) * wanted / size


def shrunk(plane, height, width):
    return areas(plane.shape[0], height) @ plane.astype(np.float64) @ areas(plane.shape[1], width).T


def luma(rgb, matrix=BT_601):
    red, blue = matrix
    return rgb @ np.array([red, 1 - red - blue, blue])


def fitted(frame, height, width, channels=3, **options):
    out = np.full((height, width, channels), 77, np.uint8)
    Fitter(**options).fit(frame, out)
    return out


def fitted_array(frame, height, width, channels=3):
    out = np.full((height, width, channels), 77, np.uint8)
    Fitter().fit_array(frame, out)
    return out


def read(path, height, width, channels=3):
    return np.concatenate(list(read_video(path, FrameFormat(height, width, channels))))


def decoded(path):
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize(
    ("size", "frame_format", "aspect", "expected"),
    [
        ((240, 320), (64, 85), 1, (64, 85)),
        ((240, 320), (64, 64), 1, (64, 85)),
        ((240, 320), (64, 86), 1, (65, 86)),
        ((320, 240), (64, 64), 1, (85, 64)),
        ((1080, 1920), (64, 64), 1, (64, 114)),
        ((64, 64), (64, 64), 1, (64, 64)),
        ((7, 5), (64, 64), 1, (90, 64)),
        ((1, 1), (3, 5), 1, (5, 5)),
        ((240, 160), (64, 85), 2, (64, 85)),
        ((480, 720), (64, 64), Fraction(8, 9), (64, 85)),
        ((576, 720), (64, 64), Fraction(64, 45), (64, 114)),
    ],
)
def test_a_frame_just_covers_its_stored_size_and_keeps_its_proportions(size, frame_format, aspect, expected):
    assert covering_size(*size, *frame_format, Fraction(aspect)) == expected


def test_every_size_is_covered_as_closely_as_whole_pixels_can():
    for height, width, *frame_format, across, down in np.random.default_rng(0).integers(1, 400, (500, 6)).tolist():
        size = covering_size(height, width, *frame_format, Fraction(across, down))
        shown_width = width * Fraction(across, down)
        scale = max(Fraction(frame_format[0], height), frame_format[1] / shown_width)
        assert size[0] >= frame_format[0]
        assert size[1] >= frame_format[1]
        assert size[0] == frame_format[0] or size[1] == frame_format[1]
        assert abs(size[0] - height * scale) <= Fraction(1, 2)
        assert abs(size[1] - shown_width * scale) <= Fraction(1, 2)


def test_a_square_of_320_by_240_is_columns_10_to_74_of_the_authors_form(tmp_path):
    path = encode(tmp_path / "video.avi", moving_picture(5, 240, 320), codec="mpeg4")
    whole, square = read(path, 64, 85), read(path, 64, 64)
    assert np.array_equal(square, whole[:, :, 10:74])
    frames = moving_picture(5, 240, 320, seed=1)
    (whole,), (square,) = (fit_frames(frames, FrameFormat(64, width, 3)) for width in (85, 64))
    assert np.array_equal(square, whole[:, :, 10:74])


def test_of_a_portrait_the_middle_rows_are_taken():
    frames = moving_picture(5, 320, 240)
    (whole,), (square,) = (fit_frames(frames, FrameFormat(height, 64, 3)) for height in (85, 64))
    assert np.array_equal(square, whole[:, 10:74])


@pytest.mark.parametrize(
    ("height", "width", "frame_format"),
    [(240, 320, (64, 85)), (360, 640, (64, 64)), (241, 321, (64, 64)), (320, 240, (85, 64)), (70, 66, (64, 60))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_pixel_is_the_mean_over_its_area(height, width, frame_format, channels):
    picture = moving_picture(1, height, width)[0]
    # On fine patterns, any filter other than a mean over areas gives other results.
    picture[::2, : width // 2] = 255 - picture[::2, : width // 2]
    rows, columns = covering_size(height, width, *frame_format)
    top, left = (rows - frame_format[0]) // 2, (columns - frame_format[1]) // 2
    colors = np.stack([shrunk(picture[..., channel], rows, columns) for channel in range(3)], -1)
    expected = colors if channels == 3 else luma(colors)[..., None]
    expected = expected[top : top + frame_format[0], left : left + frame_format[1]]
    assert np.abs(fitted_array(picture, *frame_format, channels) - expected).max() < 2


def test_decoded_luma_is_the_mean_over_areas_of_what_the_decoder_gives(tmp_path):
    path = encode(tmp_path / "video.mp4", moving_picture(3, 240, 320))
    gray = read(path, 64, 85, channels=1)
    for frame, found in zip(decoded(path), gray, strict=True):
        plane = np.frombuffer(frame.planes[0], np.uint8).reshape(240, -1)[:, :320]
        expected = (shrunk(plane, 64, 85) - 16) * 255 / 219
        assert np.abs(found[..., 0] - expected).max() < 2


def test_a_frame_that_is_as_large_already_is_only_converted(tmp_path):
    path = encode(tmp_path / "video.mp4", moving_picture(3, 48, 64), pix_fmt="yuv444p")
    expected = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded(path)])
    assert np.abs(read(path, 48, 64) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("aspect", [1, Fraction(1, 40)], ids=["in both directions", "in one"])
def test_smaller_frames_are_enlarged_by_linear_interpolation(aspect):
    """Scale frames whose pixels are 40 times as high as wide: columns become fewer, and rows more."""
    picture = np.random.default_rng(0).integers(256, size=(8, 16 // aspect), dtype=np.uint8)
    centers = (np.arange(64) + 0.5) * 8 / 64 - 0.5
    rows = np.stack([np.interp(centers, np.arange(8), column) for column in picture.T], -1)
    centers = (np.arange(128) + 0.5) * 16 / 128 - 0.5
    exact = np.stack([np.interp(centers, np.arange(16), row) for row in rows]) if aspect == 1 else shrunk(rows, 64, 128)
    found = fitted(av.VideoFrame.from_ndarray(picture, "gray"), 64, 128, pixel_aspect=Fraction(aspect))
    assert np.abs(found - exact[..., None]).max() < 3


def test_a_single_pixel_fills_the_form():
    assert (fitted_array(np.full((1, 1, 3), 90, np.uint8), 5, 7) == 90).all()


@pytest.mark.parametrize("shape", [(64, 85), (64, 85, 1), (64, 85, 3)])
def test_an_array_that_is_as_large_already_passes_bit_for_bit(shape):
    frame = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    colors = frame if frame.ndim == 3 else frame[..., None]
    assert np.array_equal(fitted_array(frame, 64, 85), np.broadcast_to(colors, (64, 85, 3)))
    gray = fitted_array(frame, 64, 85, channels=1)
    if colors.shape[2] == 1:
        assert np.array_equal(gray, colors)
    else:
        assert np.abs(gray[..., 0] - luma(frame)).max() < 1.5


@pytest.mark.parametrize("order", ["mirrored", "reversed", "every second", "channels first"])
def test_arrays_may_have_any_strides(order):
    frame = moving_picture(1, 100, 120)[0]
    view = {
        "mirrored": frame[:, ::-1],
        "reversed": frame[::-1],
        "every second": frame[::2, ::2],
        "channels first": np.ascontiguousarray(frame.transpose(2, 0, 1)).transpose(1, 2, 0),
    }[order]
    assert np.array_equal(fitted_array(view, 32, 40), fitted_array(view.copy(), 32, 40))


def test_pixels_that_are_not_square_are_taken_as_what_they_show(tmp_path):
    frames = moving_picture(3, 240, 160)
    path = encode(tmp_path / "video.mp4", frames, pixel_aspect=Fraction(2))
    gray = read(path, 64, 85, channels=1)
    for frame, found in zip(decoded(path), gray, strict=True):
        plane = np.frombuffer(frame.planes[0], np.uint8).reshape(240, -1)[:, :160]
        assert np.abs(found[..., 0] - (shrunk(plane, 64, 85) - 16) * 255 / 219).max() < 2


@pytest.mark.parametrize(("degrees", "corner"), [(90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1)), (270, (0, -1))])
def test_frames_are_turned_as_a_player_turns_them(tmp_path, degrees, corner):
    """Degrees are counter-clockwise; of the frames as they are stored, the upper left corner is bright."""
    picture = np.zeros((3, 48, 64), np.uint8)
    picture[:, :24, :32] = 255
    path = encode(tmp_path / "video.mp4", picture, rotation=degrees)
    height, width = (48, 64) if degrees == 180 else (64, 48)
    frame = read(path, height // 4, width // 4)[0]
    quarters = frame[:: height // 4 - 1, :: width // 4 - 1, 0].astype(int)
    assert quarters[corner] > 250
    assert quarters.sum() < 260


def test_a_turned_video_is_cut_as_it_is_shown(tmp_path):
    frames = moving_picture(3, 240, 320)
    unrotated = encode(tmp_path / "unrotated.mp4", frames)
    turned = encode(tmp_path / "turned.mp4", frames, rotation=90)
    assert np.array_equal(read(turned, 85, 64), np.rot90(read(unrotated, 64, 85), axes=(1, 2)))
    assert np.array_equal(read(turned, 32, 64), np.rot90(read(unrotated, 64, 32), axes=(1, 2)))


@pytest.mark.parametrize(("layout", "suffix"), [("gray", ".mkv"), ("bgr24", ".mov")])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(48, 64), (24, 32)], ids=["as large", "smaller"])
def test_frames_whose_lines_go_upwards_are_not_upside_down(tmp_path, layout, suffix, channels, size):
    picture = moving_picture(1, 48, 64)
    upside_down = encode(
        tmp_path / f"video{suffix}", picture[:, ::-1], codec="rawvideo", pix_fmt=layout, extradata=b"BottomUp\0"
    )
    assert decoded(upside_down)[0].planes[0].line_size < 0
    upright = encode(tmp_path / f"upright{suffix}", picture, codec="rawvideo", pix_fmt=layout)
    difference = read(upside_down, *size, channels).astype(int) - read(upright, *size, channels)
    assert np.abs(difference).max() <= 2


def yuv_frame(layout, matrix, full_range):
    """Bars of COLORS, converted by the formulas of BT.601 and BT.709: a frame [32, 256] of PyAV."""
    red, blue = matrix
    bars = COLORS.repeat(32, 0) / 255
    y = luma(bars, matrix)
    u, v = (bars[:, 2] - y) / (2 - 2 * blue), (bars[:, 0] - y) / (2 - 2 * red)
    bits = 10 if "10" in layout else 8
    most, unit = 2**bits - 1, 2 ** (bits - 8)
    if full_range:
        planes = [y * most, u * most + 128 * unit, v * most + 128 * unit]
    else:
        planes = [(16 + 219 * y) * unit, (128 + 224 * u) * unit, (128 + 224 * v) * unit]
    frame = av.VideoFrame(256, 32, layout)
    for plane, values in zip(frame.planes, planes, strict=True):
        line = values[:: 256 // plane.width].round().clip(0, most).astype("<u2" if bits > 8 else np.uint8)
        plane.update(line.tobytes().ljust(plane.line_size, b"\0") * plane.height)
    frame.colorspace = {BT_601: 5, BT_709: 1}[matrix]
    frame.color_range = 2 if full_range else 1
    return frame


CODINGS = [
    *itertools.product(
        [("ffv1", "yuv444p"), ("ffv1", "yuv420p"), ("ffv1", "yuv420p10le"), ("libx264", "yuv420p")],
        [BT_601, BT_709],
        [False, True],
    ),
    # JPEG has one matrix and one range.
    (("mjpeg", "yuvj420p"), BT_601, True),
]


@pytest.mark.parametrize(("coding", "matrix", "full_range"), CODINGS, ids=str)
def test_colors_and_grays_come_back_whatever_range_and_matrix(tmp_path, coding, matrix, full_range):
    codec, layout = coding
    options = {"libx264": {"qp": "1"}, "mjpeg": {"qmin": "1", "qmax": "1"}}.get(codec, {})
    path = encode(tmp_path / "video.mkv", [yuv_frame(layout, matrix, full_range)], codec=codec, options=options)
    # Only the middle of each bar counts, since chroma is mixed where bars meet.
    colors, grays = read(path, 16, 128)[0, 8, 8::16], read(path, 16, 128, channels=1)[0, 8, 8::16]
    assert np.abs(colors - COLORS).max() <= 3
    assert np.abs(grays[:, 0] - luma(COLORS, matrix)).max() <= 2
    assert grays[0] <= 1
    assert grays[1] >= 254


@pytest.mark.parametrize(
    ("codec", "layout"),
    [("ffv1", "gray"), ("ffv1", "gray10le"), ("ffv1", "bgr0"), ("ffv1", "gbrp10le"), ("libx264rgb", "rgb24")],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_grays_and_colors_come_back(tmp_path, codec, layout, channels):
    bars = np.broadcast_to(COLORS.repeat(32, 0).astype(np.uint8), (1, 32, 256, 3))
    options = {"qp": "0"} if codec == "libx264rgb" else {}
    path = encode(tmp_path / "video.mkv", bars, codec=codec, pix_fmt=layout, options=options)
    found = read(path, 16, 128, channels)[0, 8, 8::16]
    gray = channels == 1 or layout.startswith("gray")
    assert np.abs(found - (luma(COLORS)[:, None] if gray else COLORS)).max() <= 1.5


def test_a_matrix_that_is_reserved_is_taken_for_none():
    frame = yuv_frame("yuv420p", BT_601, full_range=False)
    expected = fitted(frame, 16, 128), fitted(frame, 16, 128, 1)
    frame.colorspace = 3
    assert np.array_equal(fitted(frame, 16, 128), expected[0])
    assert np.array_equal(fitted(frame, 16, 128, 1), expected[1])


def test_a_form_reaches_other_processes():
    frame_format = FrameFormat(64, 85, 3, stride=2, fps=12.5)
    assert pickle.loads(pickle.dumps(frame_format)) == frame_format
    assert frame_format.shape == (64, 85, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 64, 3), "at least one pixel, not 0 rows of 64"),
        ((64, -1, 3), "at least one pixel, not 64 rows of -1"),
        ((64, 64, 2), "1 or 3 channels, not 2"),
        ((64, 64, 3, 0), "at least 1, not 0"),
        ((64, 64, 3, 1, 0), "more than 0, not 0"),
        ((64, 64, 3, 1, float("nan")), "more than 0, not nan"),
        ((64, 64, 3, 1, float("inf")), "more than 0, not inf"),
    ],
)
def test_what_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FrameFormat(*values)
