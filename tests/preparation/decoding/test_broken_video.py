"""Videos that cannot be read completely are refused with a reason."""

import itertools
import os
import re

import av
import numpy as np
import pytest
from PIL import Image
from support.encoding import encode, moving_picture, numbered_frames

from tgan_fast.errors import UnreadableVideoError
from tgan_fast.preparation.decoding import FrameFormat, count_frames, read_video

FRAME_FORMAT = FrameFormat(24, 32, 3)

NO_VIDEO = "it is not a video, or its format is unknown"

INCOMPLETE = r"it is incomplete: (\d+) of about (\d+) frames are there"

PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"
LIST = "ffconcat version 1.0\nfile {}\n"


def refused(path, **options):
    """Return the reason why reading a file fails, and the number of frames read before that."""
    counts, reading = [], read_video(path, FRAME_FORMAT, **options)
    with pytest.raises(UnreadableVideoError) as caught:
        counts.extend(map(len, reading))
    assert re.fullmatch(r"[a-z][^\n]*[^\n. ]", str(caught.value))
    return str(caught.value), sum(counts)


def written(path, content):
    path.write_bytes(content)
    return path


def cut(path, share):
    """Write the first part of a file."""
    content = path.read_bytes()
    return written(path.with_name(f"cut{path.suffix}"), content[: int(len(content) * share)])


