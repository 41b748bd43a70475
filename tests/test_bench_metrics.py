"""The benchmark of scores times what computes the same; the figures are their own business."""

import functools
import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import bench_metrics as bench
from benchmarks import results, suite
from benchmarks.results import NOT_MEASURED
from benchmarks.suite import Label, Run, Suite

SMOKE = Run("cpu", smoke=True)
C3D, SMALL = bench.NETWORKS
PREPARING = list(bench.PREPARING)
FC7, LOGITS = bench.FRECHET
# They run C3D.
SLOW = bench.SCORING, C3D
CASES = [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in bench.SECTION.cases(SMOKE)]
RIVALS = {
    bench.SCORING: [],
    **{case: [bench.EAGER] for case in bench.NETWORKS},
    **{case: [bench.PRODUCTS] for case in bench.PREPARING},
    **{case: [bench.TORCHMETRICS, bench.SCIPY] for case in bench.FRECHET},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where results go, of a machine that copies and computes a unit a second."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    monkeypatch.setattr("benchmarks.ceilings.matrix_product_rate", lambda device, precision: 1.0)
    return tmp_path


@pytest.fixture(scope="module")
def done():
    """Measures every case once."""
    return Suite(Run("cpu", smoke=True))


def record_of(case, **options):
    return Suite(Run("cpu", smoke=True, **options)).record(bench.SECTION, case)


def labels_of(record):
    return [Label.of(row) for row in record["timings"]]


def refused(case, name):
    return pytest.raises(SystemExit, match=rf"error: {case}: {name} is off by .*: nothing is timed")


@pytest.mark.parametrize("case", CASES)
def test_what_runs_is_what_was_announced_and_near_to_what_is_exact(case, done):
    record = done.record(bench.SECTION, case)
    assert labels_of(record) == bench.SECTION.labels(SMOKE, case)
    assert record["rivals"] == RIVALS[case]
    assert record["left_out"] == {}
    *rows, again = record["timings"]
    assert again["error"] is None
    assert again["contender"] == f"{rows[0]['contender']} again"
    for row in rows:
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
        errors = row["error"].values() if case == bench.SCORING else [row["error"]]
        assert all(0 < error < 2e-5 for error in errors)
    payload = done.payload(bench.SECTION)
    assert json.loads(json.dumps(payload)) == payload


@pytest.mark.parametrize("case", CASES[: -len(bench.FRECHET)])
def test_rates_are_those_of_all_videos(case, done):
    record = done.record(bench.SECTION, case)
    # One at once; of all of it two.
    count = 2 if case == bench.SCORING else 1
    for row in record["timings"]:
        assert row["videos_per_second"] == pytest.approx(count / row["seconds"], rel=1e-3)
        own = row["contender"].startswith(bench.OURS)
        assert ("share_of_floor" in row) is (own or case in bench.PREPARING)
        if "share_of_floor" in row:
            assert row["share_of_floor"] == pytest.approx(row["floor_seconds"] / row["seconds"], rel=2e-3)
    assert "videos/s" in next(bench.SECTION.details(record))


def test_operations_are_those_of_all_convolutions_and_linear_layers():
    """Of C3D: twice 27 times both numbers of channels, at each place of the output."""
    sizes = {1: 16 * 112 * 112, 2: 16 * 56 * 56, 3: 8 * 28 * 28, 4: 4 * 14 * 14, 5: 2 * 7 * 7}
    channels = (3, 64, 1), (64, 128, 2), (128, 256, 3), (256, 256, 3)
    channels += (256, 512, 4), (512, 512, 4), (512, 512, 5), (512, 512, 5)
    convolutions = [2 * 27 * before * after * sizes[level] for before, after, level in channels]
    linear = [2 * 8192 * 4096, 2 * 4096 * 4096, 2 * 4096 * 101]
    assert [layer.flops for layer in bench.layers_of("c3d")] == [*convolutions, *linear]
    assert sum(convolutions) + sum(linear) == pytest.approx(77.1e9, rel=1e-3)
    widths, places = (1, 16, 32, 64, 128), (8 * 32 * 32, 4 * 16 * 16, 2 * 8 * 8, 4 * 4)
    convolutions = [2 * 27 * a * b * n for a, b, n in zip(widths, widths[1:], places, strict=False)]
    assert [layer.flops for layer in bench.layers_of("small")] == [*convolutions, 2 * 128 * 10]


def test_the_floor_of_a_network_is_that_of_its_layers():
    """At a byte and an operation a second nothing is bound by its bytes; in bf16 these are half as many."""
    layers = bench.layers_of("c3d")
    assert bench.floor_seconds(SMOKE, "c3d", 3, "fp32") == 3 * sum(layer.flops for layer in layers)
    values = sum(3 * (layer.inputs + layer.outputs) + layer.weights for layer in layers)
    run = Run("cuda")
    run.ceilings._rates = {"copy": 1.0, "bf16": 1e12, "fp32": 1e12}
    assert bench.floor_seconds(run, "c3d", 3, "bf16") == 2 * values
    assert bench.floor_seconds(run, "c3d", 3, "fp32") == 4 * values


@pytest.mark.parametrize("n", [1, 2, 7, 64, 409])
def test_cosines_are_orthogonal_to_each_other_and_to_a_constant(n):
    matrix = bench.cosines(n, "cpu")
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-13)
    assert matrix[1:].sum(1).abs().max() < 1e-11 if n > 1 else True


