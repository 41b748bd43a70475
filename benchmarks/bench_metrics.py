"""Scores of videos: Fréchet distances, and all from latents to the inception score and the Fréchet distance.

    python -m benchmarks.bench_metrics --device cuda

Rivals of the distance are torchmetrics, with torch.linalg.eigvals, and the papers' code, with SciPy's matrix root.

All of it takes C3D with random weights. The floor is that of its operations alone. Before it is timed, the scores of
two videos are compared with float64: two features have one direction, which leaves a root of one number.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import accuracy
from benchmarks.bench_data import on_host
from benchmarks.bench_sampling import CHANNELS, LATENT_DIM, copy_of, make_network
from benchmarks.ceilings import Work
from benchmarks.results import Goal, rounded
from benchmarks.suite import Run, Section, main
from tgan_fast import VideoGenerator
from tgan_fast.data import MovingDigits
from tgan_fast.metrics.classifier import MEAN_SHAPE, Classifier, build_network
from tgan_fast.metrics.evaluation import Evaluator
from tgan_fast.metrics.features import ClassifierFeatures
from tgan_fast.metrics.frechet import Gaussian, frechet_distance
from tgan_fast.metrics.protocols import PROTOCOLS, Protocol
from tgan_fast.metrics.reference import RealClips
from tgan_fast.models import FRAMES, IMAGE_SIZE
from tgan_fast.models.sampling import draw_latents
from tgan_fast.precision import Precision, resolve_evaluation_precision

SCORING, PROTOCOL = "inception score and Fréchet distance", PROTOCOLS["tgan2"]
# How many numbers: fc7 of C3D, and the logits of I3D.
FRECHET = {f"Fréchet distance, {d:,} features": d for d in (4096, 400)}
OURS, TORCHMETRICS, SCIPY = "tgan_fast", "torchmetrics", "scipy.linalg.sqrtm"

# Relative errors: several times what rounding leads to.
ALLOWED: dict[Precision, float] = {"fp32": 2e-5, "tf32": 1e-2}
# Distances are computed in float64 from features in float32. A rival that is off by more computes something else.
ALLOWED_DISTANCE, FAR = 1e-6, 5e-2


def make_problem(n: int, d: int, device: str) -> tuple[torch.Tensor, Gaussian, float]:
    """Return features float32 [n, d], what they are compared with, and their distance.

    Both covariances have the same eigenvectors, so that the root of their product is that of numbers.
    """
    rank, options = min(n - 1, d), {"dtype": torch.float64, "device": device}
    axes = torch.linalg.qr(torch.randn(d, d, **options)).Q
    decay = torch.arange(1, d + 1, **options).rsqrt()
    own, other = (decay * (0.5 + torch.rand(d, **options)) for _ in range(2))
    own[rank:] = 0
    means = torch.rand(2, d, **options)
    draws = torch.randn(n, rank, **options)
    # Orthogonal to each other and to a constant, so that the mean is what is added.
    columns = torch.linalg.qr(draws - draws.mean(0)).Q
    features = (n - 1) ** 0.5 * (columns * own[:rank]) @ axes[:, :rank].T + means[0]
    distance = (means[0] - means[1]).square().sum() + (own - other).square().sum()
    return features.float(), Gaussian(means[1], (axes * other.square()) @ axes.T), distance.item()


def by_torchmetrics(features: torch.Tensor, other: Gaussian) -> float:
    """Return the distance as torchmetrics computes it from features."""
    # Here, as SciPy below: where one is missing, the other contenders are measured.
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


def measure_frechet(run: Run, case: str) -> dict:
    """Check and time distances of 2,048 videos, by the clock, since the host waits for the number."""
    n, d = (24, FRECHET[case] // 40) if run.smoke else (2048, FRECHET[case])
    features, other, exact = make_problem(n, d, run.device)
    slow = {SCIPY, TORCHMETRICS} if run.device == "cpu" else {SCIPY}
    left_out = {name: f"{d:,} features take it minutes" for name in slow if d > 1024}
    errors, failed = accuracy.check(
        case,
        {name: partial(call, features, other) for name, call in DISTANCES.items() if name not in left_out},
        lambda distance: rounded(abs(distance / exact - 1)),
        lambda name, errors: ALLOWED_DISTANCE if name == OURS else FAR,
        {TORCHMETRICS, SCIPY},
    )
    calls = {name: partial(DISTANCES[name], features) for name in errors}
    timings = on_host(run).measure(calls, [other], rivals=errors.keys() - {OURS}, warm=True)
    rows = run.rows(timings, more=lambda name: {"error": errors.get(name)})
    return {"videos": n, "features": d, "timings": rows, "left_out": left_out | failed}


@torch.no_grad()
def make_classifier(protocol: Protocol) -> tuple[Classifier, int]:
    """Return random weights that tell videos apart and are never sure, and the operations of one video."""
    network = build_network(protocol.architecture, 101, CHANNELS).eval()
    mean = 100 + 10 * torch.randn(MEAN_SHAPE)
    weighted = [module for module in network.modules() if isinstance(module, (nn.Conv3d, nn.Linear))]
    for module in weighted:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    patches = 2 * torch.rand(2, CHANNELS, 2, 4, 4) - 1
    videos = nn.functional.interpolate(patches, size=(FRAMES, IMAGE_SIZE, IMAGE_SIZE))
    with FlopCounterMode(display=False) as counter:
        logits = network(protocol.prepare(videos, mean))["logits"]
    spread, last = (logits[0] - logits[1]).std(), weighted[-1]
    last.weight /= spread
    last.bias.copy_((last.bias - logits.mean(0)) / spread)
    classes = tuple(map(str, range(101)))
    return Classifier(protocol.architecture, network, classes, CHANNELS, mean), counter.get_total_flops() // 2


@torch.no_grad()
def exact_scores(videos: torch.Tensor, classifier: Classifier, protocol: Protocol, real: Gaussian) -> dict[str, float]:
    """Return both scores of two videos, float64."""
    network = copy.deepcopy(classifier.network).to(videos)
    activations = network(protocol.prepare(videos, classifier.mean.to(videos)), [protocol.layer])
    probabilities, features = activations["logits"].softmax(1), activations[protocol.layer]
    divergences = (probabilities * (probabilities.log() - probabilities.mean(0).log())).sum(1)
    mean, covariance = real.mean.to(features), real.covariance.to(features)
    # Their covariance is that of one vector with itself.
    vector = (features[0] - features[1]) / 2**0.5
    root = (vector @ covariance @ vector).sqrt()
    distance = (features.mean(0) - mean).square().sum() + vector.square().sum() + covariance.trace() - 2 * root
    return {"inception_score": divergences.mean().exp().item(), "frechet_distance": distance.item()}


def measure_scoring(run: Run, case: str) -> dict:
    """Check and time all from latents to scores; in a smoke run with the small classifier and its protocol."""
    device, width = torch.device(run.device), 1 / 8 if run.smoke else 1.0
    precision = resolve_evaluation_precision("auto", device)
    name, protocol = f"{OURS} {precision}", PROTOCOLS["plain"] if run.smoke else PROTOCOL
    two = replace(protocol, samples=2, runs=1)
    if run.smoke or run.device == "cpu":
        protocol = two  # all videos of the protocol take a CPU too long
    (classifier, flops), network = make_classifier(protocol), make_network(width, run.device)
    generator = VideoGenerator(width, LATENT_DIM, CHANNELS).to(device)
    generator.load_state_dict(network.state_dict())
    see = ClassifierFeatures(classifier, protocol, device, precision)
    # What a distance to them takes does not depend on how many there are.
    real = RealClips(MovingDigits(), 256 if run.device == "cuda" else 2, force=True)
    options = {"classifier": see, "real": real, "device": device, "precision": precision}
    of_two, evaluator = (Evaluator(("is", "fid"), protocol, **options) for protocol in (two, protocol))
    of_two.prepare()
    evaluator.prepare()
    videos = copy_of(network, torch.float64)(draw_latents(2, LATENT_DIM, 0).to(device, torch.float64))
    exact = exact_scores(videos, classifier, two, real.statistics(see, two, None, lambda clips: None).gaussian)
    errors, _ = accuracy.check(
        case,
        {name: partial(of_two, generator)},
        lambda scores: {key: rounded(abs(scores[key].mean / value - 1)) for key, value in exact.items()},
        lambda name, errors: dict.fromkeys(exact, ALLOWED[precision]),
    )
    # A GPU has yet to record a graph.
    timings = on_host(run).measure({name: evaluator}, [generator], 1, warm=run.device == "cpu")
    count = protocol.samples * protocol.runs
    rates = {name: {"videos_per_second": rounded(count / timing.median)} for name, timing in timings.items()}
    rows = run.rows(
        timings, None, Work(count * flops, 0), precision, lambda name: {"error": errors.get(name), **rates[name]}
    )
    return {"samples": protocol.samples, "runs": protocol.runs, "timings": rows, "left_out": {}}


def measure(run: Run, case: str) -> dict:
    """Check and time one case."""
    torch.manual_seed(0)
    return measure_frechet(run, case) if case in FRECHET else measure_scoring(run, case)


def details(record: dict) -> Iterator[str]:
    """Yield what all of it takes."""
    if "runs" in record:
        row = record["timings"][0]
        videos = f"{record['runs']} × {record['samples']:,} videos"
        yield f"  {videos} take {row['seconds']:.2f} s: {row['videos_per_second']:,.1f} videos/s"


def goals_for(records: list[dict], device: str) -> list[Goal]:
    """Return the goal: all videos of the protocol are scored in seconds."""
    whole = (record["timings"][0] for record in records if record.get("samples") == PROTOCOL.samples)
    seconds = next((rounded(row["seconds"]) for row in whole), None)
    text = f"seconds for {PROTOCOL.runs} × {PROTOCOL.samples:,} videos, inception score and Fréchet distance"
    return [Goal(text, seconds, 10, at_most=True)] if device == "cuda" else []


SECTION = Section(
    name="metrics",
    title="scores of videos, with C3D under the protocol tgan2; error: relative, against float64",
    cases=lambda run: [SCORING, *FRECHET],
    measure=measure,
    details=details,
    goals=goals_for,
)

if __name__ == "__main__":
    main(SECTION)
