"""Inception score: how confidently a classifier labels each video, and how evenly it uses all labels.

    exp(mean over videos of Σ p·(log(p + ε) − log(p̄ + ε))),  p̄ the mean of the probabilities p over all videos

It lies between 1 and the number of classes. Source: Salimans et al., arXiv:1606.03498.
"""

import torch


def inception_score(probabilities: torch.Tensor, *, epsilon: float, splits: int = 1) -> float:
    """Return the inception score, computed in float64.

    Args:
        probabilities: Class probabilities of the videos [N, classes]; each row sums to 1.
        epsilon: Number ε added before logarithms are taken.
        splits: Number of consecutive groups of nearly equal size whose scores are averaged.

    Raises:
        ValueError: There are fewer videos than splits, or probabilities are not finite.
    """
    if len(probabilities) < splits or not probabilities.isfinite().all():
        raise ValueError(f"{len(probabilities)} finite rows are needed for each of {splits} splits")
    scores = [_score(split.double(), epsilon) for split in probabilities.tensor_split(splits)]
    return torch.stack(scores).mean().item()


def _score(probabilities, epsilon):
    mean = probabilities.mean(0)
    divergences = probabilities * ((probabilities + epsilon).log() - (mean + epsilon).log())
    return divergences.sum(1).mean().exp()
