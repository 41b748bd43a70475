"""MNIST's files: read back under any name and compression, with errors that name the problem."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from tgan_fast.data import MovingDigits
from tgan_fast.data.idx import read_digits, read_idx
from tgan_fast.errors import InputError

UINT8 = 0x08
compressions = pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])


def idx_header(sizes, number_type=UINT8):
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, number_type, len(sizes), *sizes)


def write_idx(path, array, compress=bytes):
    path.write_bytes(compress(idx_header(array.shape) + array.astype(np.uint8).tobytes()))
    return path


def scikit_learns():
    """Return scikit-learn's digits, uint8 [1797, 28, 28], enlarged without smoothing, and their labels."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    enlarged = np.kron(scans.images * 15, np.ones((3, 3))).astype(np.uint8)
    return np.pad(enlarged, ((0, 0), (2, 2), (2, 2))), scans.target


def inked(image):
    """Return the part of an image [H, W] that is not black."""
    rows, columns = np.nonzero(image)
    return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


@pytest.fixture
def write_digits(tmp_path):
    """Write images and labels, by default of 20 digits, into a folder under MNIST's file names."""

    def write(images=None, labels=None, *, part="train", mark="-", end="", compress=bytes):
        if images is None:
            images = np.random.default_rng(0).integers(256, size=(20, 28, 28), dtype=np.uint8)
        if labels is None:
            labels = np.arange(len(images)) % 10
        write_idx(tmp_path / f"{part}-labels{mark}idx1-ubyte{end}", labels, compress)
        return write_idx(tmp_path / f"{part}-images{mark}idx3-ubyte{end}", images, compress)

    return write


@compressions
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (5, 28, 28), (2, 1, 3, 1, 4), (1,) * 32], ids=str)
def test_an_array_is_read_as_it_was_written(tmp_path, shape, compress):
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    read = read_idx(write_idx(tmp_path / "x", array, compress))
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)


def test_an_array_of_many_parts_is_read_as_it_was_written(tmp_path):
    array = np.random.default_rng(0).integers(256, size=(3, 1000, 1001), dtype=np.uint8)
    assert np.array_equal(read_idx(write_idx(tmp_path / "plain", array)), array)
    assert np.array_equal(read_idx(write_idx(tmp_path / "compressed", array, gzip.compress)), array)


def test_the_bytes_of_the_format_are_as_documented(tmp_path):
    (tmp_path / "x").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 11, 12, 20, 21, 255]))
    assert read_idx(tmp_path / "x").tolist() == [[10, 11, 12], [20, 21, 255]]


def test_compression_is_not_judged_by_the_name(tmp_path):
    array = np.arange(6).reshape(2, 3)
    assert np.array_equal(read_idx(write_idx(tmp_path / "x", array, gzip.compress)), array)
    assert np.array_equal(read_idx(write_idx(tmp_path / "x.gz", array)), array)


@compressions
@pytest.mark.parametrize("number_type", [0x09, 0x0B, 0x0C, 0x0D, 0x0E])
def test_other_numbers_are_refused(tmp_path, number_type, compress):
    dtype = {0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}[number_type]
    numbers = np.ones(6, np.dtype(dtype).newbyteorder(">"))
    (tmp_path / "x").write_bytes(compress(idx_header([6], number_type) + numbers.tobytes()))
    with pytest.raises(InputError, match=f"x holds numbers of {dtype}: write it anew as uint8"):
        read_idx(tmp_path / "x")


@compressions
@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", b"GIF89a", b"\0\0\0\x20ftypisom", b"\0\x01\x08\x01\0\0\0\x01x", idx_header([1], 0x0A) + b"x"],
    ids=["empty", "short", "gif", "mp4", "second byte", "unknown type"],
)
def test_other_files_are_refused(tmp_path, content, compress):
    (tmp_path / "x").write_bytes(compress(content))
    with pytest.raises(InputError, match="x is not an IDX file: give MNIST's own, such as train-images-idx3-ubyte"):
        read_idx(tmp_path / "x")


