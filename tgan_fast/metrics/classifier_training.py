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
# About the standard deviation of levels from 0 to 255.
_LEVELS = 64
_AT_ONCE = 32


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a classifier learns.

    Attributes:
        steps: of the optimizer.
        batch_size: clips in a step.
        learning_rate: the highest of the cycle.
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
    """Train a network from random weights, and judge it by the clips that are held out.

    A GPU computes in TF32 where it has that. The global random state is left as it was.

    Args:
        clips: to train on, and to judge by.
        architecture: of the network.
        recipe: see there; `RECIPES` has one for each architecture.
        seed: of the weights, of the clips' order, windows and flips, and of dropout.
        device: where to train.
        progress: called after every step with its loss.

    Returns:
        The classifier, on the CPU, with its accuracy.

    Raises:
        NonFiniteError: the loss became infinite or NaN.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), arithmetic("tf32"):
        torch.manual_seed(seed)
        classifier = _untrained(clips.training, clips.classes, architecture, seed)
        network, protocol = classifier.network.to(device), PROTOCOLS[protocol_for(classifier)]
        mean = None if classifier.mean is None else classifier.mean.to(device)

        def classify(clips: torch.Tensor) -> torch.Tensor:
            videos = protocol.scaled(clips.to(device)).expand(-1, classifier.channels, -1, -1, -1)
            if network.training and architecture == "small":
                videos = _disturbed(videos)
            return network(protocol.prepare(videos, mean))["logits"]

        _train(network, classify, clips.training, recipe, seed, progress)
        accuracy = _accuracy(classify, clips.held_out, seed)
    network.cpu()
    return dataclasses.replace(classifier, accuracy=accuracy)


def _untrained(dataset, classes, architecture, seed):
    if architecture == "c3d":
        network, mean = build_network("c3d", len(classes), 3), _mean_of(dataset, seed)
        _start_evenly(network)
        return Classifier("c3d", network, classes, 3, mean)
    ((first, _),) = draw_clips(dataset, 1, seed=seed, batch_size=1)
    channels = first.shape[-1]
    return Classifier(architecture, build_network(architecture, len(classes), channels), classes, channels)


def _start_evenly(network):
    """Without batch norm, activations fade from layer to layer of PyTorch's random weights, and it learns late."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        network.conv1a.weight /= _LEVELS
    nn.init.zeros_(network.fc8.weight)


def _disturbed(videos):
    """With less contrast, brighter and with noise, each as much as chance has it.

    Generated videos are never as black and as clean as real ones. Of them, a network that has only learned from real
    ones is sure of anything.
    """
    contrast, brightness, noise = videos.new_empty(3, len(videos), 1, 1, 1, 1).uniform_()
    videos = (videos + 1) * (1 - 0.5 * contrast) - 1 + 0.4 * brightness
    return (videos + 0.3 * noise * torch.randn_like(videos)).clamp(-1, 1)


def _mean_of(dataset, seed):
    """The mean level of each channel, in C3D's order, blue first: float32 [3, 16, 128, 171]."""
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
    """The share of a data set's clips, 0 to 1, whose class is the likeliest one."""
    drawn = draw_clips(dataset, len(dataset), seed=seed, batch_size=_AT_ONCE)
    right = sum((classify(clips).argmax(1).cpu() == labels).sum().item() for clips, labels in drawn)
    return right / len(dataset)
