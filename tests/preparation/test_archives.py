"""ZIP and TAR archives: they are prepared like the folder that they contain, and hostile ones do no harm."""

import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image
from support.encoding import encode, moving_picture

from tgan_fast.data.prepared_videos import read_videos
from tgan_fast.errors import InputError
from tgan_fast.preparation import archives, prepare
from tgan_fast.preparation.decoding import FrameFormat
from tgan_fast.preparation.sources import only_of_split, recognize

FRAME_FORMAT = FrameFormat(16, 16, 3)
CODECS = {".mp4": "libx264", ".avi": "mpeg4", ".mkv": "libx264", ".mpg": "mpeg2video", ".y4m": "rawvideo"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a folder of videos in several formats, whole and cut off, with other files beside them."""
    root = tmp_path_factory.mktemp("tree") / "data"
    for number, (suffix, codec) in enumerate(CODECS.items()):
        path = root / ("cat", "dog")[number % 2] / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, moving_picture(20, 48, 64, number), codec=codec)
        path.with_name(f"cut{path.name}").write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    (root / "cat" / "._0.mp4").write_bytes(b"\0")
    (root / "cat" / "more.zip").write_bytes(b"PK")
    (root / "notes.txt").write_text("notes")
    (root / "empty.mp4").write_bytes(b"")
    return root


def store_of(source, folder):
    """Prepare a source, and return the files of the store by name."""
    prepare(recognize(source), folder, FRAME_FORMAT)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def skipped(store):
    rows = map(json.loads, store["skipped.jsonl"].decode().splitlines())
    return {row["video"]: row["reason"] for row in rows}


def pack(root, path, top=""):
    """Pack the files of a folder into a ZIP or TAR archive; the ending `.stored.zip` means without compression."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for file in files:
                archive.add(file, top + str(file.relative_to(root)))
    else:
        method = zipfile.ZIP_STORED if ".stored" in path.suffixes else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for file in files:
                archive.write(file, top + str(file.relative_to(root)))
    return path


def tar_of(path, *members):
    """Write a TAR archive of pairs of a TarInfo and its data."""
    with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def info(name, kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def names(source):
    return [video.name for video in recognize(source).videos]


@pytest.fixture
def video(tree):
    return (tree / "cat" / "0.mp4").read_bytes()


@pytest.mark.parametrize("name", ["data.tar", "data.zip", "data.stored.zip", "archive.of.no.kind"])
@pytest.mark.parametrize("top", ["", "data/", "/", "./data/"])
def test_the_store_is_that_of_the_unpacked_folder_byte_for_byte(tree, tmp_path, name, top):
    archive = pack(tree, tmp_path / name, top)
    expected = store_of(tree, tmp_path / "expected")
    assert len(skipped(expected)) >= 4
    assert store_of(archive, tmp_path / "actual") == expected
    assert recognize(archive).description == "an archive: 11 video files"
    # Everything is known when the preparation is repeated, from whichever source.
    assert prepare(recognize(archive), tmp_path / "expected", FRAME_FORMAT).stored == 0


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize("kind", ["png", "tif", "bmp"])
def test_images_become_the_same_videos_in_natural_order(tmp_path, suffix, kind):
    for number, frame in enumerate(moving_picture(12, 20, 24)):
        for folder in ("cat/a", "cat/b", "."):
            path = tmp_path / "data" / folder / f"{number}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path, **({"compression": "tiff_lzw"} if kind == "tif" else {}))
    expected = store_of(tmp_path / "data", tmp_path / "expected")
    assert names(tmp_path / "data") == ["data", "cat/a", "cat/b"]
    for top in ("", "data/"):
        archive = pack(tmp_path / "data", tmp_path / f"data{suffix}", top)
        assert store_of(archive, tmp_path / f"actual{len(top)}") == expected


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_ucf_101_has_the_classes_of_the_index_in_or_beside_the_archive(tmp_path, suffix):
    root, index = tmp_path / "all", "1 Bowling\n2 Archery\n"
    for name in ("Archery/v_Archery_g01_c02.avi", "Bowling/v_Bowling_g08_c01.avi"):
        (root / "UCF-101" / name).parent.mkdir(parents=True)
        (root / "UCF-101" / name).write_bytes(b"x")
    archive = pack(root, tmp_path / f"ucf{suffix}")
    assert recognize(archive).classes == ("Archery", "Bowling")
    (tmp_path / "classInd.txt").write_text(index)
    assert recognize(archive).classes == ("Bowling", "Archery")
    (tmp_path / "classInd.txt").unlink()
    (root / "ucfTrainTestlist").mkdir()
    (root / "ucfTrainTestlist" / "classInd.txt").write_text(index)
    collection = recognize(pack(root, archive))
    assert collection.classes == ("Bowling", "Archery")
    assert [(video.label, video.group, video.scene) for video in collection.videos] == [
        ("Archery", 1, 2),
        ("Bowling", 8, 1),
    ]
    (tmp_path / "trainlist01.txt").write_text("Archery/v_Archery_g01_c02.avi 2\n")
    (chosen,) = only_of_split(collection, tmp_path / "trainlist01.txt").videos
    assert chosen.scene == 2


def test_a_damaged_class_index_in_an_archive_is_not_used(tmp_path):
    with zipfile.ZipFile(tmp_path / "ucf.zip", "w") as archive:
        archive.writestr("classInd.txt", "1 Archery\n")
        archive.writestr("UCF-101/v_Archery_g01_c02.avi", b"x")
    content = (tmp_path / "ucf.zip").read_bytes()
    (tmp_path / "ucf.zip").write_bytes(content.replace(b"1 Archery", b"2 Archery"))
    (notice,) = recognize(tmp_path / "ucf.zip").notices
    assert notice.startswith("the class index is not used: cannot read ")
    assert notice.endswith("ucf.zip/classInd.txt: its data in the archive are damaged (bad CRC-32)")


@pytest.mark.parametrize("name", ["data.zip", "data.stored.zip"])
def test_a_damaged_member_is_skipped_and_the_others_are_stored(tree, tmp_path, name):
    archive = pack(tree, tmp_path / name)
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as members:
        middle = members.getinfo("cat/0.mp4").header_offset + 200
        header = members.getinfo("dog/1.avi").header_offset
    content[middle] ^= 255
    content[header] ^= 255
    archive.write_bytes(content)
    store = store_of(archive, tmp_path / "store")
    assert skipped(store)["cat/0.mp4"].startswith("it cannot be read: its data in the archive are damaged")
    assert skipped(store)["dog/1.avi"] == "it cannot be read: its place in the archive is damaged"
    assert b'"cat/2.mkv"' in store["index.jsonl"]


def test_a_member_that_grows_absurdly_is_skipped(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.avi", bytes(archives._SMALL + 1))
    reasons = skipped(store_of(tmp_path / "bomb.zip", tmp_path / "store"))
    assert reasons["bomb.avi"].startswith("it cannot be read: it grows from ")


@pytest.mark.parametrize("wrong", [10, 1 << 20])
def test_a_wrong_size_in_the_list_of_members_is_damage(tree, tmp_path, wrong):
    archive = pack(tree, tmp_path / "data.zip")
    collection = recognize(archive)
    (video,) = [video for video in collection.videos if video.name == "cat/0.mp4"]
    content = archive.read_bytes()
    size = video.nbytes.to_bytes(4, "little")
    central = content.rindex(b"cat/0.mp4") - 22
    assert content[central : central + 4] == size
    archive.write_bytes(content[:central] + wrong.to_bytes(4, "little") + content[central + 4 :])
    reason = "its data in the archive are damaged" if wrong < video.nbytes else "its data in the archive are incomplete"
    assert skipped(store_of(archive, tmp_path / "store"))["cat/0.mp4"].startswith(f"it cannot be read: {reason}")


def test_a_compression_method_that_python_lacks_is_named_as_the_reason(tree, tmp_path):
    archive = pack(tree, tmp_path / "data.zip")
    content = archive.read_bytes()
    method = content.rindex(b"cat/0.mp4") - 36
    assert content[method : method + 2] == zipfile.ZIP_DEFLATED.to_bytes(2, "little")
    archive.write_bytes(content[:method] + (9).to_bytes(2, "little") + content[method + 2 :])
    assert skipped(store_of(archive, tmp_path / "store"))["cat/0.mp4"] == (
        "it cannot be read: its compression method is not supported: unpack the archive, and give the folder"
    )


def test_paths_links_and_devices_do_no_harm(tmp_path, video):
    archive = tar_of(
        tmp_path / "hostile.tar",
        (info("../up.mp4"), video),
        (info("/absolute/a.mp4"), video),
        (info("cat/twice.mp4"), b"earlier"),
        (info("cat/./twice.mp4"), video),
        (info("cat/hard.mp4", tarfile.LNKTYPE, "cat/twice.mp4"), b""),
        (info("cat/nothing.mp4", tarfile.LNKTYPE, "/etc/passwd"), b""),
        (info("cat/soft.mp4", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (info("cat/pipe.mp4", tarfile.FIFOTYPE), b""),
        (info("cat/device.mp4", tarfile.CHRTYPE), b""),
        (info("__MACOSX/cat/._twice.mp4"), b"\0"),
        (info(".hidden/b.mp4"), video),
        (info("cat/nested.tar"), b"\0"),
    )
    before = sorted(tmp_path.rglob("*"))
    collection = recognize(archive)
    assert names(archive) == ["absolute/a.mp4", "cat/hard.mp4", "cat/twice.mp4"]
    link = "it is a link: pack the file itself, as tar does with --dereference"
    assert {video.name: video.reason for video in collection.left_out} == {
        "../up.mp4": "its path leads out of the archive",
        "cat/nested.tar": "it is an archive: unpack it, and give the folder",
        "cat/nothing.mp4": link,
        "cat/soft.mp4": link,
    }
    store = store_of(archive, tmp_path / "store")
    # 20 frames each: the later file of the same path counts, and the hard link has its content.
    assert prepare(collection, tmp_path / "store", FRAME_FORMAT).known == 3
    assert store["index.jsonl"].count(b'"length":20') + store["index.jsonl"].count(b'"length": 20') == 3
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "store" not in (path, path.parent)] == before


def test_duplicates_links_and_folders_in_a_zip(tmp_path, video):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a/cat/", b"")
        archive.writestr("a/cat/1.mp4", b"earlier")
        archive.writestr("a/cat/1.mp4", video)
        link = zipfile.ZipInfo("a/cat/link.mp4")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        windows = zipfile.ZipInfo("a\\dog\\2.mp4")
        windows.create_system = 0
        archive.writestr(windows, video)
        archive.writestr("__MACOSX/a/cat/._1.mp4", b"\0")
    collection = recognize(path)
    assert [(video.name, video.label) for video in collection.videos] == [("cat/1.mp4", "cat"), ("dog/2.mp4", "dog")]
    assert [video.name for video in collection.left_out] == ["cat/link.mp4"]
    assert prepare(collection, tmp_path / "store", FRAME_FORMAT).stored == 2


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs the program zip")
def test_names_of_any_bytes_are_those_of_the_folder(tmp_path, video):
    root = tmp_path / "data"
    for name in (b"d\xffg/\xff.mp4", "日本/é.mp4".encode(), b"plain/1.mp4"):
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True)
        path.write_bytes(video)
    subprocess.run(["zip", "-qr", tmp_path / "data.zip", "."], cwd=root, check=True)
    with tarfile.open(tmp_path / "data.tar", "w", encoding="utf-8", errors="surrogateescape") as archive:
        archive.add(root, "data")
    expected = store_of(root, tmp_path / "expected")
    assert store_of(tmp_path / "data.tar", tmp_path / "tar") == expected
    assert store_of(tmp_path / "data.zip", tmp_path / "zip") == expected


def test_an_archive_that_changes_after_it_was_listed_is_noticed(tree, tmp_path, video):
    archive = pack(tree, tmp_path / "data.tar")
    collection = recognize(archive)
    os.utime(archive, (1, 1))
    result = prepare(collection, tmp_path / "listed", FRAME_FORMAT)
    reason = "it cannot be read: the archive has changed since its files were listed"
    assert {video.reason for video in result.skipped} == {reason}
    store_of(archive, tmp_path / "store")
    changed = tar_of(tmp_path / "changed.tar", (info("cat/0.mp4"), video + b"\0"), (info("a.txt"), b"a"))
    with pytest.raises(InputError, match=r"cat/0.mp4 has changed since it was stored in .*: choose another folder"):
        prepare(recognize(changed), tmp_path / "store", FRAME_FORMAT)


def test_a_file_reads_like_its_part_of_the_archive(tmp_path):
    content = np.random.default_rng(0).bytes(100_000)
    path = tar_of(tmp_path / "data.tar", (info("a.mp4"), content), (info("b.mp4"), b"other"))
    file = pickle.loads(pickle.dumps(archives.open_archive(path).joinpath("a.mp4")))
    with file.open("rb") as opened:
        assert opened.seek(-10, os.SEEK_END) == len(content) - 10
        assert opened.read(100) == content[-10:]
        assert opened.read(1) == b""
        opened.seek(50_000)
        assert opened.read(5) == content[50_000:50_005]
        with pytest.raises(OSError, match="Invalid argument"):
            opened.seek(-1_000_000, os.SEEK_CUR)


def encrypted_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.mp4", b"secret")
    content = bytearray(path.read_bytes())
    # The flags in the header and in the list of members.
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def zip_of(path, *members):
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, b"\0" * 2000)


def cut(path, make, *members):
    make(path, *members)
    path.write_bytes(path.read_bytes()[:1500])


def damaged_tar(path):
    tar_of(path, (info("1.mp4"), b"x" * 1024), (info("2.mp4"), b"x"))
    content = bytearray(path.read_bytes())
    content[1536] ^= 255
    path.write_bytes(content)


def tar_that_leads_back(path):
    """Write a TAR archive whose second header has a size of -1024: the next header would be the first one."""
    member = info("1.mp4")
    headers = [member.tobuf()]
    member.size = -1024
    path.write_bytes(b"".join([*headers, member.tobuf(tarfile.GNU_FORMAT), bytes(1024)]))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.zip", encrypted_zip, r"a.zip is encrypted: unpack it with its password, and give the folder"),
        (
            "a.zip",
            lambda path: cut(path, zip_of, "1.mp4"),
            r"a.zip is damaged or incomplete \(File is not a zip file\)",
        ),
        (
            "a.tar",
            lambda path: cut(path, tar_of, (info("1.mp4"), b"x" * 4000)),
            r"a.tar is damaged or incomplete \(une",
        ),
        (
            "a.tar",
            damaged_tar,
            r"a.tar is damaged or incomplete \(bad header at byte 1,536\): copy or download it again",
        ),
        ("a.tar", tar_that_leads_back, r"a.tar is damaged or incomplete \(bad header at byte 512\): copy or"),
        ("a.tar", lambda path: path.write_text("a diary" * 100), r"the archive .*a.tar is damaged or incomplete \("),
        ("a.zip", zip_of, r"no videos in .*a.zip: looked at 0 files"),
        ("a.tar", tar_of, r"no videos in .*a.tar: looked at 0 files"),
        (
            "a.zip",
            lambda path: zip_of(path, "notes.xyz", "b.zip"),
            r"no videos in .*looked at 2 files .*b.zip: it is an a",
        ),
        (
            "a.zip",
            lambda path: zip_of(path, "a.npy", "b.png"),
            r"arrays are not read from archives such as .*a.zip: unpa",
        ),
    ],
    ids=range(10),
)
def test_archives_that_cannot_be_prepared_are_refused_in_one_sentence(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        recognize(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mode", "program"), [("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")])
def test_compressed_tars_are_refused_with_the_remedy(tmp_path, mode, program):
    with tarfile.open(tmp_path / "data", f"w:{mode}") as archive:
        archive.addfile(info("1.mp4"))
    with pytest.raises(InputError, match=f"data is compressed as a whole, .*: decompress it with {program}, and give"):
        recognize(tmp_path / "data")


def test_training_on_an_archive_tells_to_prepare_it(tmp_path):
    zip_of(tmp_path / "data.zip", "1.mp4")
    with pytest.raises(InputError, match=r"is not a clip store: make one with python -m tgan_fast prepare .*data.zip"):
        read_videos(tmp_path / "data.zip")
