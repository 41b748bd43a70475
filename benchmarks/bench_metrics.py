"""Scores of videos: preparing them, what networks see in them, Fréchet distances, and all of it together.

    python -m benchmarks.bench_metrics --device cuda

Networks have random weights and get as many videos at once as an evaluation gives them. Their floor is the sum over all
convolutions and linear layers of what takes longer, the operations or the bytes; that of all of it is the generator's
and C3D's. Rivals are the same networks as their users run them.

Preparing is also done by two matrix products for each frame. The Fréchet distances are those of features of which it is
known: torchmetrics has torch.linalg.eigvals of the product of both covariances, the papers' code SciPy's matrix root.

All of it goes from latents to both scores, with the statistics of real clips from the cache. Before it is timed, the
scores of two videos are compared with float64: two features have one direction, which leaves a root of one number.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import bench_sampling, floors, harness, suite
from benchmarks.bench_sampling import CHANNELS, LATENT_DIM, copy_of, make_network
from benchmarks.ceilings import Work
from benchmarks.contenders import TUNED, cudnn_for
from benchmarks.harness import Timing
from benchmarks.results import Goal, Label, rounded
from benchmarks.suite import Run, Section
from tgan_fast import VideoGenerator, reference
from tgan_fast.data import MovingDigits
from tgan_fast.metrics.c3d import FRAMES, SIZE
from tgan_fast.metrics.classifier import MEAN_SHAPE, Classifier, build_network
from tgan_fast.metrics.evaluation import Evaluator
from tgan_fast.metrics.features import ClassifierFeatures, Seen
from tgan_fast.metrics.frechet import Gaussian, frechet_distance
from tgan_fast.metrics.protocols import PROTOCOLS, Protocol
from tgan_fast.metrics.reference import RealClips
from tgan_fast.metrics.statistics_cache import StatisticsCache
from tgan_fast.models import IMAGE_SIZE
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.models.sampling import draw_latents
from tgan_fast.precision import Precision, resolve_evaluation_precision

SCORING = "inception score and Fréchet distance"
# The protocol of each.
NETWORKS = {"C3D": "tgan2", "small classifier": "plain"}
PREPARING = {f"preparing for C3D, {name}": name for name in ("tgan2", "tgan")}
# How many numbers: fc7 of C3D, and the logits of I3D.
FRECHET = {f"Fréchet distance, {d:,} features": d for d in (4096, 400)}

OURS, PRODUCTS, TORCHMETRICS, SCIPY = "tgan_fast", "matrix products", "torchmetrics", "scipy.linalg.sqrtm"
EAGER, EAGER_FP32 = "eager", "eager fp32"
RIVALS = {"cpu": (EAGER,), "cuda": (EAGER, EAGER_FP32, TUNED)}
# More features take a rival minutes.
MOST_FEATURES = {"cpu": {TORCHMETRICS: 1024, SCIPY: 1024}, "cuda": {TORCHMETRICS: 4096, SCIPY: 1024}}

# Classes and colour channels.
KINDS = {"c3d": (101, CHANNELS), "small": (10, 1)}
INPUTS = {"c3d": (CHANNELS, FRAMES, SIZE, SIZE), "small": (1, FRAMES, IMAGE_SIZE, IMAGE_SIZE)}
# As an `Evaluator` gives them to a network: those that a `Sampler` makes at once.
BATCH_SIZES = {"cpu": 2, "cuda": 64}
SAMPLES = 2048
ROUNDS = 3  # of C3D, which takes seconds on a CPU

# Relative errors: several times what rounding leads to. A rival that is off by more than all computes something else.
ALLOWED: dict[Precision, float] = {"fp32": 2e-5, "tf32": 1e-2, "bf16": 5e-2}
FAR = max(ALLOWED.values())
# Of distances, which are computed in float64 from features in float32.
ALLOWED_DISTANCE = 1e-6

SECONDS = 10  # goal for all videos of the protocol


class Scale(NamedTuple):
    """How much is scored."""

    width: float  # of the generator
    samples: int  # of a run
    runs: int
    real_clips: int  # that statistics are of; what a distance to them takes does not depend on it


def scale_of(run: Run) -> Scale:
    """Of a run. A CPU takes too long for all videos of the protocol."""
    if run.smoke:
        return Scale(width=1 / 8, samples=2, runs=1, real_clips=2)
    if run.device == "cuda":
        protocol = PROTOCOLS["tgan2"]
        return Scale(width=1.0, samples=protocol.samples, runs=protocol.runs, real_clips=256)
    return Scale(width=1.0, samples=2, runs=1, real_clips=2)


def precisions_for(device: str) -> list[Precision]:
    """All that the device has, that of an evaluation first."""
    default = resolve_evaluation_precision("auto", torch.device(device))
    return list(dict.fromkeys([default, *harness.precisions_for(device)]))


def ours(precision: Precision) -> str:
    """The name of the package in an arithmetic."""
    return f"{OURS} {precision}"


def make_classifier(architecture: str) -> Classifier:
    """Random weights; activations neither vanish nor grow, and different videos have different probabilities."""
    torch.manual_seed(0)
    network = build_network(architecture, *KINDS[architecture]).eval()
    weighted = [module for module in network.modules() if isinstance(module, (nn.Conv3d, nn.Linear))]
    for module in weighted:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.no_grad():
        logits = network(_two_of_patches(architecture))["logits"]
        spread = (logits[0] - logits[1]).std()
        weighted[-1].weight /= spread
        weighted[-1].bias.copy_((weighted[-1].bias - logits.mean(0)) / spread)
    mean = 100 + 10 * torch.randn(MEAN_SHAPE) if architecture == "c3d" else None
    classes, channels = KINDS[architecture]
    return Classifier(architecture, network, tuple(map(str, range(classes))), channels, mean)


def _two_of_patches(architecture):
    """Two videos for a network, which differ in more than their noise."""
    channels, *sizes = INPUTS[architecture]
    return F.interpolate(64 * torch.randn(2, channels, 2, 4, 4), size=sizes)


def random_videos(count: int, channels: int, device: str) -> torch.Tensor:
    """[count, channels, 16, 64, 64] in [-1, 1)."""
    return torch.rand(count, channels, FRAMES, IMAGE_SIZE, IMAGE_SIZE, device=device).mul_(2).sub_(1)


def _cubic(distance):
    """The kernel of OpenCV's cubic splines."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def _linear(distance):
    return max(0.0, 1 - abs(distance))


