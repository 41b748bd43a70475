"""Randomly damaged array files and clip stores: reading gives a short error or the original data, and runs no code."""

import io
import os
import random
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from support.stores import HEADER, append, video_of

from tgan_fast.data.clip_store import ClipStore
from tgan_fast.data.prepared_videos import read_videos
from tgan_fast.errors import InputError, UnreadableVideoError
from tgan_fast.preparation import prepare, worker
from tgan_fast.preparation.decoding import FrameFormat
from tgan_fast.preparation.sources import recognize
from tgan_fast.preparation.store_writer import StoreWriter

FRAME_FORMAT = FrameFormat(6, 8, 3)
CLIPS = np.stack([video_of(17, seed) for seed in range(2)])


class Code:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def array_files(folder):
    """Bytes of an array's file of each kind, by name."""
    objects = np.empty(2, object)
    objects[:] = [Code(folder), Code(folder)]
    saves = {
        "C order.npy": lambda file: np.save(file, CLIPS),
        "Fortran order.npy": lambda file: np.save(file, np.asfortranarray(CLIPS)),
        "big-endian.npy": lambda file: np.save(file, CLIPS.astype(">u2")),
        "structured.npy": lambda file: np.save(file, CLIPS.view([("red", "u1"), ("green\n", "u1"), ("blue", "u1")])),
        "objects.npy": lambda file: np.save(file, objects, allow_pickle=True),
        "stored.npz": lambda file: np.savez(file, clips=CLIPS, labels=np.array([1, 2])),
        "compressed.npz": lambda file: np.savez_compressed(file, a=CLIPS, b=CLIPS[0], labels=np.array([1, 2, 3])),
        "objects.npz": lambda file: np.savez(file, clips=CLIPS, labels=objects),
    }
    files = {}
    for name, save in saves.items():
        file = io.BytesIO()
        save(file)
        files[name] = file.getvalue()
    return files


def damaged(content, choices):
    """Flip bits, cut off the end, swap bytes or insert bytes, mostly in the header."""
    content = bytearray(content)
    place, other = choices.randrange(min(len(content), 150)), choices.randrange(len(content))
    how = choices.randrange(4)
    if how == 0:
        content[place] ^= 1 << choices.randrange(8)
    elif how == 1:
        del content[choices.choice([place, other]) :]
    elif how == 2:
        content[place], content[other] = content[other], content[place]
    else:
        content[place:place] = choices.randbytes(choices.randrange(1, 20))
    return bytes(content)


def try_array(path):
    """Read a file as training and as preparing do, to the end or to an error in one sentence."""
    with suppress(InputError):
        assert read_videos(path).frames.dtype == np.uint8
    with suppress(InputError, UnreadableVideoError):
        for video in recognize(path).videos:
            assert len(video.digest()) == 64
            assert all(frames.dtype == np.uint8 for frames in video.read(FRAME_FORMAT))


@pytest.mark.parametrize("seed", range(5))
def test_damaged_arrays(tmp_path, seed):
    choices = random.Random(seed)
    for name, content in array_files(tmp_path / "ran").items():
        path = tmp_path / f"{seed} {name}"
        path.write_bytes(damaged(content, choices))
        try_array(path)
    assert not (tmp_path / "ran").exists()


HEADERS = [
    "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999, 6, 8)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904, 4, 6, 8, 3)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (200000000000, 6, 8)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -17, 6, 8, 3)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 16, 6, 8, 3)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': ()}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (2, 17, 6, 8, 3)}",
    "{'descr': __import__('os'), 'fortran_order': False, 'shape': (2,)}",
    "(" * 100,
    "",
]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_announce_what_is_not_there(tmp_path, header):
    header = header.ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + CLIPS.tobytes()
    (tmp_path / "clips.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "clips.npz", "w") as file:
        file.writestr("clips.npy", content)
    with pytest.raises(InputError, match=r"clips.npy"):
        recognize(tmp_path / "clips.npy")
    try_array(tmp_path / "clips.npz")


def damage_store(folder, other, choices):
    """Damage an index or frames; `other` is the folder of a store whose lines and frames are mixed in."""
    index, frames = folder / "index.jsonl", folder / "frames.bin"
    lines = index.read_bytes().splitlines(keepends=True)
    first, second = choices.sample(range(len(lines)), 2)
    how = choices.randrange(7)
    if how == 0:
        index.write_bytes(damaged(index.read_bytes(), choices))
    elif how == 1:
        frames.write_bytes(damaged(frames.read_bytes(), choices))
    elif how == 2:
        frames.write_bytes((other / "frames.bin").read_bytes())
    else:
        if how == 3:
            lines[first], lines[second] = lines[second], lines[first]
        elif how == 4:
            del lines[first]
        elif how == 5:
            lines.insert(first, lines[second])
        else:
            lines[first] = choices.choice((other / "index.jsonl").read_bytes().splitlines(keepends=True))
        index.write_bytes(b"".join(lines))


def make_store(folder, lengths):
    writer = StoreWriter(folder, HEADER)
    for number, length in enumerate(lengths):
        append(writer, folder.parent / "spool", f"{folder.name} {number}", video_of(length, number))
    writer.close()


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("seed", range(20))
def test_damaged_stores(tmp_path, seed, monkeypatch):
    def done_here(jobs, workers, stop, progress):
        return ((job, worker.run_job(job)) for job in jobs)

    # A process takes seconds to start.
    monkeypatch.setattr("tgan_fast.preparation.pipeline.done_in_order", done_here)
    folder, other = tmp_path / "store", tmp_path / "other"
    make_store(folder, (5, 1, 17))
    make_store(other, (5, 2, 17))
    written = ClipStore(folder).entries
    damage_store(folder, other, random.Random(seed))
    with suppress(InputError):
        opened = ClipStore(folder)
        assert len(read_videos(folder).frames) == len(opened.frames)
        # Videos with changed frames are named, and the others are the first videos of the store.
        assert list(opened.damaged()) or opened.entries == written[: len(opened.entries)]
    np.save(tmp_path / "more.npy", CLIPS)
    before, refused = content_of(folder), True
    with suppress(InputError):
        prepare(recognize(tmp_path / "more.npy"), folder, FRAME_FORMAT)
        refused = False
    if refused:
        assert content_of(folder) == before
    else:
        opened = ClipStore(folder)
        assert [entry.video for entry in opened.entries[-2:]] == ["more.npy/00000", "more.npy/00001"]
        assert np.array_equal(opened.frames[-34:], CLIPS.reshape(34, 6, 8, 3))
