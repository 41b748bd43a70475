"""The benchmark of sampling measures what it says; the figures are their own business."""

import json

import pytest
import torch

from benchmarks import bench_sampling as bench
from benchmarks import harness
from tgan_fast.models.sampling import draw_latents

WIDTH, BATCH = bench.SMOKE_WIDTH, bench.SMOKE_BATCH


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results go."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def network():
    return bench.make_network(WIDTH, "cpu")


@pytest.fixture(scope="module")
def latents():
    return draw_latents(BATCH, bench.LATENT_DIM, 0)


def test_what_runs_writes_what_was_measured(results, monkeypatch, capsys, network):
    monkeypatch.setattr(bench, "make_network", lambda width, device: network)
    monkeypatch.setitem(bench.BATCH_SIZES, "cpu", (BATCH, 1))
    bench.main("cpu")
    (path,) = results.iterdir()
    section = json.loads(path.read_text())["sections"]["sampling"]
    assert [case["batch_size"] for case in section["cases"]] == [BATCH, 1]
    for case in section["cases"]:
        rows = {row["contender"]: row for row in case["contenders"]}
        assert list(rows) == ["tgan_fast fp32", "notebook", "tuned eager", "tgan_fast fp32 again"]
        assert rows["tgan_fast fp32"]["ratio"] == 1
        assert case["left_out"] == {}
        for row in rows.values():
            assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
            assert row["videos_per_second"] == pytest.approx(case["batch_size"] / row["seconds"], rel=1e-3)
            assert row["peak_bytes"] is None
        assert all(rows[name]["error"] < 0.5 for name in list(rows)[:3])
    assert f"written to {path}" in capsys.readouterr().out


def test_a_smoke_run_writes_nothing(results, monkeypatch, network):
    monkeypatch.setattr(bench, "make_network", lambda width, device: network)
    bench.main("cpu", smoke=True)
    assert not list(results.iterdir())


def test_all_contenders_make_the_same_clips_in_which_most_levels_occur(network, latents):
    exact = bench.exact_levels(network, latents)
    assert exact.shape == (BATCH, 16, 64, 64, 3)
    for name, make in bench.makers_for(network, BATCH, ["fp32"], list(bench.CLASSES)[:-1], "cpu").items():
        clips = make()(latents)
        assert clips.dtype == torch.uint8, name
        assert bench.error_of(clips, exact) < 0.5, name
        assert len(clips.unique()) > 200, name


def test_another_result_is_not_timed(network, latents):
    makers = bench.makers_for(network, BATCH, ["fp32"], [bench.NOTEBOOK], "cpu")
    own = makers["tgan_fast fp32"]()
    with pytest.raises(SystemExit, match=r"tgan_fast fp32 is off by .* nothing is timed"):
        bench.set_up(makers | {"tgan_fast fp32": lambda: lambda z: own(z) ^ 1}, network, latents, "cpu")


def test_a_rival_that_cannot_run_is_left_out(network, latents):
    def fail():
        raise RuntimeError("out of memory\nmore")

    makers = bench.makers_for(network, BATCH, ["fp32"], [bench.NOTEBOOK], "cpu")
    contenders, _, left_out = bench.set_up(makers | {bench.TUNED: fail}, network, latents, "cpu")
    assert left_out == {bench.TUNED: "out of memory"}
    assert list(contenders) == ["tgan_fast fp32", bench.NOTEBOOK]
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.set_up(makers | {"tgan_fast fp32": fail}, network, latents, "cpu")


def test_the_floor_is_that_of_the_layers():
    """Of 64 clips. The image generator: 36.5, three times 68.7 and 7.2 GFLOP; 42, 101, 201, 403 and 281 MB."""
    operations_alone = bench.floor_seconds(1.0, 64, "bf16", 1e9, 1e30)
    assert operations_alone == pytest.approx(36.5 + 3 * 68.7 + 7.2, rel=0.01)
    bytes_alone = bench.floor_seconds(1.0, 64, "bf16", 1e30, 1e6)
    assert bytes_alone == pytest.approx(42 + 101 + 201 + 403 + 281, rel=0.04)
    assert bench.floor_seconds(1.0, 64, "bf16", 800e12, 3e12) == pytest.approx(0.45e-3, rel=0.04)


def test_goals_are_those_of_a_gpu():
    rows = [{"contender": "tgan_fast bf16", "videos_per_second": 120_000, "ratio": 1.0}]
    notebook = {"contender": bench.NOTEBOOK, "videos_per_second": 15_100, "ratio": 7.9}
    verdicts = [goal.verdict for goal in bench.goals_for([{"contenders": [*rows, notebook]}], "cuda")]
    assert verdicts == ["met", "SHORT"]
    assert bench.goals_for([{"contenders": rows}], "cuda")[1].verdict == harness.NOT_MEASURED
    assert bench.goals_for([{"contenders": rows}], "cpu") == []
