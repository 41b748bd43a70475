"""A conditional run on moving digits learns what its labels mean."""

import numpy as np
import pytest
from sklearn.svm import SVC

from tgan_fast.cli import sample
from tgan_fast.data import MovingDigits, PreparedVideos, VideoFrames
from tgan_fast.training import TrainingConfig, train

CLASSES, FRAMES, SIZE = 10, 8, 16
# Small networks and, in training, one clip of every digit, so that a quarter of a minute on a CPU is enough.
CONFIG = TrainingConfig(
    conditional=True,
    frames=FRAMES,
    image_size=SIZE,
    channels=1,
    width=0.25,
    latent_dim=10,
    image_generator="frame",
    discriminator="frames2d",
    objective="lsgan",
    clip_interval=1,
    optimizer="adam",
    adam_beta1=0.5,
    learning_rate=1e-3,
    batch_size=20,
    ema_decay=0.98,
    steps=300,
    checkpoint_interval=300,
    sample_interval=300,
    device="cpu",
)


def clips_of(count, seed):
    """Clips uint8 [count, FRAMES, SIZE, SIZE, 1] in all handwritings, and their digits."""
    digits = MovingDigits(count, seed=seed, clip_frames=FRAMES, image_size=SIZE)
    return np.stack([clip for clip, _ in map(digits.__getitem__, range(count))]), digits.labels_of(np.arange(count))


def centered(clips):
    """[N, n]: the mean of all frames, each moved so that its center of mass is in the middle."""
    frames = clips[..., 0] / 255.0
    mass = frames**2 + 1e-9
    rows, columns = (mass.sum(axis) @ np.arange(SIZE) / mass.sum((2, 3)) for axis in (3, 2))
    window = SIZE + np.arange(-6, 6)
    padded = np.pad(frames, ((0, 0), (0, 0), (SIZE, SIZE), (SIZE, SIZE)))
    n, t = np.indices(frames.shape[:2])[..., None, None]
    tops, lefts = (np.rint(place)[..., None, None].astype(int) for place in (rows, columns))
    return padded[n, t, tops + window[:, None], lefts + window].mean(1).reshape(len(clips), -1)


@pytest.fixture(scope="module")
def classifier():
    """Classifier that knows all handwritings."""
    clips, labels = clips_of(2000, seed=1)
    return SVC(C=10).fit(centered(clips), labels)


def test_the_classifier_reads_real_clips(classifier):
    clips, labels = clips_of(500, seed=2)
    assert classifier.score(centered(clips), labels) > 0.97


@pytest.mark.slow
def test_samples_are_of_the_class_that_was_asked_for(classifier, tmp_path):
    clips, labels = clips_of(200, seed=3)
    # Twenty times, since a batch is of different videos.
    taken = np.tile([int(np.flatnonzero(labels == label)[0]) for label in range(CLASSES)], 20)
    frames = clips[taken].reshape(-1, SIZE, SIZE, 1)
    first, length = np.arange(len(taken)) * FRAMES, np.full(len(taken), FRAMES)
    videos = VideoFrames(PreparedVideos(frames, first, length, labels[taken]), clip_frames=FRAMES, image_size=SIZE)
    train(CONFIG, tmp_path / "run", dataset=videos)
    right = []
    for label in range(CLASSES):
        out = tmp_path / f"{label}.npy"
        sample.main(["--checkpoint", str(tmp_path / "run"), "--out", str(out), "--class", str(label), "--grid", "5"])
        right += (classifier.predict(centered(np.load(out))) == label).tolist()
    # By chance it would be one in ten.
    assert np.mean(right) > 0.5
