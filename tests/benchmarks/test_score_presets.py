"""The table of systems: every one has its presets, and what is written is what was trained and scored."""

import json
from dataclasses import replace

import pytest
from support.classifiers import random_classifier

from benchmarks import result_files, score_presets
from benchmarks.render import devices_in, readme_figures
from tgan_fast.metrics.classifier_files import save_classifier
from tgan_fast.training import PRESETS


def test_every_system_is_a_preset_and_has_a_narrow_one():
    assert set(score_presets.SYSTEMS) == {name for name in PRESETS if not name.startswith("tiny")}
    assert {score_presets.tiny(name) for name in score_presets.SYSTEMS} == {
        name for name in PRESETS if name.startswith("tiny")
    }


@pytest.mark.slow
def test_a_system_is_trained_scored_and_listed_in_the_readme(tmp_path, monkeypatch):
    classifier, folder = tmp_path / "digits.pt", tmp_path / "results"
    save_classifier(classifier, random_classifier(classes=10))
    folder.mkdir()
    monkeypatch.setattr(result_files, "FOLDER", folder)
    small = {"steps": 3, "width": 0.03125, "batch_size": 2, "sample_interval": 100}
    monkeypatch.setitem(PRESETS, "tiny-gru-summary", PRESETS["tiny-gru-summary"] | small)
    monkeypatch.setattr(score_presets, "SYSTEMS", {"gru-summary": score_presets.SYSTEMS["gru-summary"]})
    monkeypatch.setattr(score_presets, "PROTOCOL", replace(score_presets.PROTOCOL, samples=64, runs=2, real_clips=256))
    score_presets.main(classifier)
    (path,) = folder.glob("*.json")
    (section,) = json.loads(path.read_text())["sections"].values()
    run = section["systems"]["gru-summary"]
    assert (run["preset"], run["iterations"]) == ("tiny-gru-summary", 3)
    assert run["seconds"] > 0
    assert 1 <= run["inception_score"]["mean"] <= 10
    assert run["frechet_distance"]["mean"] > run["frechet_distance"]["real"] > 0
    assert (folder / score_presets.picture_of(path.stem, "gru-summary")).exists()
    table = readme_figures(devices_in(folder))["systems"]()
    assert f"| 3 | {run['inception_score']['mean']:.2f} ± " in table


def test_a_classifier_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*nothing\.pt"):
        score_presets.main(tmp_path / "nothing.pt")
