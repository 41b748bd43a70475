"""The generative adversarial metric: thresholds against a search, ratios against their definition, and battles."""

import math

import pytest
import torch

from tgan_fast.metrics.generative_adversarial_metric import (
    Errors,
    battle,
    best_threshold,
    errors_on_generated,
    errors_on_real,
    ratio,
    scores_of,
)
from tgan_fast.models import VideoDiscriminator


def share_of_errors(real, generated, threshold):
    return errors_on_real(real, threshold).share + errors_on_generated(generated, threshold).share


@pytest.mark.parametrize("seed", range(8))
def test_no_threshold_makes_fewer_errors(seed):
    torch.manual_seed(seed)
    # Scores are rounded, so that some are equal, and both sides have different counts.
    real, generated = (2 * torch.randn(30) + 1).round(), (2 * torch.randn(50)).round()
    got = share_of_errors(real, generated, best_threshold(real, generated))
    candidates = torch.arange(-12, 13) + 0.5
    assert got == pytest.approx(min(share_of_errors(real, generated, c) for c in candidates.tolist()))


def test_different_scores_are_distinguished_and_equal_ones_are_not():
    low, high = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 9.0, 7.0])
    assert best_threshold(high, low) == 3.5
    assert share_of_errors(low, high, best_threshold(low, high)) == pytest.approx(1)
    assert share_of_errors(low, low, best_threshold(low, low)) == pytest.approx(1)


def test_errors_are_what_is_on_the_wrong_side():
    scores = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    assert errors_on_real(scores, 0.5) == Errors(2, 4)
    assert errors_on_generated(scores, 0.5) == Errors(2, 4)
    assert errors_on_generated(scores, 3.0).share == 0


def test_the_ratio_and_its_interval():
    got = ratio(Errors(199, 999), Errors(399, 999))
    assert got.value == pytest.approx(199.5 / 399.5)
    p, q = 0.1995, 0.3995
    spread = math.exp(1.96 * math.sqrt((1 - p) / (p * 999) + (1 - q) / (q * 999)))
    assert (got.low, got.high) == pytest.approx((got.value / spread, got.value * spread))
    assert ratio(Errors(0, 100), Errors(0, 100)).value == 1


@pytest.mark.parametrize(
    ("test", "samples", "winner"),
    [
        ((100, 100), (100, 300), 1),
        ((100, 100), (300, 100), 2),
        ((100, 100), (100, 105), None),
        ((100, 200), (100, 300), None),
        ((200, 100), (100, 300), None),
    ],
    ids=["first", "second", "too near", "unfair", "unfair the other way"],
)
def test_who_is_fooled_less_wins_if_both_tell_real_clips_equally_well(test, samples, winner):
    errors = [tuple(Errors(wrong, 1000) for wrong in pair) for pair in (test, samples)]
    assert battle(*errors).winner == winner


def test_scores_are_those_of_running_statistics_and_the_discriminator_stays_as_it_was():
    discriminator = VideoDiscriminator(width=0.0625, channels=1)
    videos = torch.rand(5, 1, 16, 64, 64)
    discriminator(videos)
    before = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    got = scores_of(discriminator, videos.split(2))
    assert discriminator.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in discriminator.state_dict().items())
    torch.testing.assert_close(got, discriminator.eval()(videos).detach())
