"""Evaluation of generators: every metric over several runs."""

import statistics
from collections.abc import Collection
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from tgan_fast.cuda_graph import CudaGraphMode
from tgan_fast.errors import NonFiniteError
from tgan_fast.metrics.features import ClassifierFeatures, Features, I3DFeatures
from tgan_fast.metrics.frechet import frechet_distance
from tgan_fast.metrics.inception_score import inception_score
from tgan_fast.metrics.protocols import Protocol
from tgan_fast.metrics.real_statistics import RealClips, StatisticsCache
from tgan_fast.metrics.score_kinds import KIND_OF, Metric, ScoreKind
from tgan_fast.models import Generator
from tgan_fast.models.sampling import Sampler, draw_inputs
from tgan_fast.precision import Precision

_BATCH = 64


@dataclass(frozen=True)
class Score:
    """One score of a generator.

    Attributes:
        mean: Mean over the runs.
        std: Standard deviation over the runs; 0 for one run.
        real: Score of real clips; None without any.
        real_clips: Number of real clips compared with; None for the inception score.
        layer: Layer of the features; None for the inception score.
    """

    mean: float
    std: float
    real: float | None = None
    real_clips: int | None = None
    layer: str | None = None

    def record(self) -> dict:
        """Return the values that are not None, for files."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Evaluator:
    """Evaluator that scores generators with the same latents and real clips each time, and does not change them.

    Args:
        metrics: Metrics to compute.
        protocol: Protocol of the scores.
        classifier: Features for the inception score and the Fréchet distance.
        i3d: Features for the Fréchet video distance.
        real: Real clips, required for Fréchet distances; optional for the inception score.
        device: Device of the generators and of sampling.
        precision: Precision of sampling.
        cuda_graph: Whether sampling uses CUDA graphs.
        seed: Seed of the latents; run k draws from seed + k.
        cache: Cache of the statistics of real clips; None for none.
        progress: Whether to show progress bars.

    Attributes:
        notices: Sentences on what limits the scores.

    Raises:
        InputError: There are too few real clips.
        ValueError: A metric lacks the features or the real clips that it needs.
    """

    def __init__(
        self,
        metrics: Collection[Metric],
        protocol: Protocol,
        *,
        classifier: ClassifierFeatures | None = None,
        i3d: I3DFeatures | None = None,
        real: RealClips | None = None,
        device: torch.device,
        precision: Precision = "fp32",
        cuda_graph: CudaGraphMode = "auto",
        seed: int = 0,
        cache: StatisticsCache | None = None,
        progress: bool = False,
    ):
        self.protocol, self._kinds = protocol, [KIND_OF[metric] for metric in metrics]
        given, distances = {"classifier": classifier, "i3d": i3d}, set(metrics) - {"is"}
        self._networks = {kind.network: given[kind.network] for kind in self._kinds}
        if None in self._networks.values() or (real is None and distances):
            raise ValueError(f"{metrics} need a classifier, I3D or real clips that were not given")
        self._real, self._device, self._precision, self._cuda_graph = real, device, precision, cuda_graph
        self._seed, self._cache, self._progress = seed, cache, progress
        self._generator = self._sampler = None
        bias = real.bias(protocol) if distances else None
        self.notices = [] if bias is None else [bias]

    @property
    def description(self) -> dict[str, str]:
        """Protocol and classifier for files; scores are comparable only if both are equal."""
        protocol = f"{self.protocol.name}, {self.protocol.runs} × {self.protocol.samples:,} samples"
        network = next(iter(self._networks.values())).identity["network"]
        return {"protocol": protocol, "classifier": network[:12]}

    def prepare(self) -> None:
        """Compute the statistics of real clips, or read them from the cache.

        Raises:
            NonFiniteError: The features of real clips are not finite.
        """
        self._statistics, self._gaussians = {}, {}
        if self._real is None:
            return
        for name, network in self._networks.items():
            total = self._real.count_for(self.protocol) + self.protocol.samples
            with self._progress_bar(f"real clips, {name}", total) as bar:
                self._statistics[name] = self._real.statistics(network, self.protocol, self._cache, bar.update)
            self._gaussians[name] = self._statistics[name].gaussian.to(self._device)

    def __call__(self, generator: Generator) -> dict[str, Score]:
        """Score a generator; `prepare` must have been called once.

        Args:
            generator: Generator of videos of the size that `check_size` accepts, in any mode.

        Returns:
            Score of every metric, by its name in files.

        Raises:
            NonFiniteError: The generated videos are not finite.
        """
        self._load(generator)
        results = {kind: [] for kind in self._kinds}
        with self._progress_bar("generated videos", self.protocol.runs * self.protocol.samples) as bar:
            for run in range(self.protocol.runs):
                by_network = self._compute_features(run, bar.update)
                for kind, of_runs in results.items():
                    of_runs.append(self._result(kind, by_network[kind.network]))
        return {kind.name: self._score(kind, of_runs) for kind, of_runs in results.items()}

    def _load(self, generator):
        if self._generator is generator:
            self._sampler.refresh()
            return
        self._generator = generator
        self._sampler = Sampler(
            generator, batch_size=_BATCH, precision=self._precision, cuda_graph=self._cuda_graph, output="videos"
        )

    def _compute_features(self, run, advance) -> dict[str, Features]:
        """Return the features of a run's videos by network."""
        inputs = draw_inputs(self._generator, self.protocol.samples, self._seed + run)
        batches = {name: [] for name in self._networks}
        for videos in self._sampler.on_device(inputs):
            for name, network in self._networks.items():
                batches[name].append(network.of_generated(videos))
            advance(len(videos))
        return {name: _concatenate(found) for name, found in batches.items()}

    def _result(self, kind: ScoreKind, features: Features) -> float:
        """Return the score of one run."""
        if kind.metric == "is":
            return inception_score(features.probabilities, epsilon=self.protocol.epsilon, splits=self.protocol.splits)
        return frechet_distance(features.features, self._gaussians[kind.network])

    def _score(self, kind: ScoreKind, of_runs: list[float]) -> Score:
        mean, std = statistics.fmean(of_runs), statistics.pstdev(of_runs)
        real = self._statistics.get(kind.network)
        if kind.metric == "is":
            return Score(mean, std, real and statistics.fmean(real.inception_scores))
        layer = self.protocol.layer if kind.metric == "fid" else "logits"
        return Score(mean, std, real.frechet_distance, real.clips, layer)

    def _progress_bar(self, description, total):
        return tqdm(
            desc=description, total=total, unit="clip", leave=False, dynamic_ncols=True, disable=not self._progress
        )


def _concatenate(batches: list[Features]) -> Features:
    has_probabilities = batches[0].probabilities is not None
    probabilities = torch.cat([batch.probabilities for batch in batches]) if has_probabilities else None
    features = torch.cat([batch.features for batch in batches])
    # Once per run, since reading a value makes the host wait for the GPU.
    if not features.isfinite().all():
        first = int((~features.isfinite()).any(1).nonzero()[0])
        raise NonFiniteError(f"the features of generated video {first} are not finite: check the generator's weights")
    return Features(probabilities, features)
