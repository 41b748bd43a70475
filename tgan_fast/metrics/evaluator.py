"""Evaluation of generators: every metric over several runs."""

import statistics
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from tgan_fast.cuda_graph import CudaGraphMode
from tgan_fast.data import ClipDataset, VideoFrames
from tgan_fast.errors import NonFiniteError
from tgan_fast.metrics.features import ClassifierFeatures, Features, I3DFeatures, InceptionFeatures
from tgan_fast.metrics.frechet import Gaussian, Moments, frechet_distance
from tgan_fast.metrics.inception_score import inception_score
from tgan_fast.metrics.protocols import Protocol
from tgan_fast.metrics.real_clips import distinct_clips, draw_clips
from tgan_fast.metrics.real_statistics import RealClips, RealStatistics, StatisticsCache
from tgan_fast.metrics.score_kinds import KIND_OF, Metric, ScoreKind
from tgan_fast.models import Generator
from tgan_fast.models.sampling import Sampler, draw_inputs
from tgan_fast.precision import Precision
from tgan_fast.processes import Processes

_BATCH = 64
# Second element of the seed that draws clips in place of generated ones.
_VIDEOS = 2


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
        inception: Features for the Fréchet distance of frames.
        real: Real clips, required by `prepare` for Fréchet distances; optional for the inception score.
        device: Device of the generators and of sampling.
        precision: Precision of sampling.
        cuda_graph: Whether sampling uses CUDA graphs.
        seed: Seed of the latents; run k draws from seed + k.
        cache: Cache of the statistics of real clips; None for none.
        progress: Whether to show progress bars.
        processes: Processes that share the work, each with an evaluator of the same arguments; all get all scores,
            which are those of one process. None: this process alone.

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
        inception: InceptionFeatures | None = None,
        real: RealClips | None = None,
        device: torch.device,
        precision: Precision = "fp32",
        cuda_graph: CudaGraphMode = "auto",
        seed: int = 0,
        cache: StatisticsCache | None = None,
        progress: bool = False,
        processes: Processes | None = None,
    ):
        self.protocol, self._kinds = protocol, [KIND_OF[metric] for metric in metrics]
        given = {"classifier": classifier, "i3d": i3d, "inception": inception}
        self._networks = {kind.network: given[kind.network] for kind in self._kinds}
        if None in self._networks.values():
            raise ValueError(f"{metrics} need a classifier, I3D or Inception that was not given")
        self._real, self._device, self._precision, self._cuda_graph = real, device, precision, cuda_graph
        self._seed, self._cache, self._processes = seed, cache, processes or Processes()
        self._progress = progress and self._processes.rank == 0
        self._generator = self._sampler = None
        self._distances = any(kind.metric != "is" for kind in self._kinds)
        self._statistics: dict[str, RealStatistics] = {}
        bias = real.bias(protocol) if real is not None and self._distances else None
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
            ValueError: There are no real clips, which Fréchet distances need.
        """
        self._statistics, self._gaussians = {}, {}
        if self._real is None:
            if self._distances:
                raise ValueError("Fréchet distances need real clips, which were not given")
            return
        for name, network in self._networks.items():
            total = self._real.count_for(self.protocol) + self.protocol.samples
            with self._progress_bar(f"real clips, {name}", total) as bar:
                self._statistics[name] = self._real.statistics(
                    network, self.protocol, self._cache, bar.update, self._processes
                )
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
        return self._score_runs("generated videos", self.protocol.samples, self._draw_generated)

    def of_clips(self, dataset: ClipDataset | VideoFrames) -> dict[str, Score]:
        """Score the clips of a data set in place of generated ones; `prepare` must have been called once.

        A run takes as many clips as the protocol has samples, but no more than there are.
        """
        count = min(self.protocol.samples, distinct_clips(dataset))

        def draw(run):
            return self._draw_clips(dataset, count, (self._seed, _VIDEOS, run))

        return self._score_runs("videos", count, draw)

    def of_halves(self, dataset: ClipDataset | VideoFrames) -> dict[str, Score]:
        """Score one half of a data set against the other half: the noise floor of the metrics.

        One clip of each video is taken, at most twice as many as the protocol has samples. Each run divides them at
        random, and scores the first half against the second. The real clips are not used.
        """
        count = min(2 * self.protocol.samples, len(dataset))
        with self._progress_bar("videos", count) as bar:
            found = self._features(self._draw_clips(dataset, count, (self._seed, _VIDEOS, 0)), bar.update)
        results = {kind: [] for kind in self._kinds}
        for run in range(self.protocol.runs):
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self._seed + run)).to(self._device)
            for kind, of_runs in results.items():
                first, second = (found[kind.network].of_videos(part, count) for part in order.chunk(2))
                moments = Moments()
                moments.add(second.features)
                of_runs.append(self._result(kind, first, moments.gaussian()))
        scores = {}
        for kind, of_runs in results.items():
            clips, layer = (None, None) if kind.metric == "is" else (count // 2, self._layer(kind))
            scores[kind.name] = Score(*_mean_and_std(of_runs), None, clips, layer)
        return scores

    def _score_runs(self, name, count, draw):
        results = {kind: [] for kind in self._kinds}
        with self._progress_bar(name, self.protocol.runs * count) as bar:
            for run in range(self.protocol.runs):
                found = self._features(draw(run), bar.update)
                for kind, of_runs in results.items():
                    of_runs.append(self._result(kind, found[kind.network], self._gaussians.get(kind.network)))
        return {kind.name: self._score(kind, of_runs) for kind, of_runs in results.items()}

    def _load(self, generator):
        if self._generator is generator:
            self._sampler.refresh()
            return
        self._generator = generator
        self._sampler = Sampler(
            generator, batch_size=_BATCH, precision=self._precision, cuda_graph=self._cuda_graph, output="videos"
        )

    def _draw_generated(self, run) -> Iterator[tuple[dict[str, Features], int]]:
        """Yield the features of batches of a run's videos by network, and the numbers of videos."""

        def compute(inputs):
            (videos,) = self._sampler.on_device(inputs)
            return self._of_all_networks("of_generated", videos)

        inputs = draw_inputs(self._generator, self.protocol.samples, self._seed + run)
        return self._processes.share(inputs.split(self._sampler.batch_size), compute)

    def _draw_clips(self, dataset, count, seed) -> Iterator[tuple[dict[str, Features], int]]:
        """Yield the features of batches of clips by network, and the numbers of clips."""
        batches = draw_clips(dataset, count, seed=seed, batch_size=_BATCH)
        return self._processes.share(batches, lambda batch: self._of_all_networks("of_real", batch[0]))

    def _of_all_networks(self, method, videos):
        found = {name: getattr(network, method)(videos) for name, network in self._networks.items()}
        return {name: features.movable(self._processes) for name, features in found.items()}, len(videos)

    def _features(self, drawn, advance) -> dict[str, Features]:
        """Return the features of all videos by network."""
        batches, videos = {name: [] for name in self._networks}, 0
        for found, count in drawn:
            for name, features in found.items():
                batches[name].append(features)
            videos += count
            advance(count)
        return {name: _concatenate(found, self._device, videos) for name, found in batches.items()}

    def _result(self, kind: ScoreKind, features: Features, gaussian: Gaussian | None) -> float:
        """Return the score of one run."""
        if kind.metric == "is":
            return inception_score(features.probabilities, epsilon=self.protocol.epsilon, splits=self.protocol.splits)
        return frechet_distance(features.features, gaussian)

    def _score(self, kind: ScoreKind, of_runs: list[float]) -> Score:
        real = self._statistics.get(kind.network)
        if kind.metric == "is":
            return Score(*_mean_and_std(of_runs), real and statistics.fmean(real.inception_scores))
        return Score(*_mean_and_std(of_runs), real.frechet_distance, real.clips, self._layer(kind))

    def _layer(self, kind: ScoreKind) -> str:
        return {"fid": self.protocol.layer, "fvd": "logits", "frame-fid": "pool"}[kind.metric]

    def _progress_bar(self, description, total):
        return tqdm(
            desc=description, total=total, unit="clip", leave=False, dynamic_ncols=True, disable=not self._progress
        )


def _mean_and_std(of_runs):
    return statistics.fmean(of_runs), statistics.pstdev(of_runs)


def _concatenate(batches: list[Features], device: torch.device, videos: int) -> Features:
    has_probabilities = batches[0].probabilities is not None
    probabilities = torch.cat([batch.probabilities for batch in batches]).to(device) if has_probabilities else None
    features = torch.cat([batch.features for batch in batches]).to(device)
    # Once per run, since reading a value makes the host wait for the GPU.
    if not features.isfinite().all():
        first = int((~features.isfinite()).any(1).nonzero()[0]) * videos // len(features)
        raise NonFiniteError(
            f"the features of video {first} are not finite: check the weights of the generator and of the classifier"
        )
    return Features(probabilities, features)
