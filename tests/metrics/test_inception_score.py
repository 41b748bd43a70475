"""The inception score against its definition and torchmetrics."""

import math

import pytest
import torch

from tgan_fast.metrics.inception_score import inception_score


def random_probabilities(n, classes, sharpness=3.0):
    return (sharpness * torch.randn(n, classes, dtype=torch.float64)).softmax(1)


@pytest.mark.parametrize("epsilon", [1e-7, 1e-20])
def test_uniform_probabilities_score_1_and_perfect_evenly_spread_ones_the_number_of_classes(epsilon):
    uniform = torch.full((505, 101), 1 / 101)
    one_hot = torch.eye(101).repeat(5, 1)
    assert inception_score(uniform, epsilon=epsilon) == pytest.approx(1, abs=1e-12)
    assert inception_score(one_hot, epsilon=epsilon) == pytest.approx(101, rel=101 * epsilon + 1e-12)
    assert inception_score(one_hot[:1].repeat(505, 1), epsilon=epsilon) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("epsilon", [1e-7, 1e-20, 1e-2])
def test_the_definition_video_by_video(epsilon):
    probabilities = random_probabilities(37, 5)
    mean = [sum(row[c] for row in probabilities.tolist()) / 37 for c in range(5)]
    divergences = [
        sum(p * (math.log(p + epsilon) - math.log(m + epsilon)) for p, m in zip(row, mean, strict=True))
        for row in probabilities.tolist()
    ]
    expected = math.exp(sum(divergences) / 37)
    assert inception_score(probabilities, epsilon=epsilon) == pytest.approx(expected, rel=1e-13)


def test_torchmetrics_agrees_where_it_computes_the_same():
    from torchmetrics.image.inception import InceptionScore

    class Logits(torch.nn.Module):
        def forward(self, rows):
            return rows

    probabilities = random_probabilities(200, 12)
    judge = InceptionScore(feature=Logits(), splits=1)
    judge.update(probabilities.log())
    assert inception_score(probabilities, epsilon=0.0) == pytest.approx(judge.compute()[0].item(), rel=1e-12)


def test_splits_are_consecutive_and_their_scores_are_averaged():
    probabilities = random_probabilities(11, 4)
    parts = [probabilities[:4], probabilities[4:8], probabilities[8:]]
    expected = sum(inception_score(part, epsilon=1e-20) for part in parts) / 3
    assert inception_score(probabilities, epsilon=1e-20, splits=3) == pytest.approx(expected, rel=1e-14)


def test_float32_probabilities_are_scored_in_float64():
    probabilities = random_probabilities(4096, 101).float()
    assert inception_score(probabilities, epsilon=1e-20) == inception_score(probabilities.double(), epsilon=1e-20)


@pytest.mark.parametrize("rows", [torch.rand(2, 3), torch.full((4, 3), math.nan), torch.full((4, 3), math.inf)])
def test_too_few_or_broken_rows_are_refused(rows):
    with pytest.raises(ValueError, match="finite rows are needed"):
        inception_score(rows, epsilon=1e-20, splits=3)
