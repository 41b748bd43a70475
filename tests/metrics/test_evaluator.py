"""Scores of a generator, against their definitions on its videos; evaluation changes nothing."""

import functools
import itertools
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.classifiers import CPU, FrameMeans, Means, random_classifier, scripted, seen_by, small_generator
from support.two_processes import outcomes_of_two

from tgan_fast.data import MovingDigits
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.metrics.evaluator import Evaluator
from tgan_fast.metrics.features import ClassifierFeatures, I3DFeatures, InceptionFeatures
from tgan_fast.metrics.frechet import Moments, frechet_distance
from tgan_fast.metrics.inception_score import inception_score
from tgan_fast.metrics.protocols import PROTOCOLS
from tgan_fast.metrics.real_statistics import RealClips, StatisticsCache
from tgan_fast.models.sampling import draw_latents
from tgan_fast.pixels import to_clips
from tgan_fast.processes import Processes

PROTOCOL = replace(PROTOCOLS["plain"], samples=16, runs=3, real_clips=40)
SEE = seen_by(random_classifier())
REAL = RealClips(MovingDigits(400), force=True)


def evaluator_of(metrics=("is", "fid"), **options):
    evaluator = Evaluator(metrics, PROTOCOL, **{"classifier": SEE, "real": REAL, "device": CPU} | options)
    evaluator.prepare()
    return evaluator


def videos_of(generator, seed, count=16):
    """Sample by the definition: evaluation mode, batch norm by running statistics."""
    training = generator.training
    with torch.no_grad():
        videos = generator.eval()(draw_latents(count, 6, seed))
    generator.train(training)
    return videos


def test_scores_are_their_definitions_over_runs_of_different_latents():
    generator = small_generator()
    got = evaluator_of(seed=5)(generator)
    runs = [SEE.of_generated(videos_of(generator, 5 + run)) for run in range(3)]
    gaussian = REAL.statistics(SEE, PROTOCOL, None, int).gaussian
    expected = {
        "inception_score": [inception_score(seen.probabilities, epsilon=1e-20) for seen in runs],
        "frechet_distance": [frechet_distance(seen.features, gaussian) for seen in runs],
    }
    assert list(got) == list(expected)
    for name, values in expected.items():
        # Sampling folds batch norms, which rounds differently.
        assert got[name].mean == pytest.approx(statistics.fmean(values), rel=1e-6), name
        assert got[name].std == pytest.approx(statistics.pstdev(values), rel=1e-3), name
        assert got[name].std > 0
    assert got["frechet_distance"].real_clips == 40
    assert got["frechet_distance"].layer == "mean"
    assert got["inception_score"].real > 1


def test_the_frechet_video_distance_is_that_of_rounded_videos(tmp_path):
    i3d = I3DFeatures(scripted(Means(), tmp_path / "i3d.pt"), CPU)
    generator = small_generator()
    got = evaluator_of(["fvd"], classifier=None, i3d=i3d)(generator)
    gaussian = REAL.statistics(i3d, PROTOCOL, None, int).gaussian
    clips = [to_clips(videos_of(generator, run)) for run in range(3)]
    expected = statistics.fmean(frechet_distance(i3d.of_real(part).features, gaussian) for part in clips)
    assert list(got) == ["frechet_video_distance"]
    assert got["frechet_video_distance"].mean == pytest.approx(expected, rel=1e-5)


def features_of(dataset):
    clips = np.stack([dataset[number][0] for number in range(len(dataset))])
    return SEE.of_real(torch.from_numpy(clips))


def test_given_clips_are_scored_in_place_of_generated_ones():
    dataset = MovingDigits(12, seed=9)
    got, seen = evaluator_of().of_clips(dataset), features_of(dataset)
    gaussian = REAL.statistics(SEE, PROTOCOL, None, int).gaussian
    # There are fewer clips than a run takes, so that each run scores all of them.
    distance = frechet_distance(seen.features, gaussian)
    assert got["frechet_distance"].mean == pytest.approx(distance, rel=1e-5)
    assert got["frechet_distance"].std < 1e-5 * distance
    assert got["frechet_distance"].real_clips == 40
    assert got["inception_score"].mean == pytest.approx(inception_score(seen.probabilities, epsilon=1e-20), rel=1e-5)
    # Each run takes others of more clips.
    assert evaluator_of().of_clips(MovingDigits(100, seed=9))["frechet_distance"].std > 1e-3 * distance


