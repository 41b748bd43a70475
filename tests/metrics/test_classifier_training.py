"""Training classifiers: they learn from the training clips, and are scored on held-out clips."""

import math

import numpy as np
import pytest
import torch

from tgan_fast.data import PreparedVideos, VideoFrames
from tgan_fast.errors import NonFiniteError
from tgan_fast.metrics.classifier_files import load_classifier, save_classifier
from tgan_fast.metrics.classifier_training import Recipe, train_classifier
from tgan_fast.metrics.held_out import LabeledClips
from tgan_fast.metrics.protocols import PROTOCOLS

SHORT = Recipe(30, 8, 1e-2)


def bars(count, seed):
    """Videos of 20 frames in which a bar on noise moves down (class 0) or up (class 1); single frames tell nothing."""
    random = np.random.default_rng(seed)
    frames = random.integers(100, size=(count, 20, 64, 64, 1), dtype=np.uint8)
    labels = np.arange(count) % 2
    for video, label, start in zip(frames, labels, random.integers(64, size=count), strict=True):
        for number, frame in enumerate(video):
            frame[(start + (3 if label == 0 else -3) * number + np.arange(8)) % 64] = 255
    return VideoFrames(PreparedVideos(frames.reshape(-1, 64, 64, 1), 20 * np.arange(count), np.full(count, 20), labels))


def clips_of(training=64, held_out=41):
    return LabeledClips(bars(training, 0), bars(held_out, 1), ("down", "up"), "bars")


@pytest.fixture(scope="module")
def clips():
    return clips_of()


@pytest.fixture(scope="module")
def trained(clips):
    return train_classifier(clips, "small", SHORT)


def test_a_motion_is_learned_and_scored_by_every_held_out_clip_once(clips, trained):
    # Of 41 videos of 20 frames the class is the same in each window, and the likeliest class hardly depends on it.
    held_out = clips.held_out.frames.numpy().reshape(41, 20, 64, 64, 1)[:, 2:18]
    videos = torch.from_numpy(held_out).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        guesses = trained.network(videos)["logits"].argmax(1).numpy()
    assert trained.accuracy == pytest.approx((guesses == clips.held_out.labels).mean(), abs=3 / 41)
    assert trained.accuracy > 0.9
    assert (trained.accuracy * 41) == pytest.approx(round(trained.accuracy * 41))


def test_what_it_was_trained_on_is_not_what_it_is_scored_by(clips):
    # With swapped classes, every held-out video counts as wrong.
    swapped = LabeledClips(clips.training, bars(40, 1), clips.classes, "bars")
    swapped.held_out.labels[...] = 1 - swapped.held_out.labels
    assert train_classifier(swapped, "small", SHORT).accuracy < 0.1


def test_the_classifier_is_ready_for_use(trained):
    assert (trained.architecture, trained.classes, trained.channels) == ("small", ("down", "up"), 1)
    assert trained.mean is None
    assert not any(module.training for module in trained.network.modules())
    assert {(tensor.device.type, tensor.requires_grad) for tensor in trained.network.buffers()} == {("cpu", False)}
    assert all(weight.grad is None and weight.dtype == torch.float32 for weight in trained.network.parameters())


def test_the_file_holds_the_same_classifier(clips, trained, tmp_path):
    save_classifier(tmp_path / "classifier.pt", trained)
    loaded = load_classifier(tmp_path / "classifier.pt")
    videos = torch.randn(3, 1, 16, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.network(videos)["logits"], trained.network(videos)["logits"])
    assert (loaded.classes, loaded.accuracy, loaded.fingerprint) == (
        trained.classes,
        trained.accuracy,
        trained.fingerprint,
    )


def test_the_seed_decides_everything_and_the_global_state_nothing(clips):
    def fingerprint(seed):
        return train_classifier(clips, "small", Recipe(3, 4, 1e-3), seed=seed).fingerprint

    first = fingerprint(0)
    state = torch.manual_seed(7).get_state()
    assert fingerprint(0) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(1) != first


def test_progress_is_called_with_every_loss(clips):
    losses = []
    train_classifier(clips, "small", Recipe(5, 8, 1e-3), progress=losses.append)
    assert len(losses) == 5
    # An untrained network hardly tells the two classes apart.
    assert losses[0] == pytest.approx(math.log(2), abs=0.3)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_trainings_end_too(clips, steps):
    assert 0 <= train_classifier(clips, "small", Recipe(steps, 1, 1e-3)).accuracy <= 1


def test_a_loss_that_is_not_finite_ends_it(clips):
    with pytest.raises(NonFiniteError, match=r"^the loss of step [2-9] is not finite: try a lower learning_rate$"):
        train_classifier(clips, "small", Recipe(9, 4, 1e30))


@pytest.mark.slow
def test_c3d_starts_with_equal_chances_and_the_mean_colors(tmp_path):
    levels = np.array([200, 100, 30], np.uint8)
    frames = np.broadcast_to(levels, (2 * 16, 64, 64, 3)) + np.uint8(5) * (np.arange(64) % 2 == 0)[:, None]
    videos = VideoFrames(PreparedVideos(frames, 16 * np.arange(2), np.full(2, 16), np.array([0, 2])))
    clips, losses = LabeledClips(videos, videos, ("a", "b", "c"), "colors"), []
    classifier = train_classifier(clips, "c3d", Recipe(1, 1, 1e-4), progress=losses.append)
    assert losses == [pytest.approx(math.log(3))]
    assert classifier.channels == 3
    assert classifier.mean.shape == (3, 16, 128, 171)
    assert np.abs(classifier.mean.numpy() - (levels[::-1] + 2.5)[:, None, None, None]).max() < 1e-3

    save_classifier(tmp_path / "classifier.pt", classifier)
    loaded = load_classifier(tmp_path / "classifier.pt")
    real = PROTOCOLS["tgan2"].scaled(videos.frames[:16][None])
    with torch.no_grad():
        logits = [each.network(PROTOCOLS["tgan2"].prepare(real, each.mean))["logits"] for each in (classifier, loaded)]
    assert torch.equal(*logits)
    assert logits[0].shape == (1, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["small", "c3d"])
def test_a_gpu_trains_and_the_cpu_gets_the_classifier(clips, architecture):
    state = torch.cuda.get_rng_state()
    recipe = {"small": SHORT, "c3d": Recipe(30, 8, 1e-4)}[architecture]
    classifier = train_classifier(clips, architecture, recipe, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert {tensor.device.type for tensor in classifier.network.state_dict().values()} == {"cpu"}
    assert math.isfinite(classifier.accuracy)
    if architecture == "small":
        assert classifier.accuracy > 0.9
