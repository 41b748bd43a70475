"""The benchmark of convolutions measures what it says; the figures are their own business."""

import json

import pytest
import torch

from benchmarks import bench_convolutions as bench
from benchmarks import harness
from benchmarks.bench_convolutions import Passes
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.ops.convolution import forms

SMALL = bench.layers_for(1, 1 / 16)
FIRST = next(layer for layer in SMALL if layer.name == "convolution 1")
FIFTH = next(layer for layer in SMALL if layer.name == "deconvolution 5")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results go, of a machine that copies and computes a unit a second."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "copy_bandwidth", lambda device: 1.0)
    monkeypatch.setattr(harness, "matrix_product_rate", lambda device, precision: 1.0)
    return tmp_path


def test_layers_are_those_of_the_networks(monkeypatch):
    seen, choose = [], forms.choose

    def note(operation, of_operation, form, x, weight):
        seen.append((operation, tuple(x.shape), tuple(weight.shape)))
        return choose(operation, of_operation, form, x, weight)

    monkeypatch.setattr(forms, "choose", note)
    VideoGenerator(1 / 16)(torch.rand(2, 100))
    VideoDiscriminator(1 / 16)(torch.rand(4, 3, 16, 64, 64))
    assert seen == [(layer.operation, layer.x, layer.weight) for layer in bench.layers_for(2, 1 / 16)]


def test_operations_and_floors_are_those_on_paper():
    gflop = {layer.name: layer.flops / 1e9 for layer in bench.layers_for(32)}
    for number in (2, 3, 4):
        assert gflop[f"deconvolution {number}"] == pytest.approx(34.36, abs=0.01)
    halves = gflop["deconvolution 1"], gflop["deconvolution 1 of content"]
    assert halves == pytest.approx((17.18, 17.18 / 16), abs=0.01)
    assert gflop["deconvolution 5"] == pytest.approx(3.62, abs=0.01)
    convolutions = [gflop[f"convolution {number}"] for number in (1, 2, 3, 4)]
    assert convolutions == pytest.approx([2 * 6.44, 2 * 34.36, 2 * 17.18, 8.59], abs=0.01)
    assert bench.Ceilings(FIRST.flops, 1.0).floor(FIRST, 2) == 2
    assert bench.Ceilings(FIRST.flops / 3, 1.0).floor(FIRST, 2) == pytest.approx(3)


@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_tensors_have_their_channels_last_and_the_sizes_of_the_layer(layer):
    feed = bench.feed_of(layer, torch.float32, "cpu")
    contenders = bench.contenders_for(layer)
    y = contenders.forward["direct"](feed)
    assert feed.x.shape == layer.x
    assert feed.weight.shape == layer.weight
    assert feed.dy.shape == y.shape
    assert 0.5 < y.std() / feed.x.std() < 2
    for tensor in (feed.x, feed.weight, feed.dy):
        assert tensor.movedim(1, -1).is_contiguous()


def test_what_runs_writes_what_was_measured(results, monkeypatch, capsys):
    monkeypatch.setattr(bench, "layers_for", lambda batch, width: [FIRST, FIFTH])
    monkeypatch.setattr(harness, "input_set_count", lambda nbytes, device: 2)
    bench.main("cpu")
    (path,) = results.iterdir()
    section = json.loads(path.read_text())["sections"]["convolutions"]
    assert section["precision"] == "fp32"
    first, fifth = section["layers"]
    measured = {(timing["pass"], timing["form"]) for timing in first["timings"]}
    assert {("forward", "pairs"), ("input_gradient", "blocks"), ("prepare", "pairs")} < measured
    assert ("forward", "blocks") not in measured
    for timing in (*first["timings"], *fifth["timings"]):
        assert 0 < timing["p10"] <= timing["seconds"] <= timing["p90"]
        assert timing["error"] is None or timing["error"] < 1e-5
    assert fifth["floor_seconds"] == pytest.approx(FIFTH.flops, rel=1e-3)
    assert [verdict["operation"] for verdict in section["verdicts"]] == [FIRST.operation, FIFTH.operation]
    assert "TABLE['conv3d_halving']['cpu']" in capsys.readouterr().out