def test_halves_share_no_video_and_each_run_divides_anew():
    dataset = MovingDigits(5, seed=9)
    features = features_of(dataset).features
    possible = []
    for second in itertools.combinations(range(5), 2):
        moments = Moments()
        moments.add(features[list(second)])
        first = [number for number in range(5) if number not in second]
        possible.append(frechet_distance(features[first], moments.gaussian()))
    found = set()
    for seed in range(8):
        evaluator = Evaluator(["fid"], replace(PROTOCOL, runs=1), classifier=SEE, device=CPU, seed=seed)
        score = evaluator.of_halves(dataset)["frechet_distance"]
        assert (score.real, score.real_clips, score.layer) == (None, 2, "mean")
        found.add(min(possible, key=lambda distance: abs(distance - score.mean)))
        assert min(abs(distance / score.mean - 1) for distance in possible) < 1e-4
    assert len(found) > 2
    several = Evaluator(["is", "fid"], PROTOCOL, classifier=SEE, device=CPU).of_halves(MovingDigits(100))
    assert several["frechet_distance"].real_clips == PROTOCOL.samples
    assert several["frechet_distance"].std > 0
    assert several["inception_score"].record().keys() == {"mean", "std"}


def scores_of_a_process(folder, rank):
    torch.set_num_threads(1)
    processes = None if rank is None else Processes(dist.group.WORLD)
    evaluator = Evaluator(
        ["is", "fid", "frame-fid"],
        replace(PROTOCOL, samples=200),
        classifier=SEE,
        inception=InceptionFeatures(folder / "inception.pt", CPU),
        real=REAL,
        device=CPU,
        # The caches of two machines: only one has the statistics after the first evaluation.
        cache=StatisticsCache(folder / f"cache{rank}"),
        processes=processes,
    )
    evaluator.prepare()
    evaluator.prepare()
    dataset = MovingDigits(150)
    scores = evaluator(small_generator()), evaluator.of_clips(dataset), evaluator.of_halves(dataset)
    return [{name: score.record() for name, score in found.items()} for found in scores]


def test_two_processes_get_the_scores_of_one(tmp_path):
    scripted(FrameMeans(), tmp_path / "inception.pt")
    alone = scores_of_a_process(tmp_path, None)
    assert [list(found) for found in alone] == [["inception_score", "frechet_distance", "frame_frechet_distance"]] * 3
    assert outcomes_of_two(functools.partial(scores_of_a_process, tmp_path), tmp_path) == [alone, alone]
    assert [(tmp_path / f"cache{rank}").exists() for rank in range(2)] == [True, False]


def test_without_real_clips_there_is_an_inception_score_alone():
    (score,) = evaluator_of(["is"], real=None)(small_generator()).values()
    assert score.record().keys() == {"mean", "std"}
    with pytest.raises(ValueError, match="Fréchet distances need real clips"):
        evaluator_of(["is", "fid"], real=None)
    with pytest.raises(ValueError, match="need a classifier, I3D or Inception that was not given"):
        evaluator_of(["fvd"])


def test_too_few_real_clips_are_refused_for_distances_alone():
    few = RealClips(MovingDigits(20))
    with pytest.raises(InputError, match="only 20 different real clips"):
        evaluator_of(real=few)
    assert evaluator_of(["is"], real=few).notices == []


def test_a_generator_is_scored_as_it_is_at_that_moment():
    evaluator, generator = evaluator_of(), small_generator()
    first = evaluator(generator)
    assert evaluator(generator) == first
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.5)
    changed = evaluator(generator)
    assert changed != first
    assert changed == evaluator_of()(generator)


@pytest.mark.gpu
def test_a_gpu_scores_as_the_cpu_does():
    generator, device = small_generator(), torch.device("cuda")
    on_cpu = evaluator_of()(generator)
    see = ClassifierFeatures(random_classifier(), PROTOCOLS["plain"], device, "fp32")
    on_gpu = evaluator_of(classifier=see, device=device)(generator.to(device))
    for name, score in on_cpu.items():
        assert on_gpu[name].mean == pytest.approx(score.mean, rel=1e-3)
        assert on_gpu[name].real == pytest.approx(score.real, rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_disturbed(training):
    evaluator, generator = evaluator_of(), small_generator().train(training)
    parts = list(generator.modules())
    parts[3].training = not training
    modes = [part.training for part in parts]
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    gradients = [parameter.requires_grad for parameter in generator.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    evaluator(generator)
    assert [part.training for part in generator.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert [parameter.requires_grad for parameter in generator.parameters()] == gradients
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_videos_that_are_not_finite_are_named():
    generator = small_generator()
    generator.model[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="the features of video 0 are not finite"):
        evaluator_of()(generator)