class Resizing(NamedTuple):
    """What a protocol makes of a side of a frame, and where the mean is cut."""

    kernel: Callable[[float], float]
    places: list[float]  # of the 112 pixels among the 64
    left: int

    def matrix(self) -> torch.Tensor:
        """float64 [112, 64]."""
        matrix = torch.zeros(len(self.places), IMAGE_SIZE, dtype=torch.float64)
        for row, place in enumerate(self.places):
            for pixel in range(math.floor(place) - 1, math.floor(place) + 3):
                matrix[row, min(max(pixel, 0), IMAGE_SIZE - 1)] += self.kernel(place - pixel)
        return matrix


_TOP = 8
RESIZING = {
    # To 128 pixels, half of one around each centre; of these the middle 112.
    "tgan": Resizing(_cubic, [(_TOP + row + 0.5) / 2 - 0.5 for row in range(SIZE)], 21 + _TOP),
    # From corner to corner.
    "tgan2": Resizing(_linear, [row * (IMAGE_SIZE - 1) / (SIZE - 1) for row in range(SIZE)], _TOP),
}


class MatrixProducts:
    """Prepares videos for C3D, in their own dtype.

    Args:
        name: of the protocol.
        mean: of the classifier.
        like: a tensor of the dtype and the device.
    """

    def __init__(self, name: str, mean: torch.Tensor, like: torch.Tensor):
        resizing = RESIZING[name]
        self._matrix = resizing.matrix().to(like)
        self._mean = mean[..., _TOP : _TOP + SIZE, resizing.left : resizing.left + SIZE].to(like)

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        """Videos [N, 3, 16, 64, 64] in [-1, 1] → [N, 3, 16, 112, 112], BGR, levels minus their mean."""
        levels = (videos * 128 + 128).flip(1)
        return self._matrix @ levels @ self._matrix.T - self._mean


