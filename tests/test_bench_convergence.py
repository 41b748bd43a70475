"""Long runs compare what is comparable, and their clocks count training alone; the curves are their own business."""

import json
import time
from contextlib import ExitStack

import pytest
import torch
from PIL import Image

from benchmarks import convergence as bench
from benchmarks import results
from tgan_fast.training import PRESETS, TrainingConfig


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where results go, of few clips."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "REAL_CLIPS", 40)
    monkeypatch.setitem(bench.GENERATED_CLIPS, "cpu", 34)
    monkeypatch.setitem(bench.POINTS, "cpu", 2)
    monkeypatch.setitem(bench.PRESETS, "tiny", {**PRESETS["tiny"], "width": 1 / 32, "batch_size": 2})
    return tmp_path


@pytest.fixture(scope="module")
def config():
    return TrainingConfig(**PRESETS["tiny"] | {"width": 1 / 32, "batch_size": 2, "ema_decay": None, "device": "cpu"})


def trained(contender, times, judge=lambda generator: 0.0):
    """Its points after so many iterations, and all that its generator has."""
    for _ in range(times + 1):
        contender.train(0.0, judge)
    return contender.points[1:], contender._generator.state_dict()


def test_contenders_begin_alike_see_the_same_and_are_judged_without_a_trace(config):
    judge = bench.Judge(config, 40, 34)
    with ExitStack() as stack:
        both = bench.make_contenders("fast-vs-reference", config, stack)
        (first, weights), (second, _) = (trained(contender, 3, judge) for contender in both)
        _, unjudged = trained(bench.make_fast("not judged", config, stack), 3)
    for point, same in zip(first, second, strict=True):
        assert point["loss_discriminator"] == pytest.approx(same["loss_discriminator"], rel=0.01)
        assert point["loss_generator"] == pytest.approx(same["loss_generator"], rel=0.01)
        assert 0 < judge.floor < 0.5 * point["metric"]
    assert all(torch.equal(tensor, unjudged[name]) for name, tensor in weights.items())


def test_one_of_two_clips(config, monkeypatch):
    steps, build = [], bench.build_step
    monkeypatch.setattr(
        bench, "build_step", lambda *args, **options: steps.append(build(*args, **options)) or steps[-1]
    )
    with ExitStack() as stack:
        for contender in bench.make_contenders("svc", config, stack):
            trained(contender, 1)
    weights = [[weight.flatten(1) for weight in step.discriminator.parameters() if weight.dim() > 3] for step in steps]
    largest = [max(torch.linalg.matrix_norm(weight, 2).item() for weight in column) for column in weights[-2:]]
    assert largest[0] == pytest.approx(1, abs=1e-4)
    assert largest[1] > 1.01


def test_judging_takes_no_time_of_training_and_losses_are_means_of_a_turn():
    def iterate():
        time.sleep(0.1)
        return torch.tensor([1.0, 2.0 * len(contender.points)])

    contender = bench.Contender("a", torch.nn.Identity(), iterate)
    for until in (0.0, 0.01, 0.4):
        contender.train(until, lambda generator: time.sleep(0.2) or 1.0)
    losses = [(point["loss_discriminator"], point["loss_generator"]) for point in contender.points]
    assert losses == [(None, None), (1.0, 2.0), (1.0, 4.0)]
    # With two judgments the time would have been over.
    assert contender.points[2]["iteration"] > 2
    contender._iterate = lambda: torch.tensor([0.0, float("nan")])
    with pytest.raises(SystemExit, match="error: a: a loss is no longer finite within"):
        contender.train(0.0, lambda generator: 1.0)


def curve(*metrics):
    return [{"seconds": 10.0 * number, "metric": metric} for number, metric in enumerate(metrics)]


def test_time_to_quality_is_that_to_the_references_end():
    slow = curve(100, 90, 80, 70, 60, 50)
    reached = bench.time_to_quality(curve(100, 60, 60, 60, 10, 10), slow)
    assert reached == {"metric": 60, "seconds": 20, "reference_seconds": 50, "ratio": 2.5}
    assert "tgan_fast reaches 60 after 20 s, the reference after 50 s, 2.5 times" in bench.quality_text(reached)
    # A single good point is not the quality.
    missed = bench.time_to_quality(curve(100, 99, 1, 99, 98, 97), slow)
    assert (missed["seconds"], missed["ratio"]) == (None, None)
    assert "does not reach 60" in bench.quality_text(missed)
    # A reference that became worse is not made to look slow: it was as good as at its end before.
    assert bench.time_to_quality(curve(100, 50, 50, 60, 60, 60), curve(100, 50, 50, 60, 60, 60))["ratio"] == 1


@pytest.mark.slow
def test_a_run_writes_curves_and_a_picture_of_them(folder):
    for what in bench.TITLES:
        bench.main(what, seconds=0.2)
    (file,) = folder.glob("*.json")
    for what in bench.TITLES:
        section = json.loads(file.read_text())["sections"][f"convergence {what}"]
        assert (section["sooner"] is None) == (what == "svc")
        assert all(record["points"][-1]["seconds"] >= 0.2 for record in section["contenders"])
        assert Image.open(file.with_name(f"{file.stem}-convergence-{what}.png")).size == (1080, 840)


@pytest.mark.gpu
def test_a_smoke_run_on_a_gpu_writes_nothing(folder):
    bench.main(device="cuda", smoke=True)
    assert not list(folder.iterdir())


def test_what_cannot_be_run_is_refused(folder):
    with pytest.raises(SystemExit, match=r"error: --seconds is 0: choose more than 0"):
        bench.main(seconds=0.0)
    with pytest.raises(SystemExit, match=r"error: .*seed is -1"):
        bench.main(seed=-1)
