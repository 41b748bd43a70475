"""The benchmark of convolutions measures the networks' layers, refuses wrong results and names the best algorithms."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_convolutions as bench
from benchmarks.bench_convolutions import PerDirection
from benchmarks.suite import Run
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.ops.convolution import algorithms

SMALL = {layer.name: layer for layer in bench.layers_for(1, 1 / 16)}


def test_layers_are_those_of_the_networks(monkeypatch):
    seen, choose = [], algorithms.choose

    def note(operation, of_operation, algorithm, x, weight):
        seen.append((operation, tuple(x.shape), tuple(weight.shape)))
        return choose(operation, of_operation, algorithm, x, weight)

    monkeypatch.setattr(algorithms, "choose", note)
    VideoGenerator(1 / 16)(torch.rand(2, 100))
    VideoDiscriminator(1 / 16)(torch.rand(4, 3, 16, 64, 64))
    assert seen == [(layer.operation, layer.x, layer.weight) for layer in bench.layers_for(2, 1 / 16)]


@pytest.mark.parametrize("layer", SMALL.values(), ids=str)
def test_flops_are_those_that_pytorch_counts(layer):
    feed = bench.layer_inputs(layer, torch.float32, "cpu")
    assert all(tensor.movedim(1, -1).is_contiguous() for tensor in (feed.x, feed.weight, feed.dy))
    # The library also multiplies by the padding of two frames.
    algorithm = "inner" if layer.operation == "conv3d_two_frames" else "direct"
    for part, calls in bench.directions_of(layer).items():
        with FlopCounterMode(display=False) as counter:
            (result, *_) = calls[algorithm](feed)
        assert counter.get_total_flops() == layer.flops
        if part == "forward":
            assert feed.dy.shape == result.shape
            assert 0.5 < result.std() / feed.x.std() < 2


def test_a_wrong_algorithm_is_refused_if_it_is_used_and_left_out_otherwise():
    layer = SMALL["deconvolution 5"]
    calls = bench.directions_of(layer)["forward"]

    def wrong(feed):
        return [1.01 * tensor for tensor in calls["direct"](feed)]

    assert algorithms.TABLE[layer.operation]["cpu"].forward == "four pixels"
    with pytest.raises(SystemExit, match=r"5: forward: four pixels is off by .*: nothing is timed"):
        bench.check(layer, "forward", calls | {"four pixels": wrong}, torch.float32, "cpu")
    errors, left_out = bench.check(layer, "forward", calls | {"eight pixels": wrong}, torch.float32, "cpu")
    assert errors.keys() == {"direct", "four pixels"}
    assert left_out.keys() == {"eight pixels"}


def record_of(**parts):
    """Return a record with made-up times by algorithm for each part, and floors of a second."""
    times = [(part, *named) for part, seconds in parts.items() for named in seconds.items()]
    rows = [dict(zip(("part", "contender", "seconds"), time, strict=True), floor_seconds=1.0) for time in times]
    return {"operation": "conv3d_halving", "runs": PerDirection(1, 2, 3), "timings": rows}


@pytest.mark.parametrize(("blocks", "agrees"), [(1.0, True), (4.05, True), (8.0, False)])
def test_the_table_is_to_be_changed_only_for_what_is_clearly_better(blocks, agrees, monkeypatch):
    monkeypatch.setitem(algorithms.TABLE["conv3d_halving"], "cpu", PerDirection("pairs", "blocks", "pairs"))
    first = record_of(
        forward={"direct": 3.0, "pairs": 3.5, "direct again": 0.1},
        input_gradient={"direct": 4.0, "blocks": blocks},
        # "pairs" needs a forward pass that has rearranged x.
        parameter_gradients={"direct": 6.0, "pairs": 5.0},
    )
    # A layer without the algorithms uses "direct", regardless of the table.
    others = record_of(**{part: {"direct": 1.0} for part in PerDirection._fields})
    payload = bench.conclude(Run("cpu"), [first, others])
    (verdict,) = payload["verdicts"]
    assert verdict["best"] == PerDirection("pairs", "blocks" if blocks < 4 else "direct", "pairs")
    assert verdict["table_seconds"] == pytest.approx(3.5 + 2 * blocks + 3 * 5 + 6)
    assert verdict["direct_seconds"] == 3 + 2 * 4 + 3 * 6 + 6
    assert verdict["floor_seconds"] == 2 * (1 + 2 + 3)
    assert verdict["agree"] is agrees
    said = "agrees" if agrees else "should be PerDirection(forward='pairs', input_gradient='direct'"
    assert f"TABLE['conv3d_halving']['cpu'] {said}" in "\n".join(bench.conclusion(payload))