def measure_preparing(run: Run, case: str) -> dict:
    """Of one protocol."""
    name, mean = PREPARING[case], 100 + 10 * torch.randn(MEAN_SHAPE)
    count = batch_size(run)
    videos = random_videos(count, CHANNELS, run.device)
    exact = MatrixProducts(name, mean, videos.double())(videos.double())
    mean = mean.to(run.device)
    contenders = {
        OURS: lambda videos: PROTOCOLS[name].prepare(videos, mean),
        PRODUCTS: MatrixProducts(name, mean, videos),
    }
    errors = {name: error_of(call(videos), exact) for name, call in contenders.items()}
    left_out = judge(case, errors, dict.fromkeys(errors, ALLOWED["fp32"]), [PRODUCTS])
    contenders = {name: call for name, call in contenders.items() if name not in left_out}
    nbytes = 4 * (videos.numel() + exact.numel() + exact[0].numel())
    others = range(run.input_set_count(nbytes) - 1)
    videos = [videos, *(random_videos(count, CHANNELS, run.device) for _ in others)]
    timings = run.measure(contenders, videos, rivals=[PRODUCTS])
    rows = run.rows(timings, work=Work(0, nbytes), more=_more(timings, errors, count, {}))
    return {"batch_size": count, "timings": rows, "left_out": left_out}


class Eager:
    """A classifier as its users run it, on a GPU in PyTorch's default arithmetic: TF32 in convolutions."""

    precision = "tf32"
    _chooses_algorithms = False

    def __init__(self, classifier: Classifier, protocol: Protocol, device: str):
        self._protocol = protocol
        self._mean = None if classifier.mean is None else classifier.mean.to(device)
        self._network = copy.deepcopy(classifier.network).to(device)

    @torch.no_grad()
    def __call__(self, videos: torch.Tensor) -> Seen:
        """What it sees in videos [N, C, 16, 64, 64]."""
        with cudnn_for(self.precision, self._chooses_algorithms):
            return seen_by(self._network, self._protocol.prepare(videos, self._mean), self._protocol.layer)


class StrictEager(Eager):
    """The same in float32."""

    precision = "fp32"


class Tuned(Eager):
    """Channels-last, bfloat16 autocast, cuDNN's fastest algorithms."""

    _chooses_algorithms = True

    def __init__(self, classifier: Classifier, protocol: Protocol, device: str):
        super().__init__(classifier, protocol, device)
        to_channels_last_(self._network)

    def __call__(self, videos: torch.Tensor) -> Seen:
        with torch.autocast(videos.device.type, torch.bfloat16):
            return super().__call__(videos)


CLASSES = {EAGER: Eager, EAGER_FP32: StrictEager, TUNED: Tuned}


def seen_by(network: nn.Module, prepared: torch.Tensor, layer: str) -> Seen:
    """Probabilities and features, float32 or more precise."""
    activations = network(prepared, [layer])
    logits, features = activations["logits"], activations[layer]
    dtype = torch.promote_types(features.dtype, torch.float32)
    return Seen(logits.to(dtype).softmax(1), features.to(dtype))


@torch.no_grad()
def exactly_seen(classifier: Classifier, protocol: Protocol, videos: torch.Tensor) -> Seen:
    """In float64, of videos [N, C, 16, 64, 64]."""
    videos = videos.double()
    if classifier.mean is not None:
        videos = MatrixProducts(protocol.name, classifier.mean, videos)(videos)
    return seen_by(copy.deepcopy(classifier.network).to(videos), videos, protocol.layer)