def damaged(path, share, nbytes=40):
    """Write the file with other bytes in one place."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * share)
    content[start : start + nbytes] = np.random.default_rng(0).bytes(nbytes)
    return written(path.with_name(f"damaged{path.suffix}"), content)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".gif", ".ts", ""])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it is empty"),
        (b"x", NO_VIDEO),
        (b"This is no video, but a text.\n" * 100, NO_VIDEO),
        (np.random.default_rng(0).bytes(100_000), NO_VIDEO),
        (bytes(100_000), NO_VIDEO),
    ],
    ids=["nothing", "one byte", "text", "noise", "zeros"],
)
def test_what_is_no_video(tmp_path, suffix, content, expected):
    path = written(tmp_path / f"file{suffix}", content)
    assert refused(path) == (expected, 0)
    with pytest.raises(UnreadableVideoError, match=expected):
        count_frames(path, FRAME_FORMAT)


def test_an_image_is_no_video(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(moving_picture(1, 48, 64)[0]).save(path)
    assert refused(path)[0] == NO_VIDEO
    assert refused(path.rename(tmp_path / "image.mp4"))[0] == NO_VIDEO


@pytest.mark.parametrize("cover", [False, True])
def test_sound_is_no_video_even_with_a_picture_on_its_cover(tmp_path, cover):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48_000)
        if cover:
            picture = container.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "rgb24"
            picture.disposition = int(av.stream.Disposition.attached_pic)
            container.mux(picture.encode(av.VideoFrame(64, 48, "rgb24")))
            container.mux(picture.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.sample_rate = 48_000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with av.open(str(path)) as container:
        assert len(container.streams.video) == cover
    assert refused(path)[0] == "it has no video stream"


def test_what_is_not_there_or_no_file(tmp_path):
    assert refused(tmp_path / "nothing.mp4")[0] == "it cannot be read: No such file or directory"
    assert refused(tmp_path / "no folder" / "nothing.mp4")[0] == "it cannot be read: No such file or directory"
    assert refused(tmp_path)[0] == "it cannot be read: Is a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path):
    path = encode(tmp_path / "video.mp4", numbered_frames(5))
    path.chmod(0)
    assert refused(path)[0] == "it cannot be read: Permission denied"


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt", ".mkv"])
@pytest.mark.parametrize(
    "text",
    [
        PLAYLIST,
        PLAYLIST.replace("{}", "file://{}"),
        LIST,
        LIST.replace("{}", "video.ts"),
        '<?xml version="1.0"?>\n<MPD type="static"><Period><BaseURL>{}</BaseURL></Period></MPD>\n',
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
    ids=["playlist", "playlist of addresses", "list", "list of names", "manifest", "session"],
)
def test_a_text_that_names_other_files_does_not_make_them_open(tmp_path, text, suffix):
    video = encode(tmp_path / "video.ts", numbered_frames(5))
    path = tmp_path / f"list{suffix}"
    path.write_text(text.format(video))
    assert refused(path)[0] == NO_VIDEO


def test_the_lists_above_are_such_that_ffmpeg_would_follow_them(tmp_path):
    video = encode(tmp_path / "video.ts", numbered_frames(5))
    for text in (PLAYLIST, LIST):
        (tmp_path / "list.m3u8").write_text(text.format(video.name))
        with av.open(str(tmp_path / "list.m3u8")) as container:
            assert len(list(container.decode(video=0))) == 5


def test_encrypted(tmp_path):
    how = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    for codec in ("libx264", "mpeg4"):
        path = encode(tmp_path / "video.mp4", numbered_frames(30), codec=codec, container_options=how)
        assert refused(path) == ("it is encrypted", 0)


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [(".avi", "it has no frames"), (".mp4", "it has no video stream"), (".mkv", NO_VIDEO)],
)
def test_a_header_alone_is_no_video(tmp_path, suffix, expected):
    path = tmp_path / f"video{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        container.start_encoding()
    assert refused(path)[0] == expected


def test_frames_that_need_others_cannot_be_decoded_alone(tmp_path):
    whole = encode(tmp_path / "whole.webm", numbered_frames(50), codec="libvpx-vp9")
    path = tmp_path / "tail.webm"
    with av.open(str(whole)) as given, av.open(str(path), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in itertools.islice(given.demux(video=0), 20, 50):
            assert not packet.is_keyframe
            packet.stream = stream
            made.mux(packet)
    assert refused(path)[0] == "none of its frames can be decoded"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_an_mp4_file_without_its_end_has_no_index(tmp_path, share):
    path = cut(encode(tmp_path / "video.mp4", numbered_frames(75)), share)
    expected = "its index is damaged or missing, as in a file that was cut off"
    assert refused(path)[0] == expected
    with pytest.raises(UnreadableVideoError, match=expected):
        count_frames(path, FRAME_FORMAT)


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        (".mp4", {"container_options": {"movflags": "faststart"}}),
        (".mp4", {"container_options": {"movflags": "faststart"}, "options": {"bf": "3"}, "audio": 5}),
        (".mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "container_options": {"movflags": "faststart"}}),
        (".avi", {"codec": "mpeg4"}),
        (".avi", {"codec": "mpeg4", "options": {"bf": "2"}, "audio": 3}),
        (".avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        (".avi", {"codec": "libx264"}),
        (".mkv", {}),
        (".mkv", {"codec": "ffv1"}),
        (".mkv", {"audio": 3}),
        (".webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        (".ivf", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    ],
    ids=str,
)
def test_a_file_that_was_cut_off_tells_how_much_is_there(tmp_path, suffix, how):
    # Noise gives frames of about the same size in bytes.
    frames = np.random.default_rng(0).integers(256, size=(100, 48, 64), dtype=np.uint8)
    whole = encode(tmp_path / f"video{suffix}", frames, **how)
    for share in (0.5, 0.7, 0.95):
        reason, count = refused(cut(whole, share))
        there, told = map(int, re.fullmatch(INCOMPLETE, reason).groups())
        assert told == pytest.approx(100, abs=5)
        assert there < 98
        assert count <= there
    assert refused(cut(whole, 0.6), threads=3)[0].startswith("it is incomplete: ")


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg", "prores_ks"])
def test_damage_in_the_middle(tmp_path, codec):
    frames = np.random.default_rng(0).integers(256, size=(100, 48, 64), dtype=np.uint8)
    pix_fmt = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
    whole = encode(tmp_path / "video.mov", frames, codec=codec, pix_fmt=pix_fmt)
    reason, count = refused(damaged(whole, 0.5, 4000))
    after = int(re.fullmatch(r"it is damaged after (\d+) frames", reason)[1])
    assert 30 < after < 70
    assert count <= after


def test_damage_at_the_beginning(tmp_path):
    path = encode(tmp_path / "video.mov", moving_picture(20, 48, 64), codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
    content = bytearray(path.read_bytes())
    content[first.pos : first.pos + first.size] = bytes(first.size)
    path.write_bytes(content)
    assert refused(path) == ("it is damaged after 0 frames", 0)


def test_damage_from_which_the_container_s_reader_does_not_find_back(tmp_path):
    frames = np.random.default_rng(0).integers(256, size=(100, 48, 64), dtype=np.uint8)
    options = {"deadline": "realtime", "cpu-used": "8"}
    whole = encode(tmp_path / "video.webm", frames, codec="libvpx-vp9", options=options)
    reason, count = refused(damaged(whole, 0.5, 4000))
    there, told = map(int, re.fullmatch(INCOMPLETE, reason).groups())
    assert told == pytest.approx(100, abs=5)
    assert count <= there < 60


def test_damage_that_a_decoder_hides(tmp_path):
    """Check the flag by which H.264 tells that it replaced lost pixels by those of another frame."""
    path = encode(tmp_path / "video.mkv", moving_picture(50, 96, 128), options={"bf": "0"})
    with av.open(str(path)) as container:
        packet = next(itertools.islice(container.demux(video=0), 30, None))
        middle = packet.pos + packet.size // 2
    content = bytearray(path.read_bytes())
    content[middle] ^= 255
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert [number for number, frame in enumerate(container.decode(video=0)) if frame.is_corrupt] == [30]
    assert refused(path)[0] == "it is damaged after 30 frames"


@pytest.mark.parametrize("sizes", [((48, 64), (24, 32)), ((48, 64), (64, 48)), ((48, 64), (48, 66))], ids=str)
@pytest.mark.parametrize("suffix", [".h264", ".ts"])
def test_frames_of_different_sizes(tmp_path, sizes, suffix):
    parts = [encode(tmp_path / f"{number}{suffix}", numbered_frames(20, *size)) for number, size in enumerate(sizes)]
    path = written(tmp_path / f"joined{suffix}", b"".join(part.read_bytes() for part in parts))
    (height, width), (other_height, other_width) = sizes
    expected = f"its frames have different sizes, {width}×{height} and then {other_width}×{other_height}"
    assert refused(path)[0] == expected


def test_nothing_is_printed(tmp_path, capfd):
    whole = encode(tmp_path / "video.avi", moving_picture(50, 48, 64), codec="mpeg4")
    capfd.readouterr()
    refused(damaged(whole, 0.6))
    refused(cut(whole, 0.7))
    assert capfd.readouterr() == ("", "")
