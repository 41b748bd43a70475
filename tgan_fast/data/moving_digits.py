"""Moving digits: real handwritten digits that bounce around in a frame, made on the fly.

The digits are the 1,797 of scikit-learn (the test set of "Optical Recognition of Handwritten Digits", E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository), which are part of that package; the motion is that of Moving MNIST
(Srivastava, Mansimov and Salakhutdinov, arXiv:1502.04681).
"""

import numpy as np
from PIL import Image

FRAMES = 16
FRAME_SIZE = 64
DIGIT_SIZE = 28
# Pixels a frame, along each axis.
FASTEST = 5.0


class MovingDigits:
    """A data set of clips in which one or two handwritten digits bounce off the edges of the frame.

    Both digits of a clip are of the same class, which is the clip's label, in different handwritings. Clip `i` depends
    on `seed` and `i` alone.

    Args:
        size: number of clips.
        digits: how many move in a clip, 1 or 2.
        channels: 1, or any number of equal channels.
        seed: of handwritings, places and speeds.
    """

    def __init__(self, size: int = 100_000, *, digits: int = 1, channels: int = 1, seed: int = 0):
        if digits not in (1, 2):
            raise ValueError(f"one or two digits can move in a clip, not {digits}")
        self.size, self.digits, self.channels, self.seed = size, digits, channels, seed
        # Here, since importing scikit-learn takes a second that other data sets need not wait for.
        from sklearn.datasets import load_digits

        scanned = load_digits()
        self._labels = scanned.target
        self._images = np.stack([_enlarged(image) for image in scanned.images])
        self._by_label = [np.flatnonzero(self._labels == label) for label in range(10)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Clip `index`: uint8 [16, 64, 64, channels], and its digit."""
        if not 0 <= index < self.size:
            raise IndexError(f"clip {index} of {self.size}")
        rng = np.random.default_rng((self.seed, index))
        label = int(rng.integers(10))
        clip = np.zeros((FRAMES, FRAME_SIZE, FRAME_SIZE), np.uint8)
        for image in self._images[rng.choice(self._by_label[label], self.digits, replace=False)]:
            for frame, (top, left) in zip(clip, _bouncing_path(rng), strict=True):
                place = frame[top : top + DIGIT_SIZE, left : left + DIGIT_SIZE]
                np.maximum(place, image, out=place)
        return np.repeat(clip[..., None], self.channels, axis=-1), label


def _enlarged(image):
    """8×8 grey levels from 0 to 16 → uint8 [28, 28]."""
    levels = Image.fromarray((image * (255 / 16)).astype(np.uint8))
    return np.asarray(levels.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC))


def _bouncing_path(rng):
    """Top left corners [16, 2] on a straight path that the frame's edges reflect."""
    room = FRAME_SIZE - DIGIT_SIZE
    start, speed = rng.uniform(0, room, 2), rng.uniform(-FASTEST, FASTEST, 2)
    unfolded = (start + speed * np.arange(FRAMES)[:, None]) % (2 * room)
    return np.rint(room - np.abs(room - unfolded)).astype(int)
