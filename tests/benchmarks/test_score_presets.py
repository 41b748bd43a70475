"""The table of systems: every one has its presets, and what is written is what was trained and scored."""

import json
from dataclasses import replace

import pytest

from benchmarks import result_files, score_presets, timed_training
from benchmarks.render import figures_of
from tgan_fast.training import PRESETS


def test_every_system_is_a_preset_and_has_a_narrow_one():
    narrow = {name for name in PRESETS if name.startswith("tiny")} | {"quick"}
    assert {score_presets.tiny(name) for name in score_presets.SYSTEMS} == narrow
    assert set(PRESETS) - narrow - {"digits"} == set(score_presets.SYSTEMS) - {"quick"}


@pytest.mark.slow
def test_systems_are_trained_scored_drawn_and_listed_in_docs(tmp_path, monkeypatch):
    monkeypatch.setattr(result_files, "FOLDER", tmp_path)
    # One after another in this process, with fewer videos.
    in_turns = lambda function, jobs, device: ((job, function(job)) for job in jobs)  # noqa: E731
    monkeypatch.setattr(score_presets, "side_by_side", in_turns)
    monkeypatch.setattr(timed_training, "PROTOCOL", replace(timed_training.PROTOCOL, samples=64, real_clips=256))
    names = list(score_presets.CONSTRAINTS)
    monkeypatch.setattr(score_presets, "SYSTEMS", {name: score_presets.SYSTEMS[name] for name in names})
    score_presets.main(seconds=0.2, seeds=2, points=2)
    (path,) = tmp_path.glob("*.json")
    (section,) = json.loads(path.read_text())["sections"].values()
    assert (section["seconds"], list(section["systems"])) == (0.2, names)
    for name, system in section["systems"].items():
        assert system["preset"] == score_presets.tiny(name)
        assert [run["seed"] for run in system["runs"]] == [1, 2]
        assert system["real"]["frechet_distance"] < system["runs"][0]["curve"][-1]["frechet_distance"]
        assert (tmp_path / score_presets.picture_of(path.stem, name)).exists()
    assert (tmp_path / f"{path.stem}-constraints.png").exists()
    table = figures_of(tmp_path)["docs/variants.md"]["systems"]()
    scores = [run["curve"][-1]["inception_score"] for run in section["systems"]["vanilla"]["runs"]]
    assert f"{sum(scores) / 2:.2f} ({min(scores):.2f}–{max(scores):.2f})" in table
