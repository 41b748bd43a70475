"""The benchmark of sampling measures what it says; the figures are their own business."""

import sys

import pytest
import torch

from benchmarks import bench_sampling as bench
from benchmarks import results, suite
from benchmarks.bench_sampling import Case
from benchmarks.suite import Label, Run, Suite
from tgan_fast.models.sampling import draw_latents

WIDTH, BATCH = bench.SMOKE_WIDTH, bench.SMOKE_BATCH


@pytest.fixture
def folder(tmp_path, monkeypatch, network):
    """Where results go, of a machine that copies and computes a unit a second."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    monkeypatch.setattr("benchmarks.ceilings.matrix_product_rate", lambda device, precision: 1.0)
    monkeypatch.setattr(bench, "make_network", lambda width, device: network)
    return tmp_path


@pytest.fixture(scope="module")
def network():
    return bench.make_network(WIDTH, "cpu")


@pytest.fixture(scope="module")
def latents():
    return draw_latents(BATCH, bench.LATENT_DIM, 0)


def test_what_runs_writes_what_was_measured(folder):
    run, case = Run("cpu", smoke=True), Case(BATCH)
    Suite(run, folder / "out.json").record(bench.SECTION, case)
    section = results.sections_of(folder / "out.json")["sampling"]
    assert section["ceilings"] == {"copy": 1.0, "fp32": 1.0}
    assert section["goals"] == []
    (record,) = section["cases"]
    assert record["batch_size"] == BATCH
    assert record["to_cpu_videos_per_second"] is None
    assert record["left_out"] == {}
    rows = {row["contender"]: row for row in record["timings"]}
    assert list(rows) == ["tgan_fast fp32", "notebook", "tuned eager", "tgan_fast fp32 again"]
    assert {Label(name) for name in rows} == set(bench.labels_for(run, case))
    assert rows["tgan_fast fp32"]["ratio"] == 1
    for name, row in rows.items():
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
        assert row["videos_per_second"] == pytest.approx(BATCH / row["seconds"], rel=1e-3)
        assert row["peak_bytes"] is None
        assert ("floor_seconds" in row) is ("share_of_floor" in row) is name.startswith("tgan_fast")
        assert row["error"] is None if name.endswith("again") else row["error"] < 0.5
    floor = sum(work.seconds(1.0, 1.0) for work in bench.layers_work(WIDTH, BATCH, "fp32"))
    for name in ("tgan_fast fp32", "tgan_fast fp32 again"):
        assert rows[name]["floor_seconds"] == pytest.approx(floor, rel=1e-3)
        assert rows[name]["share_of_floor"] == pytest.approx(floor / rows[name]["seconds"], rel=1e-3)


def test_a_smoke_run_writes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cpu", "--smoke"])
    suite.main(bench.SECTION)
    assert not list(folder.iterdir())
    assert "videos/s: tgan_fast fp32 " in capsys.readouterr().out


def test_rivals_can_be_left_out_of_the_timing(folder):
    record = Suite(Run("cpu", smoke=True, own_only=True)).record(bench.SECTION, Case(BATCH))
    assert [row["contender"] for row in record["timings"]] == ["tgan_fast fp32", "tgan_fast fp32 again"]


def test_torch_compile_takes_part_in_a_gpus_first_size_unless_nobody_wants_its_time():
    assert bench.cases_for(Run("cuda")) == [Case(64, compiled=True), Case(16), Case(256)]
    runs = [Run("cuda", own_only=True), Run("cuda", smoke=True), Run("cpu")]
    assert not any(case.compiled for run in runs for case in bench.cases_for(run))
    assert bench.COMPILED in Case(64, compiled=True).rivals("cuda")
    assert bench.COMPILED not in Case(64).rivals("cuda")


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


def test_a_rival_that_computes_something_else_is_left_out_and_excuses_nothing(network, latents):
    makers = bench.makers_for(network, BATCH, ["fp32"], [bench.NOTEBOOK, bench.TUNED], "cpu")
    notebook, own = makers[bench.NOTEBOOK](), makers["tgan_fast fp32"]()
    makers[bench.NOTEBOOK] = lambda: lambda z: notebook(z) ^ 8
    contenders, errors, left_out = bench.set_up(makers, network, latents, "cpu")
    assert list(contenders) == list(errors) == ["tgan_fast fp32", bench.TUNED]
    assert left_out.keys() == {bench.NOTEBOOK}
    assert left_out[bench.NOTEBOOK].startswith("off by 8.0")
    with pytest.raises(SystemExit, match="nothing is timed"):
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

    def floor(flops_per_second, bytes_per_second):
        works = bench.layers_work(1.0, 64, "bf16")
        return sum(work.seconds(flops_per_second, bytes_per_second) for work in works)

    assert floor(1e9, 1e30) == pytest.approx(36.5 + 3 * 68.7 + 7.2, rel=0.01)
    assert floor(1e30, 1e6) == pytest.approx(42 + 101 + 201 + 403 + 281, rel=0.04)
    assert floor(800e12, 3e12) == pytest.approx(0.45e-3, rel=0.04)


def record(batch_size=64, **ratios):
    """Made-up, of contenders that take so many times as long as the first."""
    rows = [{"contender": name, "videos_per_second": 120_000 / ratio, "ratio": ratio} for name, ratio in ratios.items()]
    return {"batch_size": batch_size, "timings": rows}


def test_goals_are_those_of_a_gpu():
    met_and_short = record(bf16=1.0, notebook=7.9)
    assert [goal.verdict for goal in bench.goals_for([met_and_short], "cuda")] == ["met", "SHORT"]
    assert [goal.verdict for goal in bench.goals_for([record(bf16=1.0)], "cuda")] == ["met", results.NOT_MEASURED]
    for records in ([], [record(16, bf16=1.0, notebook=9.0)]):
        assert [goal.verdict for goal in bench.goals_for(records, "cuda")] == [results.NOT_MEASURED] * 2
    assert bench.goals_for([met_and_short], "cpu") == []