def layers_of(architecture: str) -> list[floors.Layer]:
    """Convolutions and linear layers."""
    with torch.device("meta"):
        network, videos = build_network(architecture, *KINDS[architecture]), torch.empty(1, *INPUTS[architecture])
    layers = []

    def add(module, inputs, output):
        count = module.weight.numel()
        flops = 2 * count * output.numel() / len(module.weight)
        layers.append(floors.Layer("", "", flops, inputs[0].numel(), output.numel(), count))

    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            module.register_forward_hook(add)
    network.eval()(videos)
    return layers


def floor_seconds(run: Run, architecture: str, videos: int, precision: Precision) -> float:
    """Of a network: for each layer its operations or its bytes, whichever takes longer."""
    works = [layer.work(videos, 2 if precision == "bf16" else 4) for layer in layers_of(architecture)]
    return sum(run.ceilings.floor(work, precision) for work in works)


def measure_network(run: Run, case: str) -> dict:
    """From videos to features and probabilities, preparing included."""
    protocol = PROTOCOLS[NETWORKS[case]]
    classifier = make_classifier(protocol.architecture)
    count, device = batch_size(run), torch.device(run.device)
    videos = random_videos(count, classifier.channels, run.device)
    precisions, rivals = precisions_for(run.device), RIVALS[run.device]
    own = {ours(precision): ClassifierFeatures(classifier, protocol, device, precision) for precision in precisions}
    contenders = {name: see.of_generated for name, see in own.items()}
    contenders |= {name: CLASSES[name](classifier, protocol, run.device) for name in rivals}
    # Float64 takes too long for more.
    exact = exactly_seen(classifier, protocol, videos[:1])
    seen, left_out = results_of(contenders, videos, rivals)
    errors = {name: _error_of_seen(found, exact) for name, found in seen.items()}
    allowed = {ours(precision): ALLOWED[precision] for precision in precisions} | dict.fromkeys(rivals, FAR)
    left_out |= judge(case, errors, allowed, rivals)
    contenders = {name: call for name, call in contenders.items() if name not in left_out}
    timings = run.measure(
        contenders,
        [videos],
        ROUNDS if classifier.architecture == "c3d" else None,
        rivals=rivals,
        uncaptured=dict.fromkeys(contenders, "as an evaluation runs it"),
        warm=True,
    )
    flops = rounded(count * sum(layer.flops for layer in layers_of(classifier.architecture)))
    floor = {ours(p): floor_seconds(run, classifier.architecture, count, p) for p in precisions}
    more = _more(timings, errors, count, floor)
    rows = run.rows(timings, more=lambda name: more(name) | {"flops": flops})
    return {"batch_size": count, "timings": rows, "left_out": left_out}


def _error_of_seen(seen, exact):
    """Of the first video."""
    probabilities = (seen.probabilities[:1] - exact.probabilities).abs().max().item()
    return worst([error_of(seen.features[:1], exact.features), probabilities])


class Problem(NamedTuple):
    """Features float32 [n, d], what they are compared with, and their distance."""

    features: torch.Tensor
    gaussian: Gaussian
    distance: float


def cosines(n: int, device: str) -> torch.Tensor:
    """An orthogonal matrix float64 [n, n], whose first row is constant: the discrete cosine transform."""
    k, i = (torch.arange(n, device=device).view(shape) for shape in ((n, 1), (1, n)))
    # What a cosine is of is exact as an integer, and too large for a float.
    matrix = (k * (2 * i + 1) % (4 * n)).double().mul_(math.pi / (2 * n)).cos_().mul_((2 / n) ** 0.5)
    matrix[0] /= 2**0.5
    return matrix


