"""The benchmark of convolutions measures the networks' layers, refuses what is wrong and names the best algorithms."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_convolutions as bench
from benchmarks.bench_convolutions import Passes
from benchmarks.suite import Run
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.ops.convolution import forms

SMALL = {layer.name: layer for layer in bench.layers_for(1, 1 / 16)}
FIRST, FIFTH = SMALL["convolution 1"], SMALL["deconvolution 5"]


def test_layers_are_those_of_the_networks(monkeypatch):
    seen, choose = [], forms.choose

    def note(operation, of_operation, form, x, weight):
        seen.append((operation, tuple(x.shape), tuple(weight.shape)))
        return choose(operation, of_operation, form, x, weight)

    monkeypatch.setattr(forms, "choose", note)
    VideoGenerator(1 / 16)(torch.rand(2, 100))
    VideoDiscriminator(1 / 16)(torch.rand(4, 3, 16, 64, 64))
    assert seen == [(layer.operation, layer.x, layer.weight) for layer in bench.layers_for(2, 1 / 16)]


@pytest.mark.parametrize("layer", SMALL.values(), ids=str)
def test_flops_are_those_that_pytorch_counts(layer):
    feed = bench.feed_of(layer, torch.float32, "cpu")
    assert all(tensor.movedim(1, -1).is_contiguous() for tensor in (feed.x, feed.weight, feed.dy))
    # The library also multiplies by what pads two frames.
    algorithm = "inner" if layer.operation == bench.TWO_FRAMES else "direct"
    for calls in bench.calls_for(layer).values():
        with FlopCounterMode(display=False) as counter:
            (result, *_) = calls[algorithm](feed)
        assert counter.get_total_flops() == layer.flops
        if calls is bench.calls_for(layer)["forward"]:
            assert feed.dy.shape == result.shape
            assert 0.5 < result.std() / feed.x.std() < 2


def test_only_algorithms_of_the_table_take_part():
    assert set(SMALL["deconvolution 2"].algorithms) == {"direct"}
    calls = bench.calls_for(FIRST)
    assert {part: set(named) for part, named in calls.items()} == {
        "forward": {"direct", "pairs"},
        "input_gradient": {"direct", "blocks"},
        "parameter_gradients": {"direct", "pairs"},
    }


def test_a_wrong_algorithm_is_refused_if_it_is_used_and_left_out_otherwise():
    def check(part, **others):
        calls = bench.calls_for(FIFTH)[part]
        changed = {name.replace("_", " "): other(calls["direct"]) for name, other in others.items()}
        return bench.check(FIFTH, part, calls | changed, torch.float32, "cpu")

    def wrong(direct):
        return lambda feed: [1.01 * tensor for tensor in direct(feed)]

    def failing(direct):
        return lambda feed: torch.rand(2) @ torch.rand(3)

    assert forms.TABLE[FIFTH.operation]["cpu"].forward == "four pixels"
    with pytest.raises(SystemExit, match=r"5: forward: four pixels is off by .*: nothing is timed"):
        check("forward", four_pixels=wrong)
    errors, left_out = check("forward", eight_pixels=wrong, broken=failing)
    assert errors.keys() == {"direct", "four pixels"}
    assert left_out.keys() == {"eight pixels", "broken"}


def record_of(**parts):
    """Return a record with made-up times by algorithm for each part, and floors of a second."""
    rows = [
        {"part": part, "contender": name, "seconds": seconds, "floor_seconds": 1.0}
        for part, named in parts.items()
        for name, seconds in named.items()
    ]
    return {"operation": "conv3d_halving", "runs": Passes(1, 2, 3), "timings": rows}


@pytest.mark.parametrize(("blocks", "agrees"), [(1.0, True), (4.05, True), (8.0, False)])
def test_the_table_is_to_be_changed_only_for_what_is_clearly_better(blocks, agrees, monkeypatch):
    monkeypatch.setitem(forms.TABLE["conv3d_halving"], "cpu", Passes("pairs", "blocks", "pairs"))
    first = record_of(
        forward={"direct": 3.0, "pairs": 3.5, "direct again": 0.1},
        input_gradient={"direct": 4.0, "blocks": blocks},
        # By "pairs" only after a forward pass that has rearranged x, too.
        parameter_gradients={"direct": 6.0, "pairs": 5.0},
    )
    # A layer without the algorithms computes by "direct", whatever stands in the table.
    others = record_of(**{part: {"direct": 1.0} for part in Passes._fields})
    payload = bench.conclude(Run("cpu"), [first, others])
    (verdict,) = payload["verdicts"]
    assert verdict["best"] == Passes("pairs", "blocks" if blocks < 4 else "direct", "pairs")
    assert verdict["table_seconds"] == 3.5 + 2 * blocks + 3 * 5 + 6
    assert verdict["direct_seconds"] == 3 + 2 * 4 + 3 * 6 + 6
    assert verdict["floor_seconds"] == 2 * (1 + 2 + 3)
    assert verdict["agree"] is agrees
    said = "agrees" if agrees else "should be Passes(forward='pairs', input_gradient='direct'"
    assert f"TABLE['conv3d_halving']['cpu'] {said}" in "\n".join(bench.conclusion(payload))
