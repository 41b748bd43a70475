"""Training a classifier of videos: cross-entropy, Adam, one cycle of the learning rate."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tgan_fast.errors import NonFiniteError
from tgan_fast.metrics.classifier import MEAN_SHAPE, Architecture, Classifier, build_network
from tgan_fast.metrics.held_out import LabeledClips
from tgan_fast.metrics.protocols import PROTOCOLS, protocol_for
from tgan_fast.metrics.real_clips import draw_clips
from tgan_fast.precision import arithmetic

_CLIPS_OF_MEAN = 1024
# Approximate standard deviation of levels from 0 to 255.
_LEVELS = 64
_AT_ONCE = 32


@dataclass(frozen=True)
class Recipe:
    """Length and speed of the training of a classifier.

    Attributes:
        steps: Number of optimizer steps.
        batch_size: Clips per step.
        learning_rate: Highest learning rate of the cycle.
    """

    steps: int
    batch_size: int
    learning_rate: float


RECIPES: dict[Architecture, Recipe] = {"small": Recipe(1000, 32, 3e-3), "c3d": Recipe(20_000, 32, 1e-4)}


def train_classifier(
    clips: LabeledClips,
    architecture: Architecture,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[float], object] = lambda loss: None,
) -> Classifier:
    """Train a network from random weights, and measure its accuracy on held-out clips.

    A GPU computes in TF32 if it supports it. The global random state does not change.

    Args:
        clips: Clips for training and held-out clips.
        architecture: Architecture of the network.
        recipe: Length and speed of the training; `RECIPES` has one for each architecture.
        seed: Seed of the weights, the clips' order, windows and flips, and dropout.
        device: Device to train on.
        progress: Function called after every step with its loss.

    Returns:
        The classifier, on the CPU, with its accuracy.

    Raises:
        NonFiniteError: The loss became infinite or NaN.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), arithmetic("tf32"):
        torch.manual_seed(seed)
        classifier = _new_classifier(clips.training, clips.classes, architecture, seed)
        network, protocol = classifier.network.to(device), PROTOCOLS[protocol_for(classifier)]
        mean = None if classifier.mean is None else classifier.mean.to(device)

        def classify(clips: torch.Tensor) -> torch.Tensor:
            videos = protocol.scaled(clips.to(device)).expand(-1, classifier.channels, -1, -1, -1)
            if network.training and architecture == "small":
                videos = _augment(videos)
            return network(protocol.prepare(videos, mean))["logits"]

        _train(network, classify, clips.training, recipe, seed, progress)
        accuracy = _accuracy(classify, clips.held_out, seed)
    network.cpu()
    return dataclasses.replace(classifier, accuracy=accuracy)


def _new_classifier(dataset, classes, architecture, seed):
    if architecture == "c3d":
        network, mean = build_network("c3d", len(classes), 3), _mean_of(dataset, seed)
        _initialize_c3d(network)
        return Classifier("c3d", network, classes, 3, mean)
    ((first, _),) = draw_clips(dataset, 1, seed=seed, batch_size=1)
    channels = first.shape[-1]
    return Classifier(architecture, build_network(architecture, len(classes), channels), classes, channels)


def _initialize_c3d(network):
    """Initialize C3D so that activations keep their size: without batch norm, PyTorch's weights make them fade."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        network.conv1a.weight /= _LEVELS
    nn.init.zeros_(network.fc8.weight)


def _augment(videos):
    """Return videos with random amounts of contrast, brightness and noise.

    Generated videos are less dark and clean than real ones, and a network trained only on real ones is overconfident.
    """
    contrast, brightness, noise = videos.new_empty(3, len(videos), 1, 1, 1, 1).uniform_()
    videos = (videos + 1) * (1 - 0.5 * contrast) - 1 + 0.4 * brightness
    return (videos + 0.3 * noise * torch.randn_like(videos)).clamp(-1, 1)


def _mean_of(dataset, seed):
    """Return the mean level of each channel in C3D's order, blue first: float32 [3, 16, 128, 171]."""
    drawn = draw_clips(dataset, min(len(dataset), _CLIPS_OF_MEAN), seed=seed, batch_size=_AT_ONCE)
    levels = torch.cat([clips.float().mean((1, 2, 3)) for clips, _ in drawn]).mean(0)
    return levels.flip(0)[:, None, None, None].expand(MEAN_SHAPE).contiguous()


def _train(network, classify, dataset, recipe, seed, progress):
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    network.train()
    count = recipe.steps * recipe.batch_size
    for step, (clips, labels) in enumerate(draw_clips(dataset, count, seed=seed, batch_size=recipe.batch_size), 1):
        logits = classify(clips)
        loss = F.cross_entropy(logits, labels.to(logits.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss of step {step} is not finite: try a lower learning_rate")
        progress(value)
    optimizer.zero_grad()
    network.eval()


@torch.no_grad()
def _accuracy(classify, dataset, seed):
    """Return the share of a data set's clips, 0 to 1, whose class is predicted."""
    drawn = draw_clips(dataset, len(dataset), seed=seed, batch_size=_AT_ONCE)
    right = sum((classify(clips).argmax(1).cpu() == labels).sum().item() for clips, labels in drawn)
    return right / len(dataset)
