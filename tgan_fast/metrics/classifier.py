"""Classifiers of videos: a network with all that its scores depend on, and the file that holds it."""

import functools
import hashlib
import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically
from tgan_fast.metrics.classifier_networks import C3D, Small3D

FORMAT = "tgan_fast classifier 1"
MEAN_SHAPE = 3, 16, 128, 171

_NAMED = 3
_MOST_CHANNELS = 1024

Architecture = Literal["c3d", "small"]

# Of the number of classes and of colour channels; C3D always takes three.
ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "c3d": lambda classes, channels: C3D(classes),
    "small": Small3D,
}


@dataclass(frozen=True)
class Classifier:
    """A network that tells classes of videos, on the CPU and in evaluation mode.

    Attributes:
        architecture: a key of `ARCHITECTURES`.
        network: its weights are float32.
        classes: their names.
        channels: colour channels of the videos that it takes.
        mean: of C3D, what is subtracted from the levels of its input: float32 [3, 16, 128, 171], BGR.
        accuracy: on clips that it was not trained on, 0 to 1; None where it is not known.
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


def build_network(architecture: Architecture, classes: int, channels: int) -> nn.Module:
    """A network with random weights."""
    return ARCHITECTURES[architecture](classes, channels)


def notice_on_classes(classifier: Classifier, names: Collection[str]) -> str | None:
    """Return a sentence on classes of the scored videos that a classifier does not know, or None if it knows them all.

    Args:
        classifier: Classifier; the numbers by which C3D of others names its classes tell nothing.
        names: Names of the classes of the videos; none where they are not known.
    """
    numbers = tuple(str(number) for number in range(len(classifier.classes)))
    unknown = sorted(set(names) - set(classifier.classes))
    if not unknown or (classifier.architecture == "c3d" and classifier.classes == numbers):
        return None
    return (
        f"the classifier knows {_named(classifier.classes)}, but not {_named(unknown)}, which the videos are of: "
        "scores say little of videos that it does not know, so train one on the same data"
    )


def _named(classes):
    further = len(classes) - _NAMED
    return ", ".join(classes[:_NAMED]) + (f" and {further:,} more" if further > 0 else "")


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier in the package's own format, of tensors and plain values alone.

    Raises:
        OSError: it cannot be written; an older file of that name is left as it was.
    """
    content = io.BytesIO()
    values = {
        "format": FORMAT,
        "architecture": classifier.architecture,
        "classes": list(classifier.classes),
        "channels": classifier.channels,
        "mean": classifier.mean,
        "accuracy": classifier.accuracy,
        "network": classifier.network.state_dict(),
    }
    torch.save(values, content)
    write_atomically(path, content)


def from_content(content: Mapping[str, Any], path: Path) -> Classifier:
    """Return the classifier in a file of the package's own format.

    Args:
        content: Content of the file, as `torch.load(path, weights_only=True)` reads it.
        path: File name, for errors.

    Raises:
        InputError: The file is of a newer version or damaged, or its weights do not fit its architecture.
    """
    # Not the keys themselves, which can only be compared with what can be hashed.
    if content.get("format") != FORMAT or content.get("architecture") not in list(ARCHITECTURES):
        raise InputError(f"{path} is not a classifier that this tgan_fast knows: install a newer one")
    for name, is_right in _VALUES.items():
        if name not in content or not is_right(content[name]):
            raise InputError(f"{path} is damaged: its {name} is missing, or of no use; get the file anew")
    architecture, classes, channels = content["architecture"], tuple(content["classes"]), content["channels"]
    with torch.device("meta"):
        network = build_network(architecture, len(classes), channels)
    load_weights(network, content["network"], path)
    mean = content["mean"]
    if architecture == "c3d":
        check_mean(mean, path)
    return Classifier(architecture, network.eval(), classes, channels, mean, content["accuracy"])


def load_weights(network: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Make the tensors of `state` the network's own, whatever it had before.

    Raises:
        InputError: The first weight that is missing, unknown, of another shape or dtype, or not finite.
    """
    expected = network.state_dict()
    for name in expected:
        if name not in state:
            raise InputError(f"the weights in {path} are not those of this network: {name} is missing")
    for name, tensor in state.items():
        if name not in expected:
            raise InputError(f"the weights in {path} are not those of this network: it has no {name}")
        if not _is_plain(tensor) or tensor.dtype != expected[name].dtype:
            raise InputError(f"{name} in {path} is no array of {expected[name].dtype}: get the file anew")
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"the weights in {path} are not those of this network: {name} is {list(tensor.shape)}, "
                f"and should be {list(expected[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{name} in {path} is not finite: get the file anew")
    network.load_state_dict(state, assign=True)


def _is_plain(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _is_number(value, least, most):
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


# What a file's values have to be, of those that are not checked elsewhere.
_VALUES: dict[str, Callable[[Any], bool]] = {
    "classes": lambda value: isinstance(value, list) and value and all(isinstance(name, str) for name in value),
    "channels": lambda value: isinstance(value, int) and _is_number(value, 1, _MOST_CHANNELS),
    "mean": lambda value: value is None or (_is_plain(value) and value.dtype == torch.float32),
    "accuracy": lambda value: value is None or _is_number(value, 0, 1),
    "network": lambda value: isinstance(value, dict),
}


def check_mean(mean: torch.Tensor | None, path: Path) -> None:
    """Raise an InputError unless `mean` is what C3D's input is to be compared with."""
    if mean is None or tuple(mean.shape) != MEAN_SHAPE:
        shape = "missing" if mean is None else list(mean.shape)
        raise InputError(f"the mean in {path} is {shape}, but C3D needs {list(MEAN_SHAPE)}: give that of mean2.npz")
    if not mean.isfinite().all():
        raise InputError(f"the mean in {path} is not finite: get the file anew")
