"""The moving-digits data set: handwritten digits that bounce around in a frame, drawn on request.

The digits are the 1,797 of scikit-learn (the test set of "Optical Recognition of Handwritten Digits", E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository), which are part of that package, or others such as MNIST's;
the motion is that of Moving MNIST (Srivastava, Mansimov and Salakhutdinov, arXiv:1502.04681).
"""

import functools
import hashlib

import numpy as np
import torch
from PIL import Image

from tgan_fast.errors import counted
from tgan_fast.sizes import (
    FRAMES,
    IMAGE_SIZE,
    LARGEST_DIGITS,
    PAPER_DIGITS,
    PAPER_SPEED,
    SMALLEST_DIGITS,
    check_sizes,
)

# Side of a scan in pixels.
DIGIT_SIZE = 28


class MovingDigits:
    """A data set of clips in which one or two handwritten digits bounce off the edges of the frame.

    If a clip has two digits, they are different images of the same class, which is the clip's label. Clip `i` depends
    only on `seed` and `i`.

    Args:
        size: Number of clips.
        digits: Number of digits that move in a clip, 1 or 2.
        channels: Number of channels, all equal.
        seed: Seed of images, positions and speeds.
        scans: Handwritten digits, images uint8 [n, 28, 28] and their labels, integers [n], with `digits` or more of
            each class from 0 to 9, copied only if they must be resized; None: scikit-learn's.
        clip_frames: Number of frames of a clip, 8 to 64.
        image_size: Side of a frame in pixels: 16, 32, 64 or 128.
        digit_size: Side of a digit as a fraction of `image_size`, 1/4 to 15/16.
        digit_speed: Largest speed along each axis, as a fraction of `image_size` per frame, 0 to 1.

    Attributes:
        classes: Number of classes, always 10.
        scans: Handwritten digits: images and labels.
        layers: Layers of the windows that `read_windows` takes, one for each digit.

    Raises:
        ValueError: `digits` is neither 1 nor 2; scans have another dtype or shape, or there are too few of a class; a
            size or the speed is out of range.
    """

    classes = 10

    def __init__(
        self,
        size: int = 100_000,
        *,
        digits: int = 1,
        channels: int = 1,
        seed: int = 0,
        scans: tuple[np.ndarray, np.ndarray] | None = None,
        clip_frames: int = FRAMES,
        image_size: int = IMAGE_SIZE,
        digit_size: float = PAPER_DIGITS,
        digit_speed: float = PAPER_SPEED,
    ):
        check_sizes(clip_frames, image_size)
        if digits not in (1, 2):
            raise ValueError(f"one or two digits can move in a clip, not {digits}")
        self.size, self.digits, self.channels, self.seed = size, digits, channels, seed
        self.clip_frames, self.image_size = clip_frames, image_size
        self.layers = digits
        self.scans = scikit_learn_scans() if scans is None else scans
        images, scanned = self.scans
        _check_scans(images, scanned, digits)
        if not (SMALLEST_DIGITS <= digit_size <= LARGEST_DIGITS and 0 <= digit_speed <= 1):
            raise ValueError(
                f"digits have a size of {SMALLEST_DIGITS} to {LARGEST_DIGITS} of the frame, not {digit_size}, "
                f"and a speed of 0 to 1, not {digit_speed}"
            )
        self.digit_size, self.digit_speed = digit_size, digit_speed
        self._side = round(digit_size * image_size)
        self._images = _resize_all(images, self._side)
        self._room = image_size - self._side
        fastest = digit_speed * image_size
        # Each property has its own random stream, so that a clip does not depend on the number of clips.
        of_labels, of_handwritings, of_starts, of_speeds = np.random.default_rng(seed).spawn(4)
        self._labels = of_labels.integers(10, size=size)
        self._handwritings = _choose_handwritings(of_handwritings, self._labels, digits, scanned)
        self._starts = of_starts.uniform(0, self._room, (size, digits, 2))
        self._speeds = of_speeds.uniform(-fastest, fastest, (size, digits, 2))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return clip `index`, uint8 [clip_frames, image_size, image_size, channels], and its class."""
        if not 0 <= index < self.size:
            raise IndexError(f"clip {index} of {self.size}")
        clip = np.zeros((self.clip_frames, self.image_size, self.image_size), np.uint8)
        for image, corners in zip(self._images[self._handwritings[index]], self._corners(index), strict=True):
            for frame, (top, left) in zip(clip, corners, strict=True):
                place = frame[top : top + self._side, left : left + self._side]
                np.maximum(place, image, out=place)
        return np.repeat(clip[..., None], self.channels, axis=-1), int(self._labels[index])

    @property
    def summary(self) -> str:
        """One line on the handwritten digits."""
        return f"{len(self.scans[0]):,} handwritten digits"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the handwritten digits and their labels, in hexadecimal."""
        images, labels = self.scans
        return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    @functools.cached_property
    def frames(self) -> torch.Tensor:
        """Frames that `windows` refers to: each scan with a black margin, so that a window can show it at any position.

        For n scans and images of 64 pixels, uint8 [n, 100, 100, 1], made on first use; MNIST's take 600 MB.
        """
        margin = (self._room, self._room)
        return torch.from_numpy(np.pad(self._images, ((0, 0), margin, margin))[..., None])

    def windows(self, clips: np.ndarray, choices: np.random.Generator | None = None) -> np.ndarray:
        """Return windows int64 [n, digits, clip_frames, 4], as `read_windows` takes them, of `clips` [n].

        `choices` is not used, since the seed determines every clip.
        """
        windows = np.ones((len(clips), self.digits, self.clip_frames, 4), np.int64)
        windows[..., 0] = self._handwritings[clips][..., None]
        windows[..., 1:3] = self._room - self._corners(clips)
        return windows

    def labels_of(self, clips: np.ndarray) -> np.ndarray:
        """Return the classes, int64 [n], of `clips` [n]."""
        return self._labels[clips]

    def _corners(self, clips):
        """Return the digits' top left corners int64 [..., digits, clip_frames, 2], on paths that the edges reflect."""
        starts, speeds = self._starts[clips][..., None, :], self._speeds[clips][..., None, :]
        unfolded = (starts + speeds * np.arange(self.clip_frames)[:, None]) % (2 * self._room)
        return np.rint(self._room - np.abs(self._room - unfolded)).astype(np.int64)


