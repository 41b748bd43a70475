"""Folders of videos: which files are videos, their names, and their classes."""

import os

import numpy as np
import pytest
from PIL import Image

from tgan_fast.errors import InputError, UnreadableVideoError
from tgan_fast.preparation.sources import recognize
from tgan_fast.preparation.sources.media import ImageSequence, VideoFile

CLASSES = "1 Archery\r\n2 Bowling\r\n3 HandstandPushups\r\n"


def touch(root, *names):
    """Create files that are not real videos, since recognizing a source opens none."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))


def facts(collection):
    return [(video.name, video.label, video.group, video.scene) for video in collection.videos]


@pytest.fixture
def ucf(tmp_path):
    """Create a part of UCF-101 as it is distributed, with the class index beside it."""
    root = tmp_path / "UCF-101"
    touch(
        root,
        "Bowling/v_Bowling_g08_c01.avi",
        "Archery/v_Archery_g25_c07.avi",
        "Archery/v_Archery_g01_c02.avi",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
    )
    (tmp_path / "ucfTrainTestlist").mkdir()
    (tmp_path / "ucfTrainTestlist" / "classInd.txt").write_text(CLASSES)
    return root


def test_a_folder_of_ucf_101_gives_class_group_and_scene(ucf):
    collection = recognize(ucf)
    assert collection.description == "UCF-101: 4 video files"
    assert facts(collection) == [
        ("Archery/v_Archery_g01_c02.avi", "Archery", 1, 2),
        ("Archery/v_Archery_g25_c07.avi", "Archery", 25, 7),
        ("Bowling/v_Bowling_g08_c01.avi", "Bowling", 8, 1),
        ("HandstandPushups/v_HandStandPushups_g01_c01.avi", "HandstandPushups", 1, 1),
    ]
    assert collection.classes == ("Archery", "Bowling", "HandstandPushups")
    assert collection.channels == 3
    assert [video.nbytes for video in collection.videos] == [29, 29, 29, 47]


def test_the_class_index_has_classes_that_no_video_has(ucf):
    (ucf.parent / "ucfTrainTestlist" / "classInd.txt").write_text("1 Aaa\n2 Archery\n3 Bowling\n4 HandstandPushups\n")
    assert recognize(ucf).classes == ("Aaa", "Archery", "Bowling", "HandstandPushups")


def test_file_names_alone_give_the_class_where_there_are_no_folders(tmp_path):
    touch(tmp_path / "flat", "v_HandStandPushups_g01_c01.avi", "v_Archery_g01_c01.avi")
    (tmp_path / "flat" / "classInd.txt").write_text(CLASSES)
    assert [video.label for video in recognize(tmp_path / "flat").videos] == ["Archery", "HandstandPushups"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("1 Archery\n2 Bowling\n", "{} has no class HandstandPushups"),
        ("1 cat\n2 dog\n", "{} has no class Archery"),
        ("1 Archery\n3 Bowling\n", "line 2 of {} must be '2 NameOfTheClass', not '3 Bowling'"),
        ("Archery\n", "line 1 of {} must be '1 NameOfTheClass', not 'Archery'"),
        ("\0", "{} is not a text file in UTF-8, so it cannot be a list of videos"),
    ],
)
def test_a_class_index_of_other_videos_is_not_used(ucf, content, reason):
    index = ucf.parent / "ucfTrainTestlist" / "classInd.txt"
    index.write_text(content)
    collection = recognize(ucf)
    assert collection.classes == ("Archery", "Bowling", "HandstandPushups")
    assert collection.notices == (f"the class index is not used: {reason.format(index)}",)


def test_a_video_that_cannot_be_read_does_not_hide_the_class_index(ucf):
    touch(ucf, "Archery/v_Archery_g25_c07.avi.part", "Streams/v_Archery_g25_c08.h264")
    (ucf.parent / "ucfTrainTestlist" / "classInd.txt").write_text("1 Bowling\n2 Archery\n3 HandstandPushups\n")
    collection = recognize(ucf)
    assert (collection.description, collection.notices) == ("UCF-101: 6 video files", ())
    assert collection.classes == ("Bowling", "Archery", "HandstandPushups")


def test_folders_are_classes_in_any_other_tree(tmp_path):
    touch(tmp_path, "train/cat/1.mp4", "train/dog/a/2.MKV", "val/cat/3.webm", "4.mov")
    touch(tmp_path, "notes.txt", "train/cat/thumbnail.jpg", "train/cat/._1.mp4", ".cache/5.mp4")
    collection = recognize(tmp_path)
    assert [(video.name, video.label) for video in collection.videos] == [
        ("4.mov", "unclassified"),
        ("train/cat/1.mp4", "cat"),
        ("train/dog/a/2.MKV", "a"),
        ("val/cat/3.webm", "cat"),
    ]
    assert collection.classes == ("a", "cat", "unclassified")
    assert all(isinstance(video, VideoFile) for video in collection.videos)
    assert collection.notices == ("only the videos are prepared, not 1 .jpg",)
    assert collection.left_out == ()


def reasons(videos):
    return {video.name: video.reason for video in videos}


@pytest.mark.parametrize("name", ["1.h264", "1.264", "1.hevc", "1.H265"])
def test_the_reason_for_raw_streams_is_their_lack_of_times(tmp_path, name):
    touch(tmp_path, "cat/2.mp4", f"streams/{name}")
    stream = recognize(tmp_path).videos[1]
    with pytest.raises(UnreadableVideoError, match="does not tell when its frames are shown: put it into a container"):
        stream.digest()
    assert recognize(tmp_path).classes == ("cat",)


def test_an_unfinished_download_is_a_video_that_cannot_be_read(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4.part", "3.crdownload")
    with pytest.raises(UnreadableVideoError, match="its download is not finished"):
        recognize(tmp_path).videos[1].digest()
    assert len(recognize(tmp_path).videos) == 3


def test_files_of_other_kinds_are_named_unless_they_are_company(tmp_path):
    touch(tmp_path, "cat/1.mp4", "notes.md", "README", "cat/1.srt", "cat/1.wav", "labels.json", "SHA256SUMS", "run.sh")
    touch(tmp_path, "cat/Thumbs.db", ".DS_Store", "cat/features.npy", "cat/still.png", "train.h5", "a.npy")
    touch(tmp_path, "more.zip", "more.tar.gz", "more.rar", "live.m3u8", "table.pkl")
    (tmp_path / "video.xyz").write_bytes(b"\0\1\2")
    (tmp_path / "dQw4w9WgXcQ").write_bytes(b"\0\1\2")
    (tmp_path / "subtitles.srt").write_text("utf-16", "utf-16")
    collection = recognize(tmp_path)
    assert (collection.description, collection.classes) == ("a folder: 1 video file", ("cat",))
    assert collection.notices == ("only the videos are prepared, not 1 .h5, 2 .npy, 1 .png",)
    archive, unknown = (
        "it is an archive: unpack it, and give the folder",
        "its name does not end like that of a",
    )
    assert reasons(collection.left_out) == {
        "dQw4w9WgXcQ": f"{unknown} video",
        "live.m3u8": "it is a playlist, which only names other files: give the video itself",
        "more.rar": archive,
        "more.tar.gz": archive,
        "more.zip": archive,
        "table.pkl": "it is a pickle, and loading one runs code",
        "video.xyz": f"{unknown} video",
    }


def test_raw_streams_beside_arrays_and_images_are_named(tmp_path):
    touch(tmp_path / "images", "1.png", "2.h264")
    assert list(reasons(recognize(tmp_path / "images").left_out)) == ["2.h264"]
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "1.npy", np.zeros((5, 8, 9), np.uint8))
    touch(tmp_path / "arrays", "2.h264", "3.png")
    collection = recognize(tmp_path / "arrays")
    assert collection.notices == ("only the arrays are prepared, not 1 .png",)
    assert list(reasons(collection.left_out)) == ["2.h264"]


ODD = [
    b"\xff",
    b"a\nb\r",
    b"\x1b[31m",
    "e\u0301 \u202eRTL \u05d0".encode(),
    b"'\"`$(x)",
    b"x" * 250,
    "²".encode(),
    b"\xed\xb3\xbf",
]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_names_are_any_bytes(tmp_path, odd):
    odd = os.fsdecode(odd)
    touch(tmp_path, f"{odd}/{odd}.mp4")
    (video,) = recognize(tmp_path).videos
    assert (video.name, video.label) == (f"{odd}/{odd}.mp4", odd)
    assert video.path.exists()
    touch(tmp_path / "images", f"{odd}1.png", f"{odd}2.png")
    assert len(recognize(tmp_path / "images").videos[0].paths) == 2


def test_without_folders_there_are_no_classes(tmp_path):
    touch(tmp_path, "2.gif", "1.avi")
    collection = recognize(tmp_path)
    assert [(video.name, video.label) for video in collection.videos] == [("1.avi", None), ("2.gif", None)]
    assert collection.classes == ()


def test_pipes_are_no_videos_and_broken_links_are_reported(tmp_path):
    touch(tmp_path, "1.mp4")
    os.mkfifo(tmp_path / "2.mp4")
    os.mkfifo(tmp_path / "3.xyz")
    (tmp_path / "4.mp4").symlink_to(tmp_path / "nothing")
    assert [video.name for video in recognize(tmp_path).videos] == ["1.mp4", "4.mp4"]
    with pytest.raises(InputError, match=r"2.mp4 is neither a file nor a folder"):
        recognize(tmp_path / "2.mp4")


def test_a_link_that_leads_back_does_not_go_on_for_ever(tmp_path):
    touch(tmp_path / "root", "cat/1.mp4")
    touch(tmp_path / "elsewhere", "2.mp4")
    (tmp_path / "root" / "cat" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    assert [video.name for video in recognize(tmp_path / "root").videos] == ["cat/1.mp4", "dog/2.mp4"]


def write_images(folder, names, size=(70, 66)):
    folder.mkdir(parents=True)
    for level, name in enumerate(names):
        Image.new("RGB", size, (level, 0, 255 - level)).save(folder / name)


def test_folders_of_images_are_videos_in_the_order_of_their_numbers(tmp_path):
    root = tmp_path / "images"
    write_images(root / "cat" / "first", [f"frame{i}.png" for i in (10, 9, 2)])
    write_images(root / "second", [f"{i}.bmp" for i in range(3)])
    collection = recognize(root)
    assert [(video.name, video.label) for video in collection.videos] == [
        ("cat/first", "cat"),
        ("second", "unclassified"),
    ]
    first = collection.videos[0]
    assert isinstance(first, ImageSequence)
    assert [path.name for path in first.paths] == ["frame2.png", "frame9.png", "frame10.png"]
    assert first.nbytes == sum(path.stat().st_size for path in first.paths)


def test_a_folder_with_images_of_its_own_is_one_video(tmp_path):
    write_images(tmp_path / "walk", ["1.png", "2.png"])
    (video,) = recognize(tmp_path / "walk").videos
    assert (video.name, video.label) == ("walk", None)


def test_folders_of_arrays_have_the_videos_of_all_of_them(tmp_path):
    (tmp_path / "dog").mkdir()
    np.save(tmp_path / "dog" / "one.npy", np.zeros((5, 8, 9), np.uint8))
    np.save(tmp_path / "many.npy", np.zeros((2, 5, 8, 9, 1), np.uint8))
    (tmp_path / "broken.npy").write_bytes(b"not an array")
    collection = recognize(tmp_path)
    assert [(video.name, video.label) for video in collection.videos] == [
        ("broken.npy", "unclassified"),
        ("dog/one.npy", "dog"),
        ("many.npy/00000", "unclassified"),
        ("many.npy/00001", "unclassified"),
    ]
    assert collection.channels == 1
    with pytest.raises(UnreadableVideoError, match=r"cannot read the array in .*broken.npy"):
        collection.videos[0].digest()


def test_the_axes_of_arrays_in_a_folder_are_asked_for(tmp_path):
    np.save(tmp_path / "1.npy", np.zeros((2, 5, 8, 9), np.uint8))
    np.save(tmp_path / "2.npy", np.zeros((2, 5, 8, 9, 1), np.uint8))
    with pytest.raises(InputError, match=r"1.npy holds uint8 \[2, 5, 8, 9\], whose axes may be NTHW or TNHW"):
        recognize(tmp_path)
    collection = recognize(tmp_path, "NTHW")
    assert [video.name for video in collection.videos] == ["1.npy/00000", "1.npy/00001", "2.npy/00000", "2.npy/00001"]


def test_an_empty_folder_raises_an_error_that_lists_what_was_looked_for(tmp_path):
    touch(tmp_path, "readme.txt", "sub/data.csv")
    with pytest.raises(
        InputError, match=r"no videos in .*: looked at 2 files for videos \(.*\.avi .*\), arrays \(.npy"
    ):
        recognize(tmp_path)
    with pytest.raises(InputError, match=r"there is no .*nothing"):
        recognize(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"the videos that .*readme.txt names do not exist"):
        recognize(tmp_path / "readme.txt")
    (tmp_path / "sub" / "1.h264").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"looked at 3 files .*; .*1\.h264: a raw stream does not tell when its frames"
    ):
        recognize(tmp_path)
    for name in ("1.tar.gz", "1.RAR", "1.7z"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(
            InputError, match=f"{name} cannot be prepared: it is an archive: unpack it, and give the fo"
        ):
            recognize(tmp_path / name)
    (tmp_path / "file.xyz").write_text("")
    with pytest.raises(InputError, match=r"file.xyz is of no known kind: give a folder, a list"):
        recognize(tmp_path / "file.xyz")
    (tmp_path / "conf.pkl").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a pickle, and loading one runs code: give the .h5 file"):
        recognize(tmp_path / "conf.pkl")


def test_a_clip_store_is_not_prepared_again(tmp_path):
    (tmp_path / "index.jsonl").write_text("")
    with pytest.raises(InputError, match=r"is a clip store already: python -m tgan_fast.train --data .* uses it"):
        recognize(tmp_path)
