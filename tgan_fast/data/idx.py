"""Reader of MNIST's files: arrays of bytes in the IDX format, plain or compressed by gzip.

An IDX file begins with two zero bytes, a byte for the type of the numbers and a byte for the number of dimensions.
The size of each dimension follows as 4 bytes, big-endian, and then the numbers in row-major order.
"""

import gzip
import math
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tgan_fast.data.moving_digits import DIGIT_SIZE
from tgan_fast.errors import InputError

_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_UINT8 = 0x08
# NumPy before 2.0 takes no more dimensions.
_MOST_DIMENSIONS = 32
_GZIP = b"\x1f\x8b"
_READ_AT_ONCE = 2**20

_TRAINING_IMAGES = (
    "train-images-idx3-ubyte",
    "train-images-idx3-ubyte.gz",
    "train-images.idx3-ubyte",
    "train-images.idx3-ubyte.gz",
)


def read_digits(images: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read handwritten digits from MNIST's files, or from files in the same format.

    Args:
        images: File of the images, such as `train-images-idx3-ubyte`, with the file of their labels beside it,
            `train-labels-idx1-ubyte`; compressed files end in `.gz`. Or a folder with MNIST's training files.

    Returns:
        Images uint8 [n, 28, 28] and their labels int64 [n], from 0 to 9.

    Raises:
        InputError: A file is missing or damaged, or holds something else, or there are fewer than two images of a
            digit.
    """
    with _as_input_error(images):
        images = _training_images(images) if images.is_dir() else images
    pixels = read_idx(images)
    if pixels.ndim != 3 or pixels.shape[1:] != (DIGIT_SIZE, DIGIT_SIZE):
        raise InputError(
            f"{images} holds an array {list(pixels.shape)}, not images [n, {DIGIT_SIZE}, {DIGIT_SIZE}]: "
            f"give MNIST's, {_TRAINING_IMAGES[0]}"
        )
    labels_path = _labels_path(images)
    labels = read_idx(labels_path)
    if labels.shape != pixels.shape[:1]:
        raise InputError(
            f"{labels_path} holds an array {list(labels.shape)}, not a label for each of the {len(pixels)} images in "
            f"{images}: download both files from the same place"
        )
    _check_labels(labels, labels_path)
    return pixels, labels.astype(np.int64)


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes from an IDX file; memory is used for what it holds, not for what its header announces.

    Args:
        path: File, compressed or not, as its first bytes show.

    Returns:
        Array uint8 of the shape that the header gives.

    Raises:
        InputError: The file is missing or damaged, or is not an IDX file of unsigned bytes.
    """
    with _as_input_error(path), path.open("rb") as file, _decompressed(file) as content:
        shape = _read_shape(content, path)
        count = math.prod(shape)
        # Reading one byte more shows whether more follows, and makes gzip verify its checksum.
        numbers = _read_at_most(content, count + 1)
    if len(numbers) > count:
        raise InputError(f"{path} holds more numbers than its header announces: download it anew")
    if len(numbers) < count:
        raise InputError(f"{path} holds fewer numbers than its header announces: download it anew")
    return np.frombuffer(numbers, np.uint8).reshape(shape)


@contextmanager
def _as_input_error(path):
    """Turn errors in reading `path` into InputErrors."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: check its name") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{path} is compressed by gzip, but damaged or cut off: download it anew") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _decompressed(file):
    return gzip.open(file) if file.peek(len(_GZIP)).startswith(_GZIP) else file


def _read_shape(content, path):
    """Return the shape that the header gives, which may not be that of the numbers that follow."""
    magic = content.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        raise InputError(f"{path} is not an IDX file: give MNIST's own, such as {_TRAINING_IMAGES[0]}")
    _, _, number_type, dimensions = magic
    if number_type != _UINT8:
        raise InputError(f"{path} holds numbers of {_TYPES[number_type]}: write it anew as uint8")
    sizes = content.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise InputError(f"{path} ends within its header: download it anew")
    shape = struct.unpack(f">{dimensions}I", sizes)
    if 0 in shape or not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise InputError(f"{path} has a header that fits no array: download it anew")
    return shape


def _read_at_most(content, count):
    """Return the next `count` bytes, or fewer at the end; a single read would reserve memory for all of them first."""
    numbers = bytearray()
    while part := content.read(min(_READ_AT_ONCE, count - len(numbers))):
        numbers += part
    return numbers


def _training_images(folder):
    for name in _TRAINING_IMAGES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} has no {' or '.join(_TRAINING_IMAGES)}: download MNIST's files into it")


def _labels_path(images):
    """Return the file of the labels that belong to `images`."""
    name = images.name.removesuffix(".gz")
    name_of_labels = name.replace("images", "labels").replace("idx3", "idx1")
    if name_of_labels == name:
        raise InputError(
            f"the name of {images} does not tell the name of its labels: name it like {_TRAINING_IMAGES[0]}"
        )
    names = name_of_labels, f"{name_of_labels}.gz"
    for path in map(images.with_name, names):
        if path.is_file():
            return path
    raise InputError(f"there is no {' or '.join(names)} beside {images}: download the labels into its folder")


def _check_labels(labels, path):
    if labels.max() > 9:
        raise InputError(f"{path} has the label {labels.max()}, but digits are 0 to 9: give the labels of digits")
    counts = np.bincount(labels, minlength=10)
    if counts.min() < 2:
        raise InputError(
            f"{path} has {counts.min()} of the digit {counts.argmin()}, but a clip may show two images of a digit: "
            "give files with two or more of each"
        )