@pytest.mark.slow
def test_a_smoke_run_writes_nothing(results):
    bench.main("cpu", smoke=True)
    assert not list(results.iterdir())


def test_another_result_is_not_timed():
    contenders = bench.contenders_for(FIFTH)
    contenders.forward["wrong"] = lambda feed: contenders.forward["direct"](feed) * 1.01
    with pytest.raises(SystemExit, match=r"forward in the form 'wrong' is off by .*: nothing is timed"):
        bench.check(FIFTH, contenders, torch.float32, "cpu")


def test_a_form_that_cannot_run_is_left_out_but_not_the_librarys():
    def fail(feed):
        raise RuntimeError("no engine\nmore")

    contenders = bench.contenders_for(FIFTH)
    contenders.input_gradient["broken"] = fail
    errors, left_out = bench.check(FIFTH, contenders, torch.float32, "cpu")
    assert left_out == {"input_gradient broken": "no engine"}
    assert "broken" not in contenders.input_gradient
    assert "broken" not in errors["input_gradient"]
    contenders.forward["direct"] = fail
    with pytest.raises(RuntimeError, match="no engine"):
        bench.check(FIFTH, contenders, torch.float32, "cpu")


def record(layer, **passes):
    """As `run` returns it, of made-up times by form for each pass."""
    timings = [
        {"pass": which, "form": form, "seconds": seconds}
        for which, named in passes.items()
        for form, seconds in named.items()
    ]
    return {**layer._asdict(), "timings": timings, "floor_seconds": 1.0}


SLOW_TO_PREPARE = {
    "forward": {"direct": 3.0, "pairs": 3.5, "direct again": 0.1},
    "input_gradient": {"direct": 4.0, "blocks": 1.0},
    "parameter_gradients": {"direct": 6.0, "pairs": 5.0},
    "prepare": {"pairs": 2.0, "pairs again": 2.0},
}


def test_the_best_forms_count_preparing_once_and_how_often_passes_run():
    layer = FIRST._replace(runs=Passes(1, 1, 1))
    measured = record(layer, **SLOW_TO_PREPARE)
    assert bench.iteration_seconds(measured, Passes("pairs", "direct", "pairs")) == 3.5 + 4 + 5
    assert bench.iteration_seconds(measured, Passes("direct", "blocks", "pairs")) == 3 + 1 + 5 + 2
    assert bench.best([measured]) == (Passes("pairs", "blocks", "pairs"), 9.5)
    often = record(layer._replace(runs=Passes(9, 1, 1)), **SLOW_TO_PREPARE)
    assert bench.best([often]) == (Passes("direct", "blocks", "direct"), 9 * 3 + 1 + 6)


def test_layers_that_lack_a_form_are_counted_in_direct():
    wide = {name: {"direct": 10.0} for name in Passes._fields}
    layers = [record(layer, **times) for layer, times in ((FIRST, SLOW_TO_PREPARE), (FIRST, wide))]
    expected = 10 * sum(FIRST.runs)
    assert bench.iteration_seconds(layers[1], Passes("pairs", "blocks", "pairs")) == expected
    winner, seconds = bench.best(layers)
    assert winner.input_gradient == "blocks"
    assert seconds == bench.iteration_seconds(layers[0], winner) + expected


@pytest.mark.parametrize(("blocks", "agrees"), [(1.0, True), (4.05, True), (8.0, False)])
def test_the_table_is_to_be_changed_only_for_what_is_clearly_better(blocks, agrees, monkeypatch, capsys):
    monkeypatch.setitem(forms.TABLE["conv3d_halving"], "cpu", Passes("pairs", "blocks", "pairs"))
    times = SLOW_TO_PREPARE | {"input_gradient": {"direct": 4.0, "blocks": blocks}}
    verdicts = bench.verdicts_for([record(FIRST._replace(runs=Passes(1, 1, 1)), **times)], "cpu")
    assert verdicts[0]["agree"] is agrees
    bench.print_verdicts(verdicts, "cpu")
    said = "agrees" if agrees else "should be Passes(forward='pairs', input_gradient='direct'"
    assert f"TABLE['conv3d_halving']['cpu'] {said}" in capsys.readouterr().out
