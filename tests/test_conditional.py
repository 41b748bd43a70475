"""A conditional run on moving digits learns what its labels mean."""

import numpy as np
import pytest
from sklearn.svm import SVC

from tgan_fast import sample
from tgan_fast.data import MovingDigits, VideoFrames
from tgan_fast.training import TrainingConfig, train

STEPS = 1800
# Small, and two digits, so that minutes on a CPU are enough.
FRAMES, SIZE, DIGITS = 8, 16, (0, 1)
SETTINGS = {
    "frames": FRAMES,
    "image_size": SIZE,
    "channels": 1,
    "width": 0.25,
    "latent_dim": 10,
    "batch_size": 16,
    "image_generator": "frame",
    "discriminator": "frames2d",
    "objective": "lsgan",
    "constraint": "svc",
    "clip_interval": 1,
    "optimizer": "adam",
    "adam_beta1": 0.5,
    "learning_rate": 1e-3,
    "ema_decay": 0.99,
}


def clips_of(count, seed):
    """Clips uint8 [count, FRAMES, SIZE, SIZE, 1] of the two digits in all handwritings, and which of them it is."""
    digits = MovingDigits(10 * count, seed=seed, clip_frames=FRAMES, image_size=SIZE)
    labels = digits.labels_of(np.arange(len(digits)))
    taken = np.flatnonzero(np.isin(labels, DIGITS))[:count]
    return np.stack([digits[index][0] for index in taken]), np.searchsorted(DIGITS, labels[taken])


def centred(clips):
    """[N, n]: the mean of all frames, each moved so that its centre of mass is in the middle."""
    frames = clips[..., 0] / 255.0
    mass = frames**2 + 1e-9
    rows, columns = (mass.sum(axis) @ np.arange(SIZE) / mass.sum((2, 3)) for axis in (3, 2))
    window = SIZE // 2 + np.arange(-6, 6)
    padded = np.pad(frames, ((0, 0), (0, 0), (SIZE, SIZE), (SIZE, SIZE)))
    n, t = np.indices(frames.shape[:2])[..., None, None]
    tops, lefts = (np.rint(place)[..., None, None].astype(int) + SIZE // 2 for place in (rows, columns))
    return padded[n, t, tops + window[:, None], lefts + window].mean(1).reshape(len(clips), -1)


@pytest.fixture(scope="module")
def classifier():
    clips, labels = clips_of(1000, seed=1)
    return SVC(C=10).fit(centred(clips), labels)


def test_the_classifier_tells_real_clips_apart(classifier):
    clips, labels = clips_of(300, seed=2)
    assert classifier.score(centred(clips), labels) > 0.97


@pytest.mark.slow
def test_samples_are_of_the_class_that_was_asked_for(classifier, tmp_path):
    clips, labels = clips_of(2000, seed=3)
    videos = VideoFrames(
        clips.reshape(-1, SIZE, SIZE, 1),
        np.arange(len(clips)) * FRAMES,
        np.full(len(clips), FRAMES),
        labels,
        clip_frames=FRAMES,
        image_size=SIZE,
    )
    config = TrainingConfig(**SETTINGS, conditional=True, steps=STEPS, device="cpu", checkpoint_interval=STEPS)
    train(config, tmp_path / "run", dataset=videos)
    right = []
    for label in range(len(DIGITS)):
        out = tmp_path / f"{label}.npy"
        sample.main(["--checkpoint", str(tmp_path / "run"), "--out", str(out), "--class", str(label), "--grid", "10"])
        right.append((classifier.predict(centred(np.load(out))) == label).mean())
    # By chance it would be one half of each, or all of one and none of the other.
    assert min(right) > 0.8
