"""The benchmark of convolutions measures what it says; the figures are their own business."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_convolutions as bench
from benchmarks import results, suite
from benchmarks.bench_convolutions import SECTION, Passes
from benchmarks.suite import Run, Suite
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.ops.convolution import forms

SMALL = bench.layers_for(1, 1 / 16)
FIRST = next(layer for layer in SMALL if layer.name == "convolution 1")
FOURTH = next(layer for layer in SMALL if layer.name == "convolution 4")
FIFTH = next(layer for layer in SMALL if layer.name == "deconvolution 5")

each_layer = pytest.mark.parametrize("layer", SMALL, ids=str)


def test_layers_are_those_of_the_networks(monkeypatch):
    seen, choose = [], forms.choose

    def note(operation, of_operation, form, x, weight):
        seen.append((operation, tuple(x.shape), tuple(weight.shape)))
        return choose(operation, of_operation, form, x, weight)

    monkeypatch.setattr(forms, "choose", note)
    VideoGenerator(1 / 16)(torch.rand(2, 100))
    VideoDiscriminator(1 / 16)(torch.rand(4, 3, 16, 64, 64))
    assert seen == [(layer.operation, layer.x, layer.weight) for layer in bench.layers_for(2, 1 / 16)]


def test_flops_are_those_on_paper():
    gflop = {layer.name: layer.flops / 1e9 for layer in bench.layers_for(32)}
    for number in (2, 3, 4):
        assert gflop[f"deconvolution {number}"] == pytest.approx(34.36, abs=0.01)
    halves = gflop["deconvolution 1"], gflop["deconvolution 1 of content"]
    assert halves == pytest.approx((17.18, 17.18 / 16), abs=0.01)
    assert gflop["deconvolution 5"] == pytest.approx(3.62, abs=0.01)
    convolutions = [gflop[f"convolution {number}"] for number in (1, 2, 3, 4)]
    assert convolutions == pytest.approx([2 * 6.44, 2 * 34.36, 2 * 17.18, 8.59], abs=0.01)


@each_layer
def test_flops_are_those_that_pytorch_counts(layer):
    # The library also multiplies by what pads two frames.
    form = "inner" if layer is FOURTH else "direct"
    feed = bench.feed_of(layer, torch.float32, "cpu")
    works = bench.works_for(layer, feed)
    for which, calls in bench.contenders_for(layer)._asdict().items():
        with FlopCounterMode(display=False) as counter:
            calls[form](feed)
        assert counter.get_total_flops() == works[which].flops


@each_layer
def test_bytes_are_those_of_what_a_pass_takes_and_returns(layer):
    feed = bench.feed_of(layer, torch.bfloat16, "cpu")
    bias = [] if feed.bias is None else [feed.bias]
    taken = Passes([feed.x, feed.weight, *bias], [feed.dy, feed.weight], [feed.dy, feed.x])
    works = bench.works_for(layer, feed)
    for which, tensors in taken._asdict().items():
        returned = bench._tensors(getattr(bench.contenders_for(layer), which)["direct"](feed))
        assert works[which].nbytes == sum(tensor.nbytes for tensor in (*tensors, *returned))


@each_layer
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


@pytest.mark.parametrize("layer", [FIRST, FIFTH], ids=str)
def test_a_record_has_what_was_measured(layer):
    run = Run("cpu", smoke=True)
    record = Suite(run).record(SECTION, layer)
    assert record["case"] == layer.name
    assert record["operation"] == layer.operation
    assert record["dtype"] == "float32"
    labels = [(row["contender"], row["part"]) for row in record["timings"]]
    assert labels == bench.labels_for(run, layer)
    for which in Passes._fields:
        assert next(contender for contender, part in labels if part == which) == "direct"
    for row in record["timings"]:
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
        assert ("flops" in row) == (row["part"] != bench.PREPARE)
        assert (row["error"] is None) == (row["contender"].endswith("again") or row["part"] == bench.PREPARE)
        assert row["error"] is None or row["error"] < 1e-5
    entry = forms.TABLE[layer.operation]["cpu"]
    said = "\n".join(bench.details(record))
    assert f"in the table  forward {entry.forward}, input_gradient {entry.input_gradient}" in said


def test_parts_are_the_passes_that_forms_have_and_what_they_prepare():
    labels = {(label.part, label.contender) for label in bench.labels_for(Run("cpu", smoke=True), FIRST)}
    assert {("forward", "pairs"), ("input_gradient", "blocks"), ("prepare", "pairs")} < labels
    assert ("forward", "blocks") not in labels


def test_cudnn_chooses_its_algorithms_for_what_is_timed_alone(monkeypatch):
    seen, check = [], bench.check

    def note(*arguments):
        seen.append(("check", torch.backends.cudnn.benchmark, torch.is_grad_enabled()))
        return check(*arguments)

    run = Run("cpu", smoke=True)
    timed = run.measure

    def note_too(*arguments):
        seen.append(("measure", torch.backends.cudnn.benchmark, torch.is_grad_enabled()))
        return timed(*arguments)

    monkeypatch.setattr(bench, "check", note)
    monkeypatch.setattr(run, "measure", note_too)
    before = torch.backends.cudnn.benchmark
    bench.measure(run, FIFTH)
    assert seen == [("check", False, False), *[("measure", True, False)] * 3]
    assert torch.backends.cudnn.benchmark == before


def test_a_smoke_run_prints_what_to_change_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "layers_for", lambda *sizes: [FIFTH])
    monkeypatch.setattr("sys.argv", ["bench", "--smoke", "--device", "cpu"])
    suite.main(SECTION)
    assert not list(tmp_path.iterdir())
    assert "TABLE['conv_transpose2d_same']['cpu']" in capsys.readouterr().out


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


def record_of(layer, **parts):
    """As `measure` returns it, of made-up times by form for each part, with floors of a second."""
    rows = [
        {"part": part, "contender": form, "seconds": seconds, "floor_seconds": 1.0}
        for part, named in parts.items()
        for form, seconds in named.items()
    ]
    return {**layer._asdict(), "timings": rows}


SLOW_TO_PREPARE = {
    "forward": {"direct": 3.0, "pairs": 3.5, "direct again": 0.1},
    "input_gradient": {"direct": 4.0, "blocks": 1.0},
    "parameter_gradients": {"direct": 6.0, "pairs": 5.0},
    "prepare": {"pairs": 2.0, "pairs again": 2.0},
}


def test_the_best_forms_count_preparing_once_and_how_often_passes_run():
    layer = FIRST._replace(runs=Passes(1, 1, 1))
    measured = record_of(layer, **SLOW_TO_PREPARE)
    assert bench.iteration_seconds(measured, Passes("pairs", "direct", "pairs")) == 3.5 + 4 + 5
    assert bench.iteration_seconds(measured, Passes("direct", "blocks", "pairs")) == 3 + 1 + 5 + 2
    assert bench.best([measured]) == (Passes("pairs", "blocks", "pairs"), 9.5)
    often = record_of(layer._replace(runs=Passes(9, 1, 1)), **SLOW_TO_PREPARE)
    assert bench.best([often]) == (Passes("direct", "blocks", "direct"), 9 * 3 + 1 + 6)


def test_layers_that_lack_a_form_are_counted_in_direct():
    wide = {name: {"direct": 10.0} for name in Passes._fields}
    layers = [record_of(layer, **times) for layer, times in ((FIRST, SLOW_TO_PREPARE), (FIRST, wide))]
    expected = 10 * sum(FIRST.runs)
    assert bench.iteration_seconds(layers[1], Passes("pairs", "blocks", "pairs")) == expected
    winner, seconds = bench.best(layers)
    assert winner.input_gradient == "blocks"
    assert seconds == bench.iteration_seconds(layers[0], winner) + expected


@pytest.mark.parametrize(("blocks", "agrees"), [(1.0, True), (4.05, True), (8.0, False)])
def test_the_table_is_to_be_changed_only_for_what_is_clearly_better(blocks, agrees, monkeypatch):
    monkeypatch.setitem(forms.TABLE["conv3d_halving"], "cpu", Passes("pairs", "blocks", "pairs"))
    times = SLOW_TO_PREPARE | {"input_gradient": {"direct": 4.0, "blocks": blocks}}
    measured = record_of(FIRST._replace(runs=Passes(1, 2, 3)), **times)
    payload = bench.conclude(Run("cpu"), [measured])
    (verdict,) = payload["verdicts"]
    assert verdict["agree"] is agrees
    assert verdict["floor_seconds"] == 1 + 2 + 3
    said = "agrees" if agrees else "should be Passes(forward='pairs', input_gradient='direct'"
    assert f"TABLE['conv3d_halving']['cpu'] {said}" in "\n".join(bench.conclusion(payload))
