"""Scores of videos: Fréchet distances, and a whole evaluation from latents to inception score and Fréchet distance.

    python -m benchmarks.bench_metrics --device cuda

C3D has random weights. Before timing, the scores of two videos are compared with float64: the covariance of two feature
vectors has rank 1, so its root is that of one number. The floor of scoring counts C3D's operations only.
"""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import accuracy
from benchmarks.bench_sampling import CHANNELS, LATENT_DIM, copy_of, make_network
from benchmarks.ceilings import Work
from benchmarks.result_files import Goal, rounded
from benchmarks.suite import Run, Section, main
from tgan_fast import VideoGenerator
from tgan_fast.data import MovingDigits
from tgan_fast.metrics.classifier import MEAN_SHAPE, Classifier, build_network
from tgan_fast.metrics.evaluator import Evaluator
from tgan_fast.metrics.features import ClassifierFeatures
from tgan_fast.metrics.frechet import Gaussian, frechet_distance
from tgan_fast.metrics.protocols import PROTOCOLS, Protocol
from tgan_fast.metrics.real_statistics import RealClips
from tgan_fast.models.sampling import draw_latents
from tgan_fast.precision import Precision, resolve_evaluation_precision

SCORING, PROTOCOL = "inception score and Fréchet distance", PROTOCOLS["tgan2"]
FRECHET = "Fréchet distance, 400 features"  # as many as I3D has logits
OURS, TORCHMETRICS, SCIPY = "tgan_fast", "torchmetrics", "scipy.linalg.sqrtm"

ALLOWED: dict[Precision, float] = {"fp32": 2e-5, "tf32": 1e-2}  # relative error; several times that of rounding


def make_features(n: int, d: int, device: str) -> tuple[torch.Tensor, Gaussian, float]:
    """Return features float32 [n, d], what they are compared with, and their distance, float64."""
    torch.manual_seed(0)
    first, second = ((torch.randn(n, d) * torch.rand(d) + torch.rand(d)).to(device).double() for _ in range(2))
    # With covariances R.T @ R, the trace of the root of their product is a nuclear norm.
    own, other = (torch.linalg.qr(side - side.mean(0)).R / (n - 1) ** 0.5 for side in (first, second))
    traces = own.square().sum() + other.square().sum() - 2 * torch.linalg.svdvals(own @ other.T).sum()
    distance = (first.mean(0) - second.mean(0)).square().sum() + traces
    return first.float(), Gaussian(second.mean(0), other.T @ other), distance.item()


def by_torchmetrics(features: torch.Tensor, other: Gaussian) -> float:
    """Return the distance as torchmetrics computes it from features."""
    # torchmetrics and SciPy are imported in their functions, because a rival may be missing.
    from torchmetrics.image.fid import _compute_fid

    features = features.double()
    return _compute_fid(features.mean(0), features.T.cov(), other.mean, other.covariance).item()


def by_scipy(features: torch.Tensor, other: Gaussian) -> float:
    """Return the distance as the papers' code computes it, on the CPU."""
    import scipy.linalg

    features, other = features.double().cpu(), other.to("cpu")
    first, second = features.T.cov().numpy(), other.covariance.numpy()
    root = scipy.linalg.sqrtm(first @ second).real
    return (features.mean(0) - other.mean).square().sum().item() + (first + second - 2 * root).trace().item()


DISTANCES = {OURS: frechet_distance, TORCHMETRICS: by_torchmetrics, SCIPY: by_scipy}


def measure_frechet(run: Run) -> dict:
    """Check and time distances by wall clock, since the host waits for the number."""
    n, d = (24, 10) if run.smoke else (2048, 400)
    features, other, exact = make_features(n, d, run.device)
    errors, left_out = accuracy.check_contenders(
        FRECHET,
        {name: partial(call, features, other) for name, call in DISTANCES.items()},
        lambda distance: rounded(abs(distance / exact - 1)),
        # All compute in float64; a rival with a larger error computes something else.
        lambda name, errors: 1e-6 if name == OURS else 5e-2,
        {TORCHMETRICS, SCIPY},
    )
    calls = {name: partial(DISTANCES[name], features) for name in errors}
    timings = run.measure(calls, [other], rivals=errors.keys() - {OURS}, device="cpu", warm=True)
    rows = run.rows(timings, more=lambda name: {"error": errors.get(name)})
    return {"timings": rows, "left_out": left_out}


