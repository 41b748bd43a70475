"""Classifiers of videos: a network and everything else that its scores depend on."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from tgan_fast.metrics.classifier_networks import C3D, Small3D

MEAN_SHAPE = 3, 16, 128, 171

_NAMED = 3

Architecture = Literal["c3d", "small"]

# Functions of the number of classes and of color channels; C3D always takes three channels.
ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "c3d": lambda classes, channels: C3D(classes),
    "small": Small3D,
}


@dataclass(frozen=True)
class Classifier:
    """Network that classifies videos, on the CPU and in evaluation mode.

    Attributes:
        architecture: Key of `ARCHITECTURES`.
        network: Network with float32 weights.
        classes: Names of the classes.
        channels: Color channels of the videos that it takes.
        mean: Mean to subtract from the levels of C3D's input, float32 [3, 16, 128, 171], BGR; None for other networks.
        accuracy: Accuracy on clips that it was not trained on, 0 to 1; None if it is unknown.
    """

    architecture: Architecture
    network: nn.Module
    classes: tuple[str, ...]
    channels: int
    mean: torch.Tensor | None = None
    accuracy: float | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and the mean, in hexadecimal."""
        digest = hashlib.sha256(self.architecture.encode())
        tensors = [*self.network.state_dict().values(), *([] if self.mean is None else [self.mean])]
        for tensor in tensors:
            digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()


def widened(classifier: Classifier, channels: int) -> Classifier:
    """Return a classifier of colored videos that classifies the mean of their channels.

    Args:
        classifier: Classifier of gray videos, of the architecture `small`.
        channels: Color channels of the videos.
    """
    state = classifier.network.state_dict()
    state["layers.0.weight"] = state["layers.0.weight"].repeat(1, channels, 1, 1, 1) / channels
    network = build_network("small", len(classifier.classes), channels).eval()
    network.load_state_dict(state)
    return dataclasses.replace(classifier, network=network, channels=channels)


def build_network(architecture: Architecture, classes: int, channels: int) -> nn.Module:
    """Return a network with random weights."""
    return ARCHITECTURES[architecture](classes, channels)


def notice_on_classes(classifier: Classifier, names: Collection[str]) -> str | None:
    """Return a notice of classes of the scored videos that a classifier does not know, or None if it knows them all.

    Args:
        classifier: Classifier; C3D from other sources, whose classes are only numbered, gets no notice.
        names: Names of the classes of the videos; empty if they are unknown.
    """
    numbers = tuple(str(number) for number in range(len(classifier.classes)))
    unknown = sorted(set(names) - set(classifier.classes))
    if not unknown or (classifier.architecture == "c3d" and classifier.classes == numbers):
        return None
    return (
        f"the classifier knows {_listed(classifier.classes)}, but not {_listed(unknown)}, found in the videos: "
        "scores say little about videos that it does not know, so train a classifier on the same data"
    )


def _listed(classes):
    further = len(classes) - _NAMED
    return ", ".join(classes[:_NAMED]) + (f" and {further:,} more" if further > 0 else "")