@pytest.mark.parametrize(("n", "d"), [(60, 12), (8, 20)])
def test_the_distance_of_a_problem_is_that_of_the_definition(n, d):
    """By eigenvalues of the product of the covariances, which do not commute."""
    features, gaussian, distance = bench.make_problem(n, d, "cpu")
    assert features.dtype == torch.float32
    features, mean, covariance = features.double(), gaussian.mean, gaussian.covariance
    own = features.T.cov()
    products = own @ covariance, covariance @ own
    assert (products[0] - products[1]).norm() > 0.1 * products[0].norm()
    roots = torch.linalg.eigvals(products[0]).real.clamp(min=0).sqrt().sum()
    expected = (features.mean(0) - mean).square().sum() + own.trace() + covariance.trace() - 2 * roots
    assert distance == pytest.approx(expected.item(), rel=1e-6)
    assert distance > 0.1 * (own.trace() + covariance.trace())


@pytest.mark.parametrize("case", bench.FRECHET)
def test_another_distance_is_not_timed(case, monkeypatch):
    frechet_distance = bench.frechet_distance
    monkeypatch.setattr(bench, "frechet_distance", lambda *arguments: (1 + 1e-5) * frechet_distance(*arguments))
    with refused(case, "tgan_fast"):
        record_of(case)


def test_a_rival_that_computes_something_else_or_cannot_run_or_takes_minutes_is_left_out(monkeypatch):
    def fail(problem):
        raise RuntimeError("no eigenvalues without MAGMA\nmore")

    monkeypatch.setitem(bench.DISTANCES, bench.TORCHMETRICS, fail)
    monkeypatch.setitem(bench.DISTANCES, bench.SCIPY, lambda problem: 2 * problem.distance)
    record = record_of(LOGITS)
    assert record["left_out"][bench.TORCHMETRICS] == "no eigenvalues without MAGMA"
    assert record["left_out"][bench.SCIPY].startswith("is off by 1.0e+00")
    assert labels_of(record) == [Label("tgan_fast"), Label("tgan_fast again")]
    monkeypatch.setitem(bench.MOST_FEATURES, "cpu", {bench.TORCHMETRICS: 5, bench.SCIPY: 5000})
    assert record_of(LOGITS)["left_out"][bench.TORCHMETRICS] == "10 features take it minutes"