def make_classifier(protocol: Protocol, videos: torch.Tensor) -> tuple[Classifier, int]:
    """Return a random classifier that separates two videos without certainty, and the FLOPs of one video."""
    network = build_network(protocol.architecture, 101, CHANNELS).eval()
    mean = 100 + 10 * torch.randn(MEAN_SHAPE)
    weighted = [module for module in network.modules() if isinstance(module, (nn.Conv3d, nn.Linear))]
    for module in weighted:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with FlopCounterMode(display=False) as counter:
        logits = network(protocol.prepare(videos, mean))["logits"]
    spread, last = (logits[0] - logits[1]).std(), weighted[-1]
    last.weight /= spread
    last.bias.copy_((last.bias - logits.mean(0)) / spread)
    classes = tuple(map(str, range(101)))
    return Classifier(protocol.architecture, network, classes, CHANNELS, mean), counter.get_total_flops() // 2


def exact_scores(videos: torch.Tensor, classifier: Classifier, protocol: Protocol, real: Gaussian) -> dict[str, float]:
    """Return both scores of two videos, float64."""
    network = copy.deepcopy(classifier.network).to(videos)
    activations = network(protocol.prepare(videos, classifier.mean.to(videos)), [protocol.layer])
    probabilities, features = activations["logits"].softmax(1), activations[protocol.layer]
    divergences = (probabilities * (probabilities.log() - probabilities.mean(0).log())).sum(1)
    mean, covariance = real.mean.to(features), real.covariance.to(features)
    # The covariance of two vectors is the outer product of one vector with itself.
    vector = (features[0] - features[1]) / 2**0.5
    root = (vector @ covariance @ vector).sqrt()
    distance = (features.mean(0) - mean).square().sum() + vector.square().sum() + covariance.trace() - 2 * root
    return {"inception_score": divergences.mean().exp().item(), "frechet_distance": distance.item()}


@torch.no_grad()
def measure_scoring(run: Run) -> dict:
    """Check and time the way from latents to scores; a smoke run uses the small classifier and its protocol."""
    device, width = torch.device(run.device), 1 / 8 if run.smoke else 1.0
    precision = resolve_evaluation_precision("auto", device)
    protocol = PROTOCOLS["plain"] if run.smoke else PROTOCOL
    two = replace(protocol, samples=2, runs=1)
    if run.smoke or run.device == "cpu":
        protocol = two  # all videos of the protocol take too long
    network = make_network(width, run.device)
    generator = VideoGenerator(width, LATENT_DIM, CHANNELS).to(device)
    generator.load_state_dict(network.state_dict())
    videos = copy_of(network, torch.float64)(draw_latents(2, LATENT_DIM, 0).to(device, torch.float64))
    classifier, flops = make_classifier(protocol, videos.float().cpu())
    see = ClassifierFeatures(classifier, protocol, device, precision)
    # The time of a distance does not depend on the number of real clips.
    real = RealClips(MovingDigits(), 256 if run.device == "cuda" else 2, force=True)
    options = {"classifier": see, "real": real, "device": device, "precision": precision}
    of_two, evaluator = (Evaluator(("is", "fid"), each, **options) for each in (two, protocol))
    of_two.prepare()
    evaluator.prepare()
    exact = exact_scores(videos, classifier, two, real.statistics(see, two, None, lambda clips: None).gaussian)
    name = f"{OURS} {precision}"
    errors, _ = accuracy.check_contenders(
        SCORING,
        {name: partial(of_two, generator)},
        lambda scores: {key: rounded(abs(scores[key].mean / value - 1)) for key, value in exact.items()},
        lambda name, errors: dict.fromkeys(exact, ALLOWED[precision]),
    )
    # The first calls on a GPU record a CUDA graph.
    timings = run.measure({name: evaluator}, [generator], 1, device="cpu", warm=run.device == "cpu")
    work = Work(protocol.samples * protocol.runs * flops, 0)
    rows = run.rows(timings, None, work, precision, lambda name: {"error": errors.get(name)})
    return {"samples": protocol.samples, "runs": protocol.runs, "timings": rows, "left_out": {}}


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goal: all videos of the protocol are scored in seconds."""
    seconds = [record["timings"][0]["seconds"] for record in records if record.get("runs") == PROTOCOL.runs]
    text = f"seconds for {PROTOCOL.runs} × {PROTOCOL.samples:,} videos, inception score and Fréchet distance"
    return [Goal(text, max(map(rounded, seconds), default=None), 10, at_most=True)] if device == "cuda" else []


SECTION = Section(
    name="metrics",
    title="scores of videos, with C3D under the protocol tgan2; error: relative, against float64",
    cases=lambda run: [SCORING, FRECHET],
    measure=lambda run, case: measure_frechet(run) if case == FRECHET else measure_scoring(run),
    goals=goals_for,
)

if __name__ == "__main__":
    main(SECTION)
