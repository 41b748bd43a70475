"""Generative adversarial metric: each of two GANs scored by the other's discriminator.

    r_test = err(D₁, unseen real clips) / err(D₂, unseen real clips)
    r_samples = err(D₁, G₂'s videos) / err(D₂, G₁'s videos)

err is the share of videos that a discriminator takes for the wrong kind. If both discriminators recognize real clips
equally well, r_test ≈ 1, the first GAN wins if its discriminator is fooled less, r_samples < 1.
Source: Im et al., arXiv:1602.05110.

The discriminator of a Wasserstein GAN gives scores, not decisions. The threshold that makes the fewest errors between
other real clips and videos of its own generator turns them into decisions.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from tgan_fast.data import ClipDataset, VideoFrames
from tgan_fast.errors import NonFiniteError
from tgan_fast.metrics.real_clips import draw_clips
from tgan_fast.models import Discriminator, Generator
from tgan_fast.models.sampling import Sampler, draw_inputs, undisturbed
from tgan_fast.pixels import to_videos

# r_test must lie between 1/NEAR and NEAR; the paper leaves the bound open.
NEAR = 1.25
# Standard errors of a 95 % interval.
_CONFIDENCE = 1.96
_BATCH = 64


@dataclass(frozen=True)
class Errors:
    """Number of videos that a discriminator takes for the wrong kind, and number of all videos."""

    wrong: int
    count: int

    @property
    def share(self) -> float:
        """Share of wrong decisions, 0 to 1."""
        return self.wrong / self.count


@dataclass(frozen=True)
class Ratio:
    """Ratio of two shares of errors, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Battle:
    """Outcome of a comparison: both ratios, and the number of the GAN that wins, 1 or 2, or None."""

    r_test: Ratio
    r_samples: Ratio
    winner: int | None


def ratio(first: Errors, second: Errors) -> Ratio:
    """Return `first` / `second`; half an error is added to each, so that the ratio exists without errors, too."""
    shares = [(errors.wrong + 0.5) / (errors.count + 1) for errors in (first, second)]
    variance = sum((1 - p) / (p * errors.count) for p, errors in zip(shares, (first, second), strict=True))
    logarithm, margin = math.log(shares[0] / shares[1]), _CONFIDENCE * math.sqrt(variance)
    return Ratio(*(math.exp(logarithm + sign * margin) for sign in (0, -1, 1)))


def battle(test: tuple[Errors, Errors], samples: tuple[Errors, Errors]) -> Battle:
    """Decide which GAN wins.

    Args:
        test: Errors of both discriminators on unseen real clips.
        samples: Errors of both discriminators, each on the other's videos.
    """
    r_test, r_samples = ratio(*test), ratio(*samples)
    fair = 1 / NEAR <= r_test.value <= NEAR
    winner = None
    if fair and r_samples.high < 1:
        winner = 1
    elif fair and r_samples.low > 1:
        winner = 2
    return Battle(r_test, r_samples, winner)


def best_threshold(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Return the threshold with the smallest sum of both shares of errors; a score at or above it counts as real.

    Args:
        real: Scores [n] of real videos.
        generated: Scores [m] of generated videos.
    """
    scores = torch.cat([real, generated]).double()
    weights = torch.cat(
        [torch.full_like(real.double(), 1 / len(real)), -torch.ones_like(generated).double() / len(generated)]
    )
    ordered, order = scores.sort()
    # Errors of a threshold just above each score: real videos up to there, generated ones beyond.
    errors = weights[order].cumsum(0)
    # No threshold separates two equal scores.
    errors[:-1][ordered[1:] == ordered[:-1]] = math.inf
    best = int(errors.argmin())
    if errors[best] >= 0:
        return ordered[0].item()
    above = ordered[best + 1] if best + 1 < len(ordered) else ordered[best] + 1
    return ((ordered[best] + above) / 2).item()


@torch.no_grad()
def scores_of(discriminator: Discriminator, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """Score batches of videos with the running statistics of batch norm.

    Args:
        discriminator: Discriminator in any mode, which does not change.
        batches: Videos [m, C, 16, 64, 64] in [-1, 1], on the discriminator's device.

    Returns:
        Scores [n] on the CPU.

    Raises:
        NonFiniteError: A score is infinite or NaN.
    """
    with undisturbed(discriminator):
        scores = torch.cat([discriminator(videos).cpu() for videos in batches])
    if not scores.isfinite().all():
        raise NonFiniteError("the scores of a discriminator are not finite: choose an earlier checkpoint")
    return scores


def errors_on_real(scores: torch.Tensor, threshold: float) -> Errors:
    """Return the errors among scores [n] of real clips."""
    return Errors(int((scores < threshold).sum()), len(scores))


def errors_on_generated(scores: torch.Tensor, threshold: float) -> Errors:
    """Return the errors among scores [n] of generated videos."""
    return Errors(int((scores >= threshold).sum()), len(scores))


def errors_of_both(
    generators: Sequence[Generator],
    discriminators: Sequence[Discriminator],
    real: ClipDataset | VideoFrames,
    unseen: ClipDataset | VideoFrames,
    *,
    count: int,
    seed: int,
    progress: Callable[[int], object],
) -> tuple[tuple[Errors, Errors], tuple[Errors, Errors]]:
    """Return both discriminators' errors on unseen real clips, and on the other's videos.

    Args:
        generators: Both generators, on one device.
        discriminators: Discriminators trained with them, in the same order, on that device.
        real: Real clips for choosing the thresholds.
        unseen: Real clips for counting errors.
        count: Number of generated videos of each generator, and of clips from `real` and from `unseen`.
        seed: Seed of the latents and of the choice of real clips.
        progress: Function called with the number of videos in every batch that was scored.
    """
    device = next(generators[0].parameters()).device

    def clips(dataset, purpose):
        for clips, _ in draw_clips(dataset, count, seed=(seed, purpose), batch_size=_BATCH):
            yield to_videos(clips.to(device)).expand(-1, generators[0].channels, -1, -1, -1)

    def videos(generator, seed):
        sampler = Sampler(generator, batch_size=_BATCH, precision="fp32", output="videos")
        return sampler.on_device(draw_inputs(generator, count, seed))

    def scores(discriminator, batches):
        return scores_of(discriminator, _with_progress(batches, progress))

    thresholds = [
        best_threshold(scores(d, clips(real, 0)), scores(d, videos(g, seed)))
        for g, d in zip(generators, discriminators, strict=True)
    ]
    judges = list(zip(discriminators, thresholds, strict=True))
    test = tuple(errors_on_real(scores(d, clips(unseen, 1)), threshold) for d, threshold in judges)
    # Another seed gives videos other than those that set the thresholds.
    others = [videos(g, seed + 1) for g in reversed(generators)]
    samples = tuple(
        errors_on_generated(scores(d, made), threshold) for (d, threshold), made in zip(judges, others, strict=True)
    )
    return test, samples


def _with_progress(batches, progress):
    for videos in batches:
        yield videos
        progress(len(videos))