def scikit_learn_scans() -> tuple[np.ndarray, np.ndarray]:
    """Return the handwritten digits of scikit-learn: images uint8 [1797, 28, 28] and their labels int64 [1797]."""
    # Importing scikit-learn takes a second, which users of other data sets need not wait.
    from sklearn.datasets import load_digits

    scanned = load_digits()
    return np.stack([_enlarged(image) for image in scanned.images]), scanned.target


def _check_scans(images, labels, digits):
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (DIGIT_SIZE, DIGIT_SIZE):
        raise ValueError(
            f"images of scans are uint8 [n, {DIGIT_SIZE}, {DIGIT_SIZE}], not {images.dtype} {list(images.shape)}"
        )
    if not np.can_cast(labels.dtype, np.int64) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels of scans are an integer for each of {len(images)} images, not {labels.dtype} {list(labels.shape)}"
        )
    if not np.isin(labels, range(10)).all():
        raise ValueError(f"labels of scans are 0 to 9, not {labels.min()} to {labels.max()}")
    counts = np.bincount(labels, minlength=10)
    if counts.min() < digits:
        found = counted(int(counts.min()), "scan")
        raise ValueError(f"class {counts.argmin()} has {found}, but a clip shows {digits}: give more scans")


def _enlarged(image):
    """Return an image of 8×8 gray levels from 0 to 16 as uint8 [28, 28]."""
    return _resized((image * (255 / 16)).astype(np.uint8), DIGIT_SIZE)


def _resize_all(images, size):
    """Return images uint8 [n, 28, 28] as [n, size, size]."""
    return images if size == DIGIT_SIZE else np.stack([_resized(image, size) for image in images])


def _resized(image, size):
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _choose_handwritings(random, labels, digits, scanned):
    """Return indices of images int64 [n, digits]: for each of `labels` [n], `digits` different images of that class."""
    counts = np.bincount(scanned)
    before = np.cumsum(counts) - counts
    places = random.integers(counts[labels][:, None] - np.arange(digits))
    # The second image is chosen among those other than the first.
    places[:, 1:] += places[:, 1:] >= places[:, :1]
    return np.argsort(scanned, kind="stable")[before[labels][:, None] + places]
