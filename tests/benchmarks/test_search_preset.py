"""The search for the preset quick: valid settings, a log that is continued, and trials that fall behind."""

import json

import pytest

from benchmarks import search_preset
from tgan_fast.training import TrainingConfig


def test_trials_are_valid_reproducible_and_differ():
    trials = [search_preset.draw_settings(seed) for seed in range(100)]
    for settings in trials:
        TrainingConfig(**settings)
    assert trials == [search_preset.draw_settings(seed) for seed in range(100)]
    assert len({json.dumps(settings) for settings in trials}) == 100


@pytest.mark.parametrize(("distance", "goes_on"), [(20.0, True), (25.0, True), (25.1, False)])
def test_a_trial_ends_where_it_falls_behind_the_median(tmp_path, distance, goes_on):
    log = tmp_path / "log.jsonl"
    point = {"seconds": 30.0, "iteration": 10, "inception_score": 1.0}
    curve = [point | {"frechet_distance": distance}]
    assert search_preset.is_not_behind(log, [point | {"frechet_distance": 1e9}])
    lines = [{"trial": 0, "settings": {}, "curve": [point | {"frechet_distance": x}]} for x in (10.0, 20.0, 30.0, 40.0)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert search_preset.is_not_behind(log, curve) == goes_on
    # None of the others has come as far.
    assert search_preset.is_not_behind(log, [*curve, curve[0] | {"seconds": 60.0}])


@pytest.mark.slow
def test_a_search_goes_on_where_its_log_ends_and_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search_preset, "LOG", tmp_path / "log.jsonl")
    for _ in range(2):
        search_preset.main(trials=1, seconds=0.2, points=2)
    log = search_preset.read_log(search_preset.LOG)
    assert [record["trial"] for record in log] == [0, 1]
    assert [record["settings"] for record in log] == [search_preset.draw_settings(seed) for seed in (0, 1)]
    for record in log:
        assert len(record["curve"]) == 2
        assert record["curve"][1]["seconds"] >= 0.2
        assert record["curve"][1]["frechet_distance"] > 0
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")
    # A trial a line and, at the end, all of them.
    assert len(capsys.readouterr().out.splitlines()) == 2 + 1 + 2
