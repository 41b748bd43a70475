"""The whole path with nothing downloaded: a classifier, a run that is scored with it, and scores that fit its state."""

import json

import pytest

from tgan_fast.cli import evaluate, train_classifier
from tgan_fast.metrics.classifier_files import load_classifier
from tgan_fast.training import PRESETS, TrainingConfig, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Train a classifier and a short run of the preset tiny."""
    folder = tmp_path_factory.mktemp("moving_digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        recipe = ["--steps", "400", "--batch-size", "24", "--learning-rate", "5e-3"]
        train_classifier.main(["--out", str(folder / "classifier.pt"), *recipe, "--device", "cpu"])
        settings = {"steps": 150, "checkpoint_interval": 1, "keep_checkpoints": 150, "batch_size": 4, "ema_decay": None}
        scored = {"evaluate_every": 50, "evaluate_samples": 128, "classifier": str(folder / "classifier.pt")}
        config = TrainingConfig(**PRESETS["tiny"] | settings | scored, best_metric="is", device="cpu")
        train(config, folder / "run")
        yield folder


@pytest.fixture(scope="module")
def scores(folder):
    """Scores of the first and of the best checkpoint."""
    arguments = ["--classifier", str(folder / "classifier.pt"), "--samples", "256", "--runs", "2", "--device", "cpu"]
    for name in ("iteration-00000001.pt", "best.pt"):
        evaluate.main(["--checkpoint", str(folder / "run" / "checkpoints" / name), *arguments])
    return [json.loads(line) for line in (folder / "run" / "scores.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_classifier_reads_handwritings_that_it_has_never_seen(folder):
    # By chance it would be one in ten.
    assert load_classifier(folder / "classifier.pt").accuracy > 0.5


@pytest.mark.slow
def test_real_clips_score_higher_than_a_trained_generator_and_that_higher_than_an_untrained_one(scores):
    untrained, trained = (record["inception_score"] for record in scores)
    assert trained["real"] == untrained["real"] <= 10
    assert trained["real"] > trained["mean"] + 3 * trained["std"]
    # The size of the difference depends on the machine, because such a short training amplifies rounding.
    assert trained["mean"] > untrained["mean"] + 3 * untrained["std"]
    # All its videos look alike.
    assert untrained["mean"] == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_real_clips_are_nearer_than_a_trained_generator_and_that_nearer_than_an_untrained_one(scores):
    untrained, trained = (record["frechet_distance"] for record in scores)
    assert trained["real"] < trained["mean"] - 3 * trained["std"]
    assert trained["mean"] < untrained["mean"]
