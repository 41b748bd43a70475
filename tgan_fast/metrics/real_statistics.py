"""Statistics of real clips, with which generated videos are compared, and their cache."""

import functools
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tgan_fast.data import ClipDataset, VideoFrames
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.files import write_atomically
from tgan_fast.metrics.features import ClassifierFeatures, ScriptFeatures
from tgan_fast.metrics.frechet import Gaussian, Moments, frechet_distance
from tgan_fast.metrics.inception_score import inception_score
from tgan_fast.metrics.protocols import Protocol
from tgan_fast.metrics.real_clips import distinct_clips, draw_clips, fingerprint_of
from tgan_fast.processes import Processes

FEWEST_REAL_CLIPS = 256

_BATCH = 64
_ARRAYS = "mean", "covariance", "clips", "frechet_distance", "inception_scores"
# Second element of the seed that draws clips other than those of the statistics.
_OTHERS = 1


@dataclass(frozen=True)
class RealStatistics:
    """Statistics of the features of real clips.

    Attributes:
        gaussian: Mean and covariance.
        clips: Number of clips.
        frechet_distance: Distance of other real clips, as many as a run has: the distance of a perfect generator.
        inception_scores: Score of each complete run that the clips make up, or of all clips if they are fewer; empty
            without probabilities.
    """

    gaussian: Gaussian
    clips: int
    frechet_distance: float
    inception_scores: tuple[float, ...]


class StatisticsCache:
    """Folder of arrays; the key of an entry is everything that its arrays were computed from.

    Args:
        folder: Path of the folder, which is created when something is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, key: Mapping[str, Any], names: Collection[str]) -> dict[str, np.ndarray] | None:
        """Return the arrays `names` that were written under an equal key, or None if they are missing or damaged."""
        try:
            with np.load(self._path(key), allow_pickle=False) as file:
                return {name: file[name] for name in names}
        except Exception:  # damage leads to errors of many types
            return None

    def write(self, key: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays under a key.

        Args:
            key: Values that JSON can represent.
            arrays: Arrays by name.

        Raises:
            OSError: The folder cannot be written to.
        """
        content = io.BytesIO()
        np.savez(content, **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(key), content)

    def _path(self, key):
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"


def default_cache() -> StatisticsCache | None:
    """Return the cache in the user's cache folder, or None for a user without a home folder."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return StatisticsCache(caches / "tgan_fast")


@dataclass(frozen=True)
class RealClips:
    """Real clips for statistics.

    Args:
        dataset: Data set of clips or videos.
        count: Number of clips; None: the protocol's number, at most as many as there are.
        force: Whether to accept fewer than `FEWEST_REAL_CLIPS` clips.
        seed: Seed of the draw.
    """

    dataset: ClipDataset | VideoFrames
    count: int | None = None
    force: bool = False
    seed: int = 0

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of the data set, from `fingerprint_of`; None if it has none."""
        return fingerprint_of(self.dataset)

    def count_for(self, protocol: Protocol) -> int:
        """Return the number of clips for the statistics."""
        if self.count is not None:
            return self.count
        if protocol.clips_per_video is not None and isinstance(self.dataset, VideoFrames):
            return protocol.clips_per_video * len(self.dataset)
        return min(protocol.real_clips, distinct_clips(self.dataset))

    def bias(self, protocol: Protocol) -> str | None:
        """Return a notice if a Fréchet distance to so few clips is biased, else None.

        Raises:
            InputError: There are too few clips.
        """
        clips = min(self.count_for(protocol), distinct_clips(self.dataset))
        if clips < FEWEST_REAL_CLIPS and not self.force:
            raise InputError(
                f"there are only {clips:,} different real clips, too few for a Fréchet distance: "
                f"give {FEWEST_REAL_CLIPS} or more, or let evaluate accept them by --force"
            )
        if clips >= protocol.samples:
            return None
        return (
            f"there are only {clips:,} different real clips for {protocol.samples:,} generated ones: few "
            "clips raise Fréchet distances, so compare only distances to the same clips"
        )

    def statistics(
        self,
        network: ClassifierFeatures | ScriptFeatures,
        protocol: Protocol,
        cache: StatisticsCache | None,
        advance: Callable[[int], object],
        processes: Processes | None = None,
    ) -> RealStatistics:
        """Return the statistics, from the cache if it has them.

        Args:
            network: Network that computes features and, for classifiers, probabilities.
            protocol: Protocol, for the number of clips in a run.
            cache: Cache to read from and write to; not used for data sets without a fingerprint.
            advance: Function called with the number of clips after each batch.
            processes: Processes that share the work; None: this process alone.

        Raises:
            NonFiniteError: Features are not finite.
        """
        processes = processes or Processes()
        if cache is None or self.fingerprint is None:
            return _from_arrays(self._compute(network, protocol, advance, processes))
        key = self._key(network, protocol)
        known = cache.read(key, _ARRAYS)
        # The processes may have caches of their own.
        if processes.any(known is None):
            known = self._compute(network, protocol, advance, processes)
            if processes.rank == 0:
                _write_or_warn(cache, key, known)
        return _from_arrays(known)

    def _key(self, network, protocol) -> dict[str, Any]:
        return {
            "data": self.fingerprint,
            "clips": self.count_for(protocol),
            "seed": self.seed,
            "samples": protocol.samples,
            **network.identity,
        }

    def _compute(self, network, protocol, advance, processes):
        moments, probabilities = Moments(), []
        for found in self._features(network, self.count_for(protocol), self.seed, advance, processes):
            moments.add(found.features)
            probabilities.append(found.probabilities)
        gaussian = moments.gaussian()
        if not gaussian.covariance.isfinite().all():
            raise NonFiniteError("the features of real clips are not finite: the classifier's weights do not fit")
        drawn = self._features(network, protocol.samples, (self.seed, _OTHERS), advance, processes)
        others = [found.features for found in drawn]
        scores = [] if probabilities[0] is None else _scores(torch.cat(probabilities), protocol)
        return {
            "mean": gaussian.mean.cpu().numpy(),
            "covariance": gaussian.covariance.cpu().numpy(),
            "clips": np.array(self.count_for(protocol)),
            "frechet_distance": np.array(frechet_distance(torch.cat(others), gaussian)),
            "inception_scores": np.array(scores),
        }

    def _features(self, network, count, seed, advance, processes):
        batches = draw_clips(self.dataset, count, seed=seed, batch_size=_BATCH)

        def features_and_count(batch):
            clips, _ = batch
            return network.of_real(clips).movable(processes), len(clips)

        for found, clips in processes.share(batches, features_and_count):
            yield found
            advance(clips)


def _write_or_warn(cache, key, arrays):
    try:
        cache.write(key, arrays)
    except OSError as error:
        # A missing cache only makes later evaluations slower.
        tqdm.write(f"statistics of real clips cannot be cached in {cache.folder}: {error.strerror}", file=sys.stderr)


def _scores(probabilities, protocol):
    """Return the score of each whole run of clips, or of all clips if they are fewer than a run has."""
    whole = [run for run in probabilities.split(protocol.samples) if len(run) == protocol.samples] or [probabilities]
    return [inception_score(run, epsilon=protocol.epsilon, splits=protocol.splits) for run in whole]


def _from_arrays(arrays):
    gaussian = Gaussian(torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["covariance"]))
    return RealStatistics(
        gaussian, int(arrays["clips"]), float(arrays["frechet_distance"]), tuple(arrays["inception_scores"].tolist())
    )