def make_problem(n: int, d: int, device: str) -> Problem:
    """Covariances that do not commute.

    With Σ₁ = AᵀA and Σ₂ = BᵀB, tr (Σ₁Σ₂)^½ is the sum of the singular values of ABᵀ. Here A is the diagonal S times an
    invertible matrix, and B the diagonal T times that matrix's inverse transpose, so that these are those of ST.
    """
    random = torch.Generator().manual_seed(0)

    def draw(count, low, high):
        drawn = torch.rand(count, generator=random, dtype=torch.float64)
        return drawn.mul_(high - low).add_(low).to(device)

    rank = min(n - 1, d)
    decay = torch.arange(1, d + 1, dtype=torch.float64, device=device).rsqrt()
    s, t = decay[:rank] * draw(rank, 0.5, 2), decay * draw(d, 0.5, 2)
    mean, other_mean, scale = draw(d, 0, 1), draw(d, 0, 1), draw(d, 0.5, 2)
    mixing = cosines(d, device)
    spread = (s[:, None] * mixing[:rank] * scale) @ mixing
    other_spread = (t[:, None] * mixing / scale) @ mixing
    # Orthogonal to a constant, so that the mean is what is added.
    features = (n - 1) ** 0.5 * cosines(n, device)[1 : rank + 1].T @ spread + mean
    traces = spread.square().sum() + other_spread.square().sum()
    distance = (mean - other_mean).square().sum() + traces - 2 * (s * t[:rank]).sum()
    return Problem(features.float(), Gaussian(other_mean, other_spread.T @ other_spread), distance.item())


def by_ours(problem: Problem) -> float:
    """As the package computes it."""
    return frechet_distance(problem.features, problem.gaussian)


def by_torchmetrics(problem: Problem) -> float:
    """As torchmetrics computes it, from features to the distance."""
    # Here, as SciPy below: where one is missing, the other contenders are measured.
    from torchmetrics.image.fid import _compute_fid

    features, (mean, covariance) = problem.features.double(), (problem.gaussian.mean, problem.gaussian.covariance)
    return _compute_fid(features.mean(0), features.T.cov(), mean, covariance).item()


def by_scipy(problem: Problem) -> float:
    """As the papers' code computes it, on the CPU."""
    import scipy.linalg

    features, mean = problem.features.double().cpu(), problem.gaussian.mean.cpu()
    first, second = features.T.cov().numpy(), problem.gaussian.covariance.cpu().numpy()
    root = scipy.linalg.sqrtm(first @ second).real
    return (features.mean(0) - mean).square().sum().item() + (first + second - 2 * root).trace().item()


DISTANCES = {OURS: by_ours, TORCHMETRICS: by_torchmetrics, SCIPY: by_scipy}


