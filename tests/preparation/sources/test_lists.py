"""Lists of videos, and the official splits of UCF-101."""

import os

import pytest

from tgan_fast.errors import InputError
from tgan_fast.preparation.sources import only_of_split, recognize


@pytest.fixture
def tree(tmp_path):
    """Four videos, three of them with UCF-101's names."""
    root = tmp_path / "UCF-101"
    for name in ("Archery/v_Archery_g01_c01", "Archery/v_Archery_g02_c01", "Bowling/v_Bowling_g01_c01"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.avi").write_bytes(b"")
    return root


def names(collection):
    return [video.name for video in collection.videos]


def test_a_train_list_chooses_its_videos(tmp_path, tree):
    split = tmp_path / "trainlist01.txt"
    split.write_text("Bowling/v_Bowling_g01_c01.avi 2\r\nArchery/v_Archery_g02_c01.avi 1\r\n")
    chosen = only_of_split(recognize(tree), split)
    assert names(chosen) == ["Archery/v_Archery_g02_c01.avi", "Bowling/v_Bowling_g01_c01.avi"]
    assert chosen.classes == ("Archery", "Bowling")
    assert chosen.description == "UCF-101: 3 video files, 2 of them in trainlist01.txt"


def test_a_test_list_has_no_class_numbers_and_files_may_lie_elsewhere(tmp_path, tree):
    split = tmp_path / "testlist01.txt"
    split.write_text("Bowling/v_Bowling_g01_c01.avi\n")
    (tmp_path / "flat").mkdir()
    (tree / "Bowling" / "v_Bowling_g01_c01.avi").rename(tmp_path / "flat" / "v_Bowling_g01_c01.avi")
    assert names(only_of_split(recognize(tmp_path / "flat"), split)) == ["v_Bowling_g01_c01.avi"]


def test_a_split_list_of_other_videos_is_refused(tmp_path, tree):
    split = tmp_path / "trainlist02.txt"
    split.write_text("Archery/v_Archery_g01_c01.avi 1\nDiving/v_Diving_g01_c01.avi 3\n")
    message = r"trainlist02.txt names 2 videos, of which the source lacks 1, such as Diving/v_Diving_g01_c01.avi"
    with pytest.raises(InputError, match=message):
        only_of_split(recognize(tree), split)
    with pytest.raises(InputError, match=r"cannot read .*nothing.txt: No such file"):
        only_of_split(recognize(tree), tmp_path / "nothing.txt")
    split.write_text("\n  \n# none\n")
    with pytest.raises(InputError, match=r"the list .*trainlist02.txt names no videos"):
        only_of_split(recognize(tree), split)
    split.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"trainlist02.txt is not a text file"):
        only_of_split(recognize(tree), split)


def test_a_list_of_ones_own_has_paths_and_perhaps_classes(tmp_path, tree):
    (tmp_path / "my video.mp4").write_bytes(b"12345")
    videos = tmp_path / "videos.txt"
    videos.write_text(
        "# mine\nmy video.mp4\n\nUCF-101/Archery/v_Archery_g01_c01.avi sport\nUCF-101/Bowling/v_Bowling_g01_c01.avi\n"
    )
    collection = recognize(videos)
    assert [(video.name, video.label, video.nbytes) for video in collection.videos] == [
        ("my video.mp4", "unclassified", 5),
        ("UCF-101/Archery/v_Archery_g01_c01.avi", "sport", 0),
        ("UCF-101/Bowling/v_Bowling_g01_c01.avi", "Bowling", 0),
    ]
    assert collection.description == "a list of 3 videos"


def test_numbers_are_classes_of_the_class_index(tmp_path, tree):
    (tree / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    videos = tree / "trainlist01.txt"
    videos.write_text("Bowling/v_Bowling_g01_c01.avi 2\nArchery/v_Archery_g01_c01.avi\n")
    collection = recognize(videos)
    assert [video.label for video in collection.videos] == ["Bowling", "Archery"]
    assert collection.classes == ("Archery", "Bowling")


def test_a_list_with_numbers_needs_the_class_index(tmp_path, tree):
    videos = tree / "trainlist01.txt"
    videos.write_text("Bowling/v_Bowling_g01_c01.avi 2\nArchery/v_Archery_g01_c01.avi\n")
    (tree / "classInd.txt").write_text("1 Archery\n")
    with pytest.raises(InputError, match="the class index has no class 2: is it the index of these videos"):
        recognize(videos)
    (tree / "classInd.txt").write_text("one Archery\n")
    with pytest.raises(InputError, match=r"line 1 of .*classInd.txt must be '1 NameOfTheClass'"):
        recognize(videos)


@pytest.mark.parametrize("index", ["1 Diving\n", "no index\n"])
def test_a_list_without_numbers_needs_no_class_index(tmp_path, tree, index):
    (tmp_path / "classInd.txt").write_text(index)
    videos = tmp_path / "videos.txt"
    videos.write_text("UCF-101/Bowling/v_Bowling_g01_c01.avi\nUCF-101/Archery/v_Archery_g01_c01.avi sport\n")
    collection = recognize(videos)
    assert [video.label for video in collection.videos] == ["Bowling", "sport"]
    assert collection.classes == ("Bowling", "sport")
    (notice,) = collection.notices
    assert notice.startswith("the class index is not used: ")


def test_lists_name_files_by_their_bytes(tmp_path):
    names = [b"\xff\xfe.mp4", "日本 é.mp4".encode(), b'M\xfcller\'s "1".mp4']
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"\n".join(names))
    collection = recognize(tmp_path / "list.txt")
    assert all(video.path.exists() for video in collection.videos)
    chosen = only_of_split(recognize(tmp_path), tmp_path / "list.txt")
    assert sorted(map(os.fsencode, (video.name for video in chosen.videos))) == sorted(names)


def test_an_official_list_far_from_its_videos_raises_an_error_with_the_remedy(tmp_path, tree):
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "trainlist01.txt").write_text("Archery/v_Archery_g01_c01.avi 1\n")
    message = r"the videos that .* names do not exist, .* or pass an official split list as --split and the"
    with pytest.raises(InputError, match=message):
        recognize(folder / "trainlist01.txt")


def test_a_video_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"")
    (tmp_path / "list.txt").write_text("1.mp4\n1.mp4\n")
    with pytest.raises(InputError, match=r"the source names 1.mp4 twice: leave one of them out"):
        recognize(tmp_path / "list.txt")