@compressions
@pytest.mark.parametrize("size", [4, 7, 12, 15])
def test_a_file_that_ends_in_its_header_is_named(tmp_path, size, compress):
    (tmp_path / "x").write_bytes(compress(idx_header([2, 2, 2])[:size]))
    with pytest.raises(InputError, match="x ends within its header: download it anew"):
        read_idx(tmp_path / "x")


@compressions
@pytest.mark.parametrize("missing", [1, 8])
def test_a_file_that_is_too_short_is_named(tmp_path, missing, compress):
    content = idx_header([2, 2, 2]) + bytes(8)
    (tmp_path / "x").write_bytes(compress(content[:-missing]))
    with pytest.raises(InputError, match="x holds fewer numbers than its header announces: download it anew"):
        read_idx(tmp_path / "x")


@compressions
def test_a_file_that_is_too_long_is_named(tmp_path, compress):
    (tmp_path / "x").write_bytes(compress(idx_header([2, 2, 2]) + bytes(9)))
    with pytest.raises(InputError, match="x holds more numbers than its header announces: download it anew"):
        read_idx(tmp_path / "x")


@compressions
@pytest.mark.parametrize("sizes", [(2**20, 2**10, 2**10), (2**32 - 1,) * 3, (2**32 - 1,) * 32], ids=["TB", "3", "32"])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, sizes, compress):
    (tmp_path / "x").write_bytes(compress(idx_header(sizes) + bytes(100)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="x holds fewer numbers than its header announces"):
            read_idx(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "sizes", [(), (0,), (0, 28, 28), (0, 2**32 - 1, 2**32 - 1), (1,) * 33, (1,) * 255], ids=lambda sizes: len(sizes)
)
def test_a_header_that_makes_no_sense_is_named(tmp_path, sizes):
    (tmp_path / "x").write_bytes(idx_header(sizes) + bytes(1))
    with pytest.raises(InputError, match="x has a header that fits no array: download it anew"):
        read_idx(tmp_path / "x")


def test_damaged_compression_is_named(tmp_path):
    array = np.random.default_rng(0).integers(256, size=10_000, dtype=np.uint8)
    whole = gzip.compress(idx_header(array.shape) + array.tobytes())
    damaged = {
        "cut off": whole[:-2000],
        "without its checksum": whole[:-8],
        "its first bytes alone": whole[:2],
        "another checksum": whole[:-8] + bytes(4) + whole[-4:],
        "other bytes": whole[:3000] + bytes(2000) + whole[5000:],
        "an unknown method": whole[:2] + b"\xff" + whole[3:],
        "more behind it": whole + b"more",
    }
    for what, content in damaged.items():
        (tmp_path / what).write_bytes(content)
        with pytest.raises(InputError, match=f"{what} is compressed by gzip, but damaged or cut off: download it anew"):
            read_idx(tmp_path / what)


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*/missing: check its name"):
        read_idx(tmp_path / "missing")
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_idx(tmp_path)
    long = tmp_path / ("x" * 300)
    for read in (read_idx, read_digits):
        with pytest.raises(InputError, match=r"cannot read .*xxx: File name too long"):
            read(long)


@pytest.mark.parametrize(("end", "compress"), [("", bytes), (".gz", gzip.compress)], ids=["plain", "gzip"])
@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("part", ["train", "t10k"])
def test_digits_have_the_labels_beside_them(write_digits, part, mark, end, compress):
    images, labels = scikit_learns()
    path = write_digits(images, labels, part=part, mark=mark, end=end, compress=compress)
    read = read_digits(path)
    assert [array.dtype for array in read] == [np.uint8, np.int64]
    assert np.array_equal(read[0], images)
    assert np.array_equal(read[1], labels)


@pytest.mark.parametrize("compressed", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_either_file_may_be_compressed(write_digits, tmp_path, compressed):
    images = write_digits()
    plain = read_digits(images)
    path = tmp_path / f"{compressed}.gz"
    path.write_bytes(gzip.compress((tmp_path / compressed).read_bytes()))
    (tmp_path / compressed).unlink()
    read = read_digits(images if images.exists() else path)
    assert all(np.array_equal(one, other) for one, other in zip(read, plain, strict=True))


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_a_folder_is_that_of_the_training_files(write_digits, tmp_path, mark, end):
    write_digits(np.full((30, 28, 28), 7), part="t10k")
    with pytest.raises(InputError, match=r"has no train-images-idx3-ubyte or .*: download MNIST's files into it"):
        read_digits(tmp_path)
    write_digits(np.full((20, 28, 28), 8), mark=mark, end=end)
    images, labels = read_digits(tmp_path)
    assert np.array_equal(images, np.full((20, 28, 28), 8))
    assert len(labels) == 20


def test_clips_show_the_digits_of_the_files(write_digits):
    images, labels = scikit_learns()
    dataset = MovingDigits(50, scans=read_digits(write_digits(images, labels, end=".gz", compress=gzip.compress)))
    label_of = {(cut.shape, cut.tobytes()): label for cut, label in zip(map(inked, images), labels, strict=True)}
    for clip, label in map(dataset.__getitem__, range(50)):
        cuts = [inked(frame) for frame in clip[..., 0]]
        assert {label_of[cut.shape, cut.tobytes()] for cut in cuts} == {label}


def test_missing_labels_are_named(write_digits):
    images = write_digits(end=".gz", compress=gzip.compress)
    (images.parent / "train-labels-idx1-ubyte.gz").unlink()
    names = r"there is no train-labels-idx1-ubyte or train-labels-idx1-ubyte\.gz beside .*/train-images-idx3-ubyte\.gz"
    with pytest.raises(InputError, match=f"{names}: download the labels into its folder"):
        read_digits(images)
    with pytest.raises(
        InputError, match=r"the name of .*/digits\.gz does not tell the name of its labels: name it like"
    ):
        read_digits(images.rename(images.with_name("digits.gz")))


def test_images_that_do_not_fit_are_named(write_digits, tmp_path):
    with pytest.raises(InputError, match=r"images-idx3-ubyte holds an array \[20, 28, 27\], not images \[n, 28, 28\]"):
        read_digits(write_digits(np.zeros((20, 28, 27))))
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte holds an array \[20\], not images"):
        read_digits(tmp_path / "train-labels-idx1-ubyte")
    with pytest.raises(InputError, match=r"there is no file .*/t10k-images-idx3-ubyte: check its name"):
        read_digits(tmp_path / "t10k-images-idx3-ubyte")


def test_labels_that_do_not_fit_are_named(write_digits):
    images = np.zeros((20, 28, 28))
    for labels in (np.arange(19) % 10, np.arange(21) % 10, np.zeros((20, 1))):
        array = rf"train-labels-idx1-ubyte holds an array \[{', '.join(map(str, labels.shape))}\]"
        with pytest.raises(
            InputError, match=f"{array}, not a label for each of the 20 images in .*download both files"
        ):
            read_digits(write_digits(images, labels))
    with pytest.raises(InputError, match="train-labels-idx1-ubyte has the label 10, but digits are 0 to 9"):
        read_digits(write_digits(images, np.arange(20) % 11))


@pytest.mark.parametrize(("count", "digit"), [(0, 0), (1, 0), (0, 9), (1, 9)])
def test_a_digit_of_too_few_handwritings_is_named(write_digits, count, digit):
    others = np.setdiff1d(np.arange(10), digit)
    labels = np.concatenate([others, others, [digit] * count])
    with pytest.raises(InputError, match=f"has {count} of the digit {digit}, but a clip may show two images"):
        read_digits(write_digits(np.zeros((len(labels), 28, 28)), labels))