def test_a_distance_that_cannot_be_computed_is_no_rivals_fault(monkeypatch):
    def fail(problem):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(bench.DISTANCES, bench.OURS, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        record_of(LOGITS)


@pytest.mark.parametrize("case", PREPARING)
def test_other_colours_or_places_are_not_timed(case, monkeypatch):
    name = bench.PREPARING[case]
    protocol = bench.PROTOCOLS[name]

    def red_first(videos, mean):
        return protocol.prepare(videos.flip(1), mean)

    def moved(videos, mean):
        return protocol.prepare(videos, mean).roll(1, -1)

    for wrong in (red_first, moved):
        monkeypatch.setitem(bench.PROTOCOLS, name, replace(protocol, prepare=wrong))
        with refused(case, "tgan_fast"):
            record_of(case)


class Distorted(bench.ClassifierFeatures):
    """Sees one feature wrongly."""

    def of_generated(self, videos):
        seen = super().of_generated(videos)
        seen.features[:, 0] += 0.1 * seen.features.norm()
        return seen


class Unsure(bench.ClassifierFeatures):
    """Sees the right features and other probabilities."""

    def of_generated(self, videos):
        seen = super().of_generated(videos)
        return seen._replace(probabilities=(0.9 * seen.probabilities + 0.1 / seen.probabilities.shape[1]))


@pytest.mark.parametrize("wrong", [Distorted, Unsure])
def test_what_sees_something_else_is_not_timed(wrong, monkeypatch):
    monkeypatch.setattr(bench, "ClassifierFeatures", wrong)
    with refused(SMALL, "tgan_fast fp32"):
        record_of(SMALL)


def test_what_is_not_a_number_is_the_worst():
    assert bench.worst([1e-9, 0.25]) == 0.25
    for errors in ([math.nan, 1.0], [1.0, math.nan]):
        assert math.isnan(bench.worst(errors))


class NotANumber(bench.Eager):
    """A rival that sees nothing."""

    def __call__(self, videos):
        seen = super().__call__(videos)
        return seen._replace(features=seen.features * torch.nan)


def test_a_rival_that_sees_something_else_is_left_out(monkeypatch):
    monkeypatch.setitem(bench.CLASSES, bench.EAGER, NotANumber)
    record = record_of(SMALL)
    assert record["left_out"][bench.EAGER].startswith("is off by nan")
    assert labels_of(record) == [Label("tgan_fast fp32"), Label("tgan_fast fp32 again")]


def test_tuned_eager_sees_what_the_others_see():
    """It is a rival on GPUs alone, but runs here, too."""
    protocol, classifier = bench.PROTOCOLS["plain"], bench.make_classifier("small")
    videos = bench.random_videos(2, 1, "cpu")
    exact = bench.exactly_seen(classifier, protocol, videos)
    for rival, allowed in ((bench.Eager, 1e-6), (bench.StrictEager, 1e-6), (bench.Tuned, 2e-2)):
        seen = rival(classifier, protocol, "cpu")(videos)
        assert seen.features.dtype == seen.probabilities.dtype == torch.float32
        assert 0 < bench.error_of(seen.features, exact.features) < allowed
        assert 0 < bench.error_of(seen.probabilities, exact.probabilities) < allowed


def test_a_classifier_tells_videos_apart_and_is_never_sure():
    classifier = bench.make_classifier("small")
    with torch.no_grad():
        logits = classifier.network(bench._two_of_patches("small"))["logits"]
    probabilities = logits.softmax(1)
    assert (probabilities[0] - probabilities[1]).abs().max() > 0.01
    assert probabilities.max() < 0.9


@pytest.mark.slow
def test_scores_of_other_videos_are_not_timed(monkeypatch):
    monkeypatch.setattr(bench, "Evaluator", functools.partial(bench.Evaluator, seed=1))
    with refused(bench.SCORING, "tgan_fast fp32"):
        record_of(bench.SCORING)


def test_rivals_can_be_left_out_of_the_timing():
    for case in (LOGITS, SMALL, PREPARING[0]):
        record = record_of(case, own_only=True)
        first, *_, again = bench.SECTION.labels(SMOKE, case)
        assert labels_of(record) == [first, again]


def test_a_gpu_scores_all_videos_of_the_protocol():
    scale, protocol = bench.scale_of(Run("cuda")), bench.PROTOCOLS["tgan2"]
    assert (scale.width, scale.samples, scale.runs) == (1.0, protocol.samples, protocol.runs) == (1.0, 2048, 10)
    assert bench.scale_of(Run("cpu")).width == 1.0


def test_a_smoke_run_writes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_metrics", "--device", "cpu", "--smoke", "--only", "features", "preparing"])
    suite.main(bench.SECTION)
    assert not list(folder.iterdir())
    printed = capsys.readouterr().out
    assert "scipy.linalg.sqrtm" in printed
    assert "videos/s, 1 at once: tgan_fast" in printed


def scored(seconds, samples=2048, runs=10):
    """Made-up."""
    return {"samples": samples, "runs": runs, "timings": [{"seconds": seconds}, {"seconds": 1.0}]}


def test_the_goal_is_that_of_a_gpu_and_of_all_videos():
    def goal(*records):
        (found,) = bench.goals_for(list(records), "cuda")
        return found

    distance = {"videos": 2048, "features": 400, "timings": [{"seconds": 1.0}]}
    assert goal(distance, scored(9.9999)).verdict == "met"
    assert goal(scored(9.2)).measured == 9.2
    assert goal(scored(10.1)).verdict == "SHORT"
    assert goal().verdict == goal(distance).verdict == goal(scored(1.0, samples=2, runs=1)).verdict == NOT_MEASURED
    assert bench.goals_for([scored(9.0)], "cpu") == []


@pytest.mark.gpu
@pytest.mark.parametrize("case", bench.SECTION.cases(SMOKE))
def test_on_a_gpu_all_that_was_announced_is_timed(case):
    run = Run("cuda", smoke=True)
    record = Suite(run).record(bench.SECTION, case)
    missing = [label for label in bench.SECTION.labels(run, case) if label.contender in record["left_out"]]
    assert labels_of(record) == [label for label in bench.SECTION.labels(run, case) if label not in missing]
    assert not any(label.contender.startswith(bench.OURS) for label in missing)
    assert all(row["seconds"] > 0 for row in record["timings"])