def measure_frechet(run: Run, case: str) -> dict:
    """Of 2,048 videos."""
    n, d = (24, FRECHET[case] // 40) if run.smoke else (SAMPLES, FRECHET[case])
    problem = make_problem(n, d, run.device)
    left_out = {name: f"{d:,} features take it minutes" for name, most in MOST_FEATURES[run.device].items() if d > most}
    rivals = [name for name in DISTANCES if name not in (OURS, *left_out)]
    contenders = {name: DISTANCES[name] for name in (OURS, *rivals)}
    found, more_left_out = results_of(contenders, problem, rivals)
    errors = {name: rounded(abs(distance / problem.distance - 1)) for name, distance in found.items()}
    left_out |= more_left_out
    left_out |= judge(case, errors, {OURS: ALLOWED_DISTANCE} | dict.fromkeys(rivals, FAR), rivals)
    contenders = {name: call for name, call in contenders.items() if name not in left_out}
    timings = by_the_clock(run, contenders, problem, suite.SMOKE_ROUNDS if run.smoke else None, rivals=rivals)
    rows = run.rows(timings, more=lambda name: {"error": errors.get(name)})
    return {"videos": n, "features": d, "timings": rows, "left_out": left_out}


def exact_scores(network: reference.Generator, classifier: Classifier, gaussian: Gaussian) -> dict[str, float]:
    """In float64, of the first two videos.

    Args:
        network: the generator, on the device that computes.
        classifier: C3D.
        gaussian: of the features of real clips.
    """
    protocol, device = PROTOCOLS["tgan2"], next(network.parameters()).device
    with torch.no_grad():
        videos = copy_of(network, torch.float64)(draw_latents(2, LATENT_DIM, 0).to(device, torch.float64))
    probabilities, features = exactly_seen(classifier, protocol, videos)
    divergences = (probabilities * (probabilities.log() - probabilities.mean(0).log())).sum(1)
    mean, covariance = gaussian.mean.to(features), gaussian.covariance.to(features)
    # Their covariance is that of one vector with itself.
    vector = (features[0] - features[1]) / 2**0.5
    root = (vector @ covariance @ vector).sqrt()
    distance = (features.mean(0) - mean).square().sum() + vector.square().sum() + covariance.trace() - 2 * root
    return {"inception_score": divergences.mean().exp().item(), "frechet_distance": distance.item()}


def measure_scoring(run: Run, case: str) -> dict:
    """From latents to scores, with C3D under the protocol tgan2."""
    scale, device = scale_of(run), torch.device(run.device)
    precision = precisions_for(run.device)[0]
    classifier, network = make_classifier("c3d"), make_network(scale.width, run.device)
    generator = VideoGenerator(scale.width, LATENT_DIM, CHANNELS)
    generator.load_state_dict(network.state_dict())
    generator.to(device)
    protocol = replace(PROTOCOLS["tgan2"], samples=scale.samples, runs=scale.runs)
    see = ClassifierFeatures(classifier, protocol, device, precision)
    real = RealClips(MovingDigits(), scale.real_clips, force=True)
    with tempfile.TemporaryDirectory() as folder:
        cache = StatisticsCache(Path(folder))

        def prepared(protocol):
            evaluator = Evaluator(
                ("is", "fid"), protocol, classifier=see, real=real, device=device, precision=precision, cache=cache
            )
            evaluator.prepare()
            return evaluator

        of_two = replace(protocol, samples=2, runs=1)
        scores = prepared(of_two)(generator)
        exact = exact_scores(network, classifier, real.statistics(see, of_two, cache, lambda clips: None).gaussian)
        name, evaluator = ours(precision), prepared(protocol)
    error = {key: rounded(abs(scores[key].mean / value - 1)) for key, value in exact.items()}
    judge(case, {name: worst(error.values())}, {name: ALLOWED[precision]}, [])
    # A GPU has yet to record a graph.
    timings = by_the_clock(run, {name: evaluator}, generator, 1, warm=run.device == "cpu")
    videos, batch = scale.samples * scale.runs, batch_size(run)
    floor = bench_sampling.floor_seconds(run, scale.width, batch, precision)
    floor += floor_seconds(run, "c3d", batch, precision)
    rows = run.rows(timings, more=_more(timings, {name: error}, videos, {name: floor * videos / batch}))
    return {"samples": scale.samples, "runs": scale.runs, "timings": rows, "left_out": {}}


def batch_size(run: Run) -> int:
    """Videos at once."""
    return 1 if run.smoke else BATCH_SIZES[run.device]


def error_of(tensor: torch.Tensor, exact: torch.Tensor) -> float:
    """The norm of what it is off by, relative to that of `exact`."""
    return rounded(((tensor.double() - exact).norm() / exact.norm()).item())


def worst(errors: Iterable[float]) -> float:
    """The largest; what is not a number is worse than all."""
    return rounded(torch.tensor(list(errors), dtype=torch.float64).max().item())


def results_of(contenders: Mapping[str, Callable], inputs, rivals) -> tuple[dict, dict[str, str]]:
    """What contenders return, and why rivals are left out that cannot run."""
    found, left_out = {}, {}
    for name, call in contenders.items():
        try:
            found[name] = call(inputs)
        except (RuntimeError, ImportError) as error:
            if name not in rivals:
                raise
            left_out[name] = harness.first_line(error)
    return found, left_out


def judge(case: str, errors: Mapping[str, float], allowed: Mapping[str, float], rivals) -> dict[str, str]:
    """Why rivals are left out that compute something else.

    Raises:
        SystemExit: the package does.
    """
    left_out = {}
    for name, error in errors.items():
        if error <= allowed[name]:
            continue
        reason = f"is off by {error:.1e} from what is exact, more than {allowed[name]:.0e}"
        if name not in rivals:
            raise SystemExit(f"error: {case}: {name} {reason}: nothing is timed")
        left_out[name] = reason
    return left_out


def by_the_clock(run: Run, contenders, inputs, rounds, *, rivals=(), warm=True) -> dict[str, Timing]:
    """As `run.measure`, of contenders that return a number, for which the host waits."""
    run.rivals.update(rivals)
    if run.own_only:
        contenders = {name: call for name, call in contenders.items() if name not in rivals}
    with run.watch:
        return harness.measure(contenders, [inputs], "cpu", rounds, warm=warm)


def _more(timings, errors, count, floors):
    """What rows of contenders that see so many videos hold besides; `floors` are seconds of the package's own."""
    first = next(iter(timings))
    floors = {**floors, harness.again(first): floors.get(first)}

    def more(name):
        seconds, floor = timings[name].median, floors.get(name)
        figures = {"error": errors.get(name), "videos_per_second": rounded(count / seconds)}
        if floor is not None:
            figures |= {"floor_seconds": rounded(floor), "share_of_floor": rounded(floor / seconds)}
        return figures

    return more


def measure(run: Run, case: str) -> dict:
    """Check and time one case."""
    torch.manual_seed(0)
    return _measures(case)(run, case)


def _measures(case):
    if case in NETWORKS:
        return measure_network
    if case in PREPARING:
        return measure_preparing
    return measure_frechet if case in FRECHET else measure_scoring


def labels_for(run: Run, case: str) -> list[Label]:
    """Of a case's timings."""
    precisions = [ours(precision) for precision in precisions_for(run.device)]
    if case in NETWORKS:
        names = [*precisions, *RIVALS[run.device]]
    elif case in PREPARING:
        names = [OURS, PRODUCTS]
    else:
        names = list(DISTANCES) if case in FRECHET else precisions[:1]
    return [Label(name) for name in (*names, harness.again(names[0]))]


def details(record: dict) -> Iterator[str]:
    """Videos a second, or what a distance is of."""
    if "features" in record:
        yield f"  {record['videos']:,} videos"
    else:
        rates = (f"{row['contender']} {row['videos_per_second']:,.1f}" for row in record["timings"])
        at_once = f", {record['batch_size']} at once" if "batch_size" in record else ""
        yield f"  videos/s{at_once}: {', '.join(rates)}"
    if "runs" in record:
        yield f"  {record['runs']} × {record['samples']:,} videos take {record['timings'][0]['seconds']:.2f} s"


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """That all videos of the protocol are scored in seconds."""
    if device == "cpu":
        return []
    protocol = PROTOCOLS["tgan2"]
    whole = (record for record in records if (record.get("samples"), record.get("runs")) == (SAMPLES, protocol.runs))
    seconds = next((record["timings"][0]["seconds"] for record in whole), None)
    text = f"seconds for {protocol.runs} × {SAMPLES:,} videos, inception score and Fréchet distance"
    return [Goal(text, seconds and rounded(seconds), SECONDS, at_most=True)]


SECTION = Section(
    name="metrics",
    title="scores of videos and what they are made of, C3D under the protocol tgan2; error: relative, against float64",
    cases=lambda run: [SCORING, *NETWORKS, *PREPARING, *FRECHET],
    measure=measure,
    details=details,
    goals=goals_for,
)

if __name__ == "__main__":
    suite.main(SECTION)
