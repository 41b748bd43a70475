"""Decoding of real video files, encoded here, compared with direct decoding by PyAV."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from support.encoding import encode, moving_picture, numbered_frames, numbers_of

from tgan_fast.preparation.decoding import FrameFormat, count_frames, read_video
from tgan_fast.preparation.decoding.fit import Fitter

FRAME_FORMAT = FrameFormat(24, 32, 3)

# File suffix and encoding.
KINDS = {
    "H.264 in MP4": (".mp4", {}),
    "H.264 with B-frames and sound": (".mp4", {"options": {"bf": "3", "g": "12"}, "audio": 5}),
    "H.264 with open groups": (".mp4", {"options": {"bf": "3", "g": "12", "x264-params": "open-gop=1"}}),
    "H.264 in fragments": (".mp4", {"container_options": {"movflags": "frag_every_frame+empty_moov"}}),
    "H.264 in AVI with B-frames": (".avi", {"options": {"bf": "2"}}),
    "H.264 in Matroska with sound": (".mkv", {"audio": 5}),
    "H.264 in a transport stream": (".ts", {"options": {"bf": "2"}}),
    "H.264 in Flash": (".flv", {}),
    "H.264 without container": (".h264", {}),
    "H.265 with open groups": (".mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12"}}),
    "MPEG-1 in a program stream": (".mpg", {"codec": "mpeg1video"}),
    "MPEG-2 in a program stream": (".mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "MPEG-2 in MXF": (".mxf", {"codec": "mpeg2video"}),
    "MPEG-4 in AVI": (".avi", {"codec": "mpeg4"}),
    "MPEG-4 in AVI with B-frames and sound": (".avi", {"codec": "mpeg4", "options": {"bf": "2"}, "audio": 5}),
    "MPEG-4 in 3GP": (".3gp", {"codec": "mpeg4"}),
    "Motion JPEG in AVI": (".avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "Motion JPEG in QuickTime": (".mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "VP8 in WebM": (".webm", {"codec": "libvpx"}),
    "VP9 in WebM with sound": (".webm", {"codec": "libvpx-vp9", "audio": 1}),
    "VP9 in IVF": (".ivf", {"codec": "libvpx-vp9"}),
    "Windows Media": (".wmv", {"codec": "wmv2"}),
    "FFV1": (".mkv", {"codec": "ffv1"}),
    "GIF": (".gif", {"codec": "gif", "pix_fmt": "rgb8"}),
}
SOME = ["H.264 with B-frames and sound", "MPEG-4 in AVI with B-frames and sound", "VP9 in WebM with sound", "GIF"]


def encode_kind(folder, kind, frames, **changes):
    suffix, how = KINDS[kind]
    return encode(folder / f"video{suffix}", frames, **how, **changes)


def read(path, frame_format=FRAME_FORMAT, **options):
    return np.concatenate(list(read_video(path, frame_format, **options)))


def plainly_decoded(path):
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def fitted(frames, frame_format=FRAME_FORMAT):
    out = np.empty((len(frames), *frame_format.shape), np.uint8)
    fitter = Fitter()
    for frame, place in zip(frames, out, strict=True):
        fitter.fit(frame, place)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_read_once_and_in_order(tmp_path, kind):
    path = encode_kind(tmp_path, kind, numbered_frames(75))
    frames = read(path)
    assert frames.shape == (75, 24, 32, 3)
    assert numbers_of(frames) == list(range(75))
    assert np.array_equal(frames, fitted(plainly_decoded(path)))
    assert count_frames(path, FRAME_FORMAT) == pytest.approx(75, rel=0.03)


@pytest.mark.parametrize("fps", [8, Fraction(24000, 1001), 60])
@pytest.mark.parametrize("kind", ["H.264 in MP4", "MPEG-4 in AVI", "Motion JPEG in AVI", "VP9 in WebM with sound"])
def test_every_frame_is_read_at_any_rate(tmp_path, kind, fps):
    path = encode_kind(tmp_path, kind, numbered_frames(50), fps=fps)
    assert numbers_of(read(path)) == list(range(50))
    assert numbers_of(read(path, FrameFormat(24, 32, 3, fps=float(fps)))) == list(range(50))
    assert count_frames(path, FRAME_FORMAT) == pytest.approx(50, abs=1)


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [("mjpeg", ".avi", "yuvj420p"), ("ffv1", ".mkv", "yuv420p"), ("libx264", ".mp4", "yuv444p"),
     ("mpeg4", ".avi", "yuv420p"), ("libvpx-vp9", ".webm", "yuv420p")],
)  # fmt: skip
@pytest.mark.parametrize("size", [(241, 321), (5, 7), (17, 15)], ids=str)
def test_odd_sizes(tmp_path, codec, suffix, pix_fmt, size):
    frame_format = FrameFormat(8, 8, 3)
    path = encode(tmp_path / f"video{suffix}", moving_picture(10, *size), codec=codec, pix_fmt=pix_fmt)
    frames = read(path, frame_format)
    assert np.array_equal(frames, fitted(plainly_decoded(path), frame_format))
    assert len(frames) == 10


@pytest.mark.parametrize("kind", SOME)
def test_a_stride_takes_every_stride_th_frame_from_the_first_on(tmp_path, kind):
    path = encode_kind(tmp_path, kind, numbered_frames(50))
    for stride in (1, 2, 7, 49, 50, 1000):
        frame_format = FrameFormat(24, 32, 3, stride=stride)
        assert numbers_of(read(path, frame_format)) == list(range(0, 50, stride))
        assert count_frames(path, frame_format) == pytest.approx(len(range(0, 50, stride)), abs=1)


@pytest.mark.parametrize("kind", [*SOME, "MPEG-2 in a program stream", "H.264 in a transport stream"])
def test_frames_a_second_are_taken_by_time(tmp_path, kind):
    path = encode_kind(tmp_path, kind, numbered_frames(50))
    assert numbers_of(read(path, FrameFormat(24, 32, 3, fps=10))) == [k * 5 // 2 for k in range(20)]
    assert numbers_of(read(path, FrameFormat(24, 32, 3, stride=3, fps=10))) == [k * 5 // 2 for k in range(0, 20, 3)]
    assert numbers_of(read(path, FrameFormat(24, 32, 3, fps=40))) == [k * 5 // 8 for k in range(80)]
    assert count_frames(path, FrameFormat(24, 32, 3, stride=3, fps=10)) == pytest.approx(7, abs=1)


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [("libx264", ".mp4", "yuv420p"), ("libx264", ".mkv", "yuv420p"), ("libvpx-vp9", ".webm", "yuv420p"),
     ("mpeg4", ".avi", "yuv420p"), ("gif", ".gif", "rgb8")],
)  # fmt: skip
def test_frames_of_variable_rate_are_taken_by_time(tmp_path, codec, suffix, pix_fmt):
    # GIF counts time in hundredths of a second, and players slow down GIFs of more than 50 frames per second.
    times = np.array([0, *np.cumsum(np.random.default_rng(0).integers(2, 9, 99))]) / 100
    path = encode(tmp_path / f"video{suffix}", numbered_frames(100), codec=codec, pix_fmt=pix_fmt, times=times)
    assert numbers_of(read(path)) == list(range(100))
    numbers = numbers_of(read(path, FrameFormat(24, 32, 3, fps=12)))
    expected = [int(np.flatnonzero(times <= k / 12 + 1e-3)[-1]) for k in range(int(times[-1] * 12) + 1)]
    assert numbers[: len(expected)] == expected
    # The container guesses the last frame's duration.
    assert set(numbers[len(expected) :]) <= {99}
    assert len(numbers) <= len(expected) + 2


def test_a_pause_is_filled_with_the_frame_that_is_shown(tmp_path):
    times = [k / 25 + (10 if k >= 25 else 0) for k in range(50)]
    path = encode(tmp_path / "video.mp4", numbered_frames(50), times=times, options={"bf": "3"})
    assert numbers_of(read(path)) == list(range(50))
    numbers = numbers_of(read(path, FrameFormat(24, 32, 3, fps=25)))
    assert [(number, len(list(group))) for number, group in itertools.groupby(numbers)] == [
        *((number, 1) for number in range(24)),
        (24, 251),
        *((number, 1) for number in range(25, 50)),
    ]


@pytest.mark.parametrize("threads", [0, 4])
@pytest.mark.parametrize("kind", ["H.264 with open groups", "MPEG-4 in AVI", "VP9 in WebM with sound", "FFV1"])
def test_threads_change_nothing(tmp_path, kind, threads):
    path = encode_kind(tmp_path, kind, moving_picture(70, 96, 128))
    assert np.array_equal(read(path, threads=threads), read(path))


def test_batches_are_small_and_the_receiver_s_own(tmp_path):
    path = encode(tmp_path / "video.mp4", numbered_frames(150))
    expected = read(path)
    batches = []
    for batch in read_video(path, FRAME_FORMAT):
        batches.append(batch.copy())
        assert batch.flags.c_contiguous
        batch[:] = 99
    assert [len(batch) for batch in batches] == [64, 64, 22]
    assert np.array_equal(np.concatenate(batches), expected)


def test_reading_may_stop_early_and_closes_the_file(tmp_path):
    path = encode(tmp_path / "video.mp4", numbered_frames(150))
    reading = read_video(path, FRAME_FORMAT)
    assert numbers_of(next(reading)) == list(range(64))
    reading.close()
    with pytest.raises(StopIteration):
        next(reading)


def remuxed(source, target, *, skipped=0, shift=0.0):
    """Write the packets, without the first `skipped`, to another file with times shifted by `shift` seconds."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        old = given.streams.video[0]
        new = made.add_stream_from_template(old)
        for number, packet in enumerate(packet for packet in given.demux(old) if packet.size):
            if number >= skipped:
                packet.pts += round(shift / packet.time_base)
                packet.dts += round(shift / packet.time_base)
                packet.stream = new
                made.mux(packet)
    return target


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_what_an_edit_list_cuts_off_is_not_missing(tmp_path, codec):
    """Read files that begin at a time other than 0, as after a cut without a new encoding."""
    whole = encode(tmp_path / "whole.mp4", numbered_frames(75), codec=codec, options={"g": "12", "bf": "0"})
    path = remuxed(whole, tmp_path / "cut.mp4", shift=-0.72)
    frames = read(path)
    assert np.array_equal(frames, fitted(plainly_decoded(path)))
    assert numbers_of(frames) == list(range(18, 75))
    assert count_frames(path, FRAME_FORMAT) == pytest.approx(57, abs=1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_a_video_may_begin_late(tmp_path, suffix):
    whole = encode(tmp_path / f"whole{suffix}", numbered_frames(50), options={"bf": "0"})
    path = remuxed(whole, tmp_path / f"late{suffix}", shift=7)
    assert numbers_of(read(path)) == list(range(50))
    assert numbers_of(read(path, FrameFormat(24, 32, 3, fps=12.5))) == list(range(0, 50, 2))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_video_may_begin_in_an_open_group(tmp_path, codec):
    """Skip frames that depend on missing earlier frames, as all players do."""
    options = {
        "libx264": {"x264-params": "open-gop=1:keyint=12:bframes=3"},
        "libx265": {"x265-params": "log-level=none:open-gop=1:keyint=12:bframes=3"},
    }[codec]
    whole = encode(tmp_path / "whole.mp4", numbered_frames(75), codec=codec, options=options)
    with av.open(str(whole)) as container:
        keys = [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    path = remuxed(whole, tmp_path / "cut.mp4", skipped=keys[2])
    numbers = numbers_of(read(path))
    assert numbers == list(range(numbers[0], 75))
    assert numbers[0] <= keys[2] + 4


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_may_begin_in_the_middle(tmp_path, codec):
    whole = encode(tmp_path / "whole.ts", numbered_frames(75), codec=codec, options={"g": "10", "bf": "2"})
    content = whole.read_bytes()
    path = tmp_path / "tail.ts"
    path.write_bytes(content[len(content) // 2 // 188 * 188 :])
    numbers = numbers_of(read(path))
    assert numbers == list(range(numbers[0], 75))
    assert 20 < numbers[0] < 60


def test_joined_recordings_continue(tmp_path):
    """Join recordings whose times restart in the second part."""
    parts = [encode(tmp_path / f"{seed}.ts", numbered_frames(40)) for seed in range(2)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert numbers_of(read(path)) == [*range(40), *range(40)]
    assert numbers_of(read(path, FrameFormat(24, 32, 3, fps=25))) == [*range(40), *range(40)]


@pytest.mark.parametrize("between", [1, 2])
def test_packed_frames_of_old_avi_files(tmp_path, between):
    """DivX and Xvid put a frame and the first of those between it and the last into one packet, and later an empty one.

    FFmpeg takes the frames apart, but gives them each other's times.
    """
    options = {"bf": str(between), "g": "300", "sc_threshold": "1000000000"}
    plain = encode(tmp_path / "plain.avi", numbered_frames(61), codec="mpeg4", options=options)
    with av.open(str(plain)) as container:
        first, *others = (bytes(packet) for packet in container.demux(video=0) if packet.size)
    groups = [others[k : k + between + 1] for k in range(0, 60, between + 1)]
    start = first.index(b"\0\0\1\xb2")
    end = first.index(b"\0\0\1", start + 3)
    packets = [first[:start] + b"\0\0\1\xb2DivX503b1393p" + first[end:]]
    for reference, *rest in groups:
        packets += [reference + rest[0], *rest[1:], b"\0\0\1\xb6\x51\x80\x7f"]
    path = tmp_path / "packed.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        container.start_encoding()
        for number, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            container.mux(packet)
    times = [frame.time for frame in plainly_decoded(path)]
    assert times != sorted(times)
    assert numbers_of(read(path)) == list(range(61))
    assert numbers_of(read(path, FrameFormat(24, 32, 3, fps=25))) == list(range(61))
    assert count_frames(path, FRAME_FORMAT) == 61


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "ffv1"), (".mkv", "libx264"), (".mp4", "libx264")])
def test_the_last_frame_may_be_shown_for_long(tmp_path, suffix, codec):
    """Matroska records this only in the duration of the whole file, as if frames were missing."""
    short = encode(tmp_path / f"short{suffix}", numbered_frames(50), codec=codec)
    path = tmp_path / f"long{suffix}"
    with av.open(str(short)) as given, av.open(str(path), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        for packet in packets:
            packet.stream = stream
        packets[-1].duration = round(3 / packets[-1].time_base)
        made.mux(packets)
    with av.open(str(path)) as container:
        assert container.duration > 4.8e6
    assert numbers_of(read(path)) == list(range(50))


def test_sound_that_is_longer_than_the_video_does_not_count_as_missing_frames(tmp_path):
    """A file without a tag for the duration of its video has only its own duration, which includes sound."""
    path = encode(tmp_path / "video.mkv", numbered_frames(50), audio=5)
    content = path.read_bytes()
    assert b"DURATION" in content
    path.write_bytes(content.replace(b"DURATION", b"NOTHING!"))
    assert numbers_of(read(path)) == list(range(50))


def test_a_header_may_count_a_few_frames_too_many(tmp_path):
    path = encode(tmp_path / "video.avi", numbered_frames(250), codec="mpeg4")
    content = path.read_bytes()
    for told in (251, 252):
        path.write_bytes(with_frames_told(content, told))
        assert numbers_of(read(path)) == list(range(250))
    path = encode(tmp_path / "long.avi", np.zeros((600, 16, 16), np.uint8), codec="mpeg4")
    content = path.read_bytes()
    path.write_bytes(with_frames_told(content, 605))
    assert len(read(path)) == 600


def with_frames_told(content, told):
    """Return an AVI file whose header says that it has `told` frames."""
    place = content.index(b"strh") + 8 + 32
    return content[:place] + told.to_bytes(4, "little") + content[place + 4 :]


@pytest.mark.parametrize("name", ["with: a colon.mp4", "concat:a.mp4", "%03d.mp4", "ünï cödé.mp4", "-.mp4", "video"])
def test_names_are_names(tmp_path, monkeypatch, name):
    made = encode(tmp_path / "made.mp4", numbered_frames(5))
    made.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read(type(made)(name))) == 5


def test_titles_need_not_be_unicode(tmp_path):
    path = encode(tmp_path / "video.avi", numbered_frames(5), codec="mpeg4", title="Grosse")
    content = path.read_bytes()
    assert content.count(b"Grosse") == 1
    path.write_bytes(content.replace(b"Grosse", b"Gr\xf6\xdfe"))
    assert len(read(path)) == 5
