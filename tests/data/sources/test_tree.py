"""Folders of videos: which files are videos, what they are called, and which class they have."""

import numpy as np
import pytest
from PIL import Image

from tgan_fast.data.sources import recognise
from tgan_fast.data.sources.files import ImageSequence, VideoFile
from tgan_fast.errors import InputError, UnreadableVideoError

CLASSES = "1 Archery\r\n2 Bowling\r\n3 HandstandPushups\r\n"


def touch(root, *names):
    """Recognising opens no videos."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))


def facts(collection):
    return [(video.name, video.label, video.group, video.scene) for video in collection.videos]


@pytest.fixture
def ucf(tmp_path):
    """A part of UCF-101 as it is distributed, with the class index beside it."""
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


def test_a_tree_of_ucf_101_tells_class_group_and_scene(ucf):
    collection = recognise(ucf)
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
    assert recognise(ucf).classes == ("Aaa", "Archery", "Bowling", "HandstandPushups")


def test_file_names_alone_tell_the_class_where_there_are_no_folders(tmp_path):
    touch(tmp_path / "flat", "v_HandStandPushups_g01_c01.avi", "v_Archery_g01_c01.avi")
    (tmp_path / "flat" / "classInd.txt").write_text(CLASSES)
    assert [video.label for video in recognise(tmp_path / "flat").videos] == ["Archery", "HandstandPushups"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 Archery\n2 Bowling\n", "the class index has no class HandstandPushups: is it the one of these videos"),
        ("1 Archery\n3 Bowling\n", r"line 2 of .*classInd.txt must be '2 NameOfTheClass', not '3 Bowling'"),
        ("Archery\n", r"line 1 of .*classInd.txt must be '1 NameOfTheClass', not 'Archery'"),
    ],
)
def test_another_class_index_is_refused(ucf, content, message):
    (ucf.parent / "ucfTrainTestlist" / "classInd.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        recognise(ucf)


def test_folders_are_classes_in_any_other_tree(tmp_path):
    touch(tmp_path, "train/cat/1.mp4", "train/dog/a/2.MKV", "val/cat/3.webm", "4.mov")
    touch(tmp_path, "notes.txt", "train/cat/thumbnail.jpg", "train/cat/._1.mp4", ".cache/5.mp4")
    collection = recognise(tmp_path)
    assert [(video.name, video.label) for video in collection.videos] == [
        ("4.mov", "unclassified"),
        ("train/cat/1.mp4", "cat"),
        ("train/dog/a/2.MKV", "a"),
        ("val/cat/3.webm", "cat"),
    ]
    assert collection.classes == ("a", "cat", "unclassified")
    assert all(isinstance(video, VideoFile) for video in collection.videos)


def test_without_folders_there_are_no_classes(tmp_path):
    touch(tmp_path, "2.gif", "1.avi")
    collection = recognise(tmp_path)
    assert [(video.name, video.label) for video in collection.videos] == [("1.avi", None), ("2.gif", None)]
    assert collection.classes == ()


def test_a_link_that_leads_back_does_not_go_on_for_ever(tmp_path):
    touch(tmp_path / "root", "cat/1.mp4")
    touch(tmp_path / "elsewhere", "2.mp4")
    (tmp_path / "root" / "cat" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    assert [video.name for video in recognise(tmp_path / "root").videos] == ["cat/1.mp4", "dog/2.mp4"]


def write_images(folder, names, size=(70, 66)):
    folder.mkdir(parents=True)
    for level, name in enumerate(names):
        Image.new("RGB", size, (level, 0, 255 - level)).save(folder / name)


def test_folders_of_images_are_videos_in_the_order_of_their_numbers(tmp_path):
    root = tmp_path / "images"
    write_images(root / "cat" / "first", [f"frame{i}.png" for i in (10, 9, 2)])
    write_images(root / "second", [f"{i}.bmp" for i in range(3)])
    collection = recognise(root)
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
    (video,) = recognise(tmp_path / "walk").videos
    assert (video.name, video.label) == ("walk", None)


def test_folders_of_arrays_have_the_videos_of_all_of_them(tmp_path):
    (tmp_path / "dog").mkdir()
    np.save(tmp_path / "dog" / "one.npy", np.zeros((5, 8, 9), np.uint8))
    np.save(tmp_path / "many.npy", np.zeros((2, 5, 8, 9), np.uint8))
    (tmp_path / "broken.npy").write_bytes(b"not an array")
    collection = recognise(tmp_path)
    assert [(video.name, video.label) for video in collection.videos] == [
        ("broken.npy", "unclassified"),
        ("dog/one.npy", "dog"),
        ("many.npy/00000", "unclassified"),
        ("many.npy/00001", "unclassified"),
    ]
    assert collection.channels == 1
    with pytest.raises(UnreadableVideoError, match=r"cannot read the array in .*broken.npy"):
        collection.videos[0].digest()


def test_where_there_is_nothing_it_is_told_what_was_looked_for(tmp_path):
    touch(tmp_path, "readme.txt", "sub/data.csv")
    with pytest.raises(
        InputError, match=r"no videos in .*: looked at 2 files for videos \(.*\.avi .*\), arrays \(.npy"
    ):
        recognise(tmp_path)
    with pytest.raises(InputError, match=r"there is no .*nothing"):
        recognise(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"readme.txt names no videos|none of the"):
        recognise(tmp_path / "readme.txt")
    (tmp_path / "file.xyz").write_text("")
    with pytest.raises(InputError, match=r"file.xyz is nothing that is known: give a folder, a list"):
        recognise(tmp_path / "file.xyz")
    (tmp_path / "conf.pkl").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a pickle, and loading one runs code: give the .h5 file"):
        recognise(tmp_path / "conf.pkl")


def test_a_clip_store_is_not_prepared_again(tmp_path):
    (tmp_path / "index.jsonl").write_text("")
    with pytest.raises(InputError, match=r"is a clip store already: python -m tgan_fast.train --data .* uses it"):
        recognise(tmp_path)
