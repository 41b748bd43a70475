"""What generated videos are compared with: the statistics of real clips, and the scores that real clips reach."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tgan_fast.data import ClipDataset, VideoFrames
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.metrics.features import ClassifierFeatures, I3DFeatures
from tgan_fast.metrics.frechet import Gaussian, Moments, frechet_distance
from tgan_fast.metrics.inception_score import inception_score
from tgan_fast.metrics.protocols import Protocol
from tgan_fast.metrics.real_clips import distinct_clips, draw_clips, fingerprint_of
from tgan_fast.metrics.statistics_cache import StatisticsCache

FEWEST_REAL_CLIPS = 256

_BATCH = 64
_ARRAYS = "mean", "covariance", "clips", "frechet_distance", "inception_scores"
# Apart from the clips that the statistics are of.
_OTHERS = 1


@dataclass(frozen=True)
class RealStatistics:
    """Of the features of real clips.

    Attributes:
        gaussian: of them all.
        clips: how many there were.
        frechet_distance: of other real clips, as many as a run has: what a perfect generator would reach.
        inception_scores: of as many whole runs as the clips make; empty without probabilities.
    """

    gaussian: Gaussian
    clips: int
    frechet_distance: float
    inception_scores: tuple[float, ...]


@dataclass(frozen=True)
class RealClips:
    """Real clips, and how many of them statistics are taken of.

    Args:
        dataset: see there.
        count: how many; None: as the protocol says, but no more than there are.
        force: also with too few for statistics.
        seed: of the draw.
    """

    dataset: ClipDataset | VideoFrames
    count: int | None = None
    force: bool = False
    seed: int = 0

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """Of the data set; see `fingerprint_of`."""
        return fingerprint_of(self.dataset)

    def count_for(self, protocol: Protocol) -> int:
        """How many clips the statistics are of."""
        if self.count is not None:
            return self.count
        if protocol.passes is not None and isinstance(self.dataset, VideoFrames):
            return protocol.passes * len(self.dataset)
        return min(protocol.real_clips, distinct_clips(self.dataset))

    def bias(self, protocol: Protocol) -> str | None:
        """What is to be said of a Fréchet distance to so few clips.

        Raises:
            InputError: there are too few.
        """
        clips = min(self.count_for(protocol), distinct_clips(self.dataset))
        if clips < FEWEST_REAL_CLIPS and not self.force:
            raise InputError(
                f"there are only {clips:,} different real clips, too few for a Fréchet distance, which comes out the "
                f"higher the fewer there are: give {FEWEST_REAL_CLIPS} or more, or --force it"
            )
        if clips >= protocol.samples:
            return None
        return (
            f"there are only {clips:,} different real clips for {protocol.samples:,} generated ones: Fréchet distances "
            "come out the higher the fewer there are, so compare only those that have the same clips behind them"
        )

    def statistics(
        self,
        see: ClassifierFeatures | I3DFeatures,
        protocol: Protocol,
        cache: StatisticsCache | None,
        advance: Callable[[int], object],
    ) -> RealStatistics:
        """Of what `see` sees in them, read from the cache where it has them.

        Args:
            see: tells features, and perhaps probabilities.
            protocol: how many clips a run has.
            cache: asked, and written to, where the data set can be identified.
            advance: told of clips as they are seen.

        Raises:
            NonFiniteError: features are not finite.
        """
        if cache is None or self.fingerprint is None:
            return _from_arrays(self._compute(see, protocol, advance))
        key = self._key(see, protocol)
        known = cache.read(key, _ARRAYS)
        if known is None:
            known = self._compute(see, protocol, advance)
            _keep(cache, key, known)
        return _from_arrays(known)

    def _key(self, see, protocol) -> dict[str, Any]:
        return {
            "data": self.fingerprint,
            "clips": self.count_for(protocol),
            "seed": self.seed,
            "samples": protocol.samples,
            **see.identity,
        }

    def _compute(self, see, protocol, advance):
        moments, probabilities = Moments(), []
        for seen in self._seen(see, self.count_for(protocol), self.seed, advance):
            moments.add(seen.features)
            probabilities.append(seen.probabilities)
        gaussian = moments.gaussian()
        if not gaussian.covariance.isfinite().all():
            raise NonFiniteError("the features of real clips are not finite: the classifier's weights do not fit")
        others = [seen.features for seen in self._seen(see, protocol.samples, (self.seed, _OTHERS), advance)]
        scores = [] if probabilities[0] is None else _scores(torch.cat(probabilities), protocol)
        return {
            "mean": gaussian.mean.cpu().numpy(),
            "covariance": gaussian.covariance.cpu().numpy(),
            "clips": np.array(moments.count),
            "frechet_distance": np.array(frechet_distance(torch.cat(others), gaussian)),
            "inception_scores": np.array(scores),
        }

    def _seen(self, see, count, seed, advance):
        for clips, _ in draw_clips(self.dataset, count, seed=seed, batch_size=_BATCH):
            yield see.of_real(clips)
            advance(len(clips))


def _keep(cache, key, arrays):
    try:
        cache.write(key, arrays)
    except OSError as error:
        # Only a later evaluation takes longer.
        tqdm.write(f"the statistics of real clips cannot be kept in {cache.folder}: {error.strerror}", file=sys.stderr)


def _scores(probabilities, protocol):
    """Of each whole run of clips, or of all clips where these are fewer than a run has."""
    whole = [run for run in probabilities.split(protocol.samples) if len(run) == protocol.samples] or [probabilities]
    return [inception_score(run, epsilon=protocol.epsilon, splits=protocol.splits) for run in whole]


def _from_arrays(arrays):
    gaussian = Gaussian(torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["covariance"]))
    return RealStatistics(
        gaussian, int(arrays["clips"]), float(arrays["frechet_distance"]), tuple(arrays["inception_scores"].tolist())
    )
