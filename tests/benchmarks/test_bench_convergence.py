"""Long runs compare like with like, and their clocks count only training; the curves are not checked."""

import json
import time

import pytest
import torch
from PIL import Image

from benchmarks import convergence as bench
from benchmarks import result_files
from tgan_fast.training import TrainingConfig


@pytest.fixture(scope="module")
def config():
    return TrainingConfig(**bench.SETTINGS["cpu"] | {"width": 1 / 32, "batch_size": 2, "device": "cpu"})


def trained(contender, times, distance=lambda generator: 0.0):
    for _ in range(times + 1):
        contender.train(0.0, distance)
    return contender.points[1:]


def test_contenders_begin_alike_see_the_same_and_are_scored_without_a_trace(config):
    distance = bench.DigitDistance(config, 40, 34)
    both = bench.make_fast("tgan_fast", config), bench.make_reference(config)
    first, second = (trained(contender, 3, distance) for contender in both)
    unscored = trained(bench.make_fast("not scored", config), 3)
    for point, same, other in zip(first, second, unscored, strict=True):
        for loss in ("loss_discriminator", "loss_generator"):
            assert point[loss] == pytest.approx(same[loss], rel=0.01)
            assert point[loss] == other[loss]
        assert 0 < distance.floor < 0.5 * point["metric"]


def test_judging_takes_no_time_of_training_and_losses_are_means_of_a_turn():
    def iterate():
        time.sleep(0.1)
        return torch.tensor(1.0), torch.tensor(2.0 * len(contender.points))

    contender = bench.Contender("a", torch.nn.Identity(), iterate)
    for until in (0.0, 0.01, 0.4):
        contender.train(until, lambda generator: time.sleep(0.2) or 1.0)
    losses = [(point["loss_discriminator"], point["loss_generator"]) for point in contender.points]
    assert losses == [(None, None), (1.0, 2.0), (1.0, 4.0)]
    # If evaluations counted as training, two of them would use up the time.
    assert contender.points[2]["iteration"] > 2
    contender._iterate = lambda: (torch.tensor(0.0), torch.tensor(float("nan")))
    with pytest.raises(SystemExit, match="error: a: a loss is no longer finite by iteration"):
        contender.train(0.0, lambda generator: 1.0)


def curve(*metrics):
    return [{"seconds": 10.0 * number, "metric": metric} for number, metric in enumerate(metrics)]


def test_time_to_quality_is_that_to_the_references_end():
    slow = curve(100, 90, 80, 70, 60, 50)
    reached = bench.time_to_quality(curve(100, 60, 60, 60, 10, 10), slow)
    assert reached == {"metric": 60, "seconds": 20, "reference_seconds": 50}
    # A single good point does not count.
    assert bench.time_to_quality(curve(100, 99, 1, 99, 98, 97), slow)["seconds"] is None
    # A reference that became worse had reached its final quality earlier, and must not look slow.
    worse = curve(100, 50, 50, 60, 60, 60)
    assert bench.time_to_quality(worse, worse)["reference_seconds"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_run_writes_curves_and_a_picture_of_them(device, tmp_path, monkeypatch):
    monkeypatch.setattr(result_files, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "REAL_CLIPS", 40)
    monkeypatch.setattr(bench, "GENERATED_CLIPS", {"cpu": 34, "cuda": 34})
    monkeypatch.setattr(bench, "POINTS", {"cpu": 2, "cuda": 2})
    small = {"width": 1 / 32, "batch_size": 2, "channels": 1, "digits": 1}
    monkeypatch.setitem(bench.SETTINGS, device, small)
    bench.main(seconds=0.2, device=device)
    (file,) = tmp_path.glob("*.json")
    section = json.loads(file.read_text())["sections"][bench.SECTION]
    assert section["sooner"]["metric"] > 0
    assert all(record["points"][-1]["seconds"] >= 0.2 for record in section["contenders"])
    assert Image.open(file.with_name(f"{file.stem}-convergence-fast-vs-reference.png")).size == (1080, 840)
