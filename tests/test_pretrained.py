"""Files that come with the package: a generator of moving digits and the classifier that scores it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tgan_fast.cli import evaluate, sample
from tgan_fast.metrics.classifier_files import DIGITS_CLASSIFIER, load_classifier
from tgan_fast.training.checkpoint import PRETRAINED, find, open_checkpoint

RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "scores-of-digits.jsonl"


def test_the_files_are_small_and_tell_where_they_come_from():
    assert set(PRETRAINED) == {"digits"}
    assert PRETRAINED["digits"].stat().st_size <= 1_500_000
    checkpoint = open_checkpoint(PRETRAINED["digits"])
    assert checkpoint.tells_data
    assert checkpoint.config.data is None
    assert checkpoint.iteration == checkpoint.config.steps
    classifier = load_classifier(DIGITS_CLASSIFIER)
    assert classifier.classes == tuple("0123456789")
    assert (classifier.channels, classifier.accuracy > 0.9) == (3, True)


def test_the_generator_is_sampled_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample.main(["--checkpoint", "digits", "--out", "digits.gif", "--grid", "2", "--device", "cpu"])
    generator = open_checkpoint(find(Path("digits"))).generator()
    with Image.open("digits.gif") as gif:
        assert gif.n_frames == generator.clip_frames
        frame = np.asarray(gif.convert("L"))
    assert frame.shape[1] == 2 * generator.image_size
    # Digits are bright on a black ground.
    assert frame.max() > 200
    assert np.median(frame) < 20


@pytest.mark.slow
def test_its_scores_are_those_on_record(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick = ["--samples", "512", "--runs", "1", "--out", str(tmp_path / "scores.json"), "--device", "cpu"]
    evaluate.main(["--checkpoint", "digits", *quick])
    measured, recorded = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", RECORD))
    assert measured["classifier"] == recorded["classifier"]
    # 512 videos instead of ten times 2,048: fewer raise the distance.
    assert measured["inception_score"]["mean"] == pytest.approx(recorded["inception_score"]["mean"], rel=0.05)
    distances = [record["frechet_distance"]["mean"] for record in (measured, recorded)]
    assert distances[1] < distances[0] < distances[1] + 1
