"""Files of classifiers: the package's own format, and the formats in which C3D's weights circulate.

conv3d_deepnetA_ucf.npz   of TGAN's authors: arrays with Chainer's names, conv1a/W, conv1a/b, …, fc8/b
c3d_ucf101.pt             the same as TorchScript; only its weights are read, and its code is not run
mean2.npz                 array `mean`, float [3, 16, 128, 171], which both need
"""

import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tgan_fast.errors import InputError
from tgan_fast.files import is_whole_zip, write_atomically
from tgan_fast.metrics.classifier import ARCHITECTURES, MEAN_SHAPE, Classifier, build_network
from tgan_fast.metrics.classifier_networks import C3D

# Classifier of moving digits that comes with the package.
DIGITS_CLASSIFIER = Path(__file__).parents[1] / "pretrained" / "digits-classifier.pt"

CLASSIFIER_FORMAT = "tgan_fast classifier 1"
UCF101_CLASSES = 101
_MOST_CHANNELS = 1024

_REMEDY = "conv3d_deepnetA_ucf.npz, its TorchScript form, or a file of tgan_fast is needed"


def load_classifier(path: Path, mean: Path | None = None) -> Classifier:
    """Read a classifier in one of the formats above, recognized by its content.

    Args:
        path: File with the weights.
        mean: Path of mean2.npz, for weights of C3D that come without their mean.

    Returns:
        The classifier on the CPU, in evaluation mode.

    Raises:
        InputError: The file is missing, unreadable or damaged; its weights do not fit, or are of other classes than
            UCF-101's; or the mean is missing, superfluous or of another shape.
    """
    members = _members(path)
    of_numpy = any(name.endswith(".npy") for name in members)
    of_script = any(name.endswith("constants.pkl") for name in members)
    if not (of_numpy or of_script):
        if mean is not None:
            raise InputError(f"{path} needs no mean: leave out {mean}")
        return _from_content(_load(path), path)
    state = _from_chainer(path) if of_numpy else _from_torchscript(path)
    _check_classes(state, path)
    with torch.device("meta"):
        network = C3D(UCF101_CLASSES)
    _load_weights(network, state, path)
    if mean is None:
        raise InputError(f"{path} has no mean: give mean2.npz as well")
    numbers = tuple(str(number) for number in range(UCF101_CLASSES))
    return Classifier("c3d", network.eval(), numbers, 3, read_mean(mean))


def read_mean(path: Path) -> torch.Tensor:
    """Return the array `mean` of an .npz file: float32 [3, 16, 128, 171].

    Raises:
        InputError: The file or the array is missing, unreadable or of another shape.
    """
    arrays = _read_npz(path)
    if "mean" not in arrays:
        raise InputError(f"{path} has no array 'mean', but {', '.join(sorted(arrays)[:3])}: give mean2.npz")
    if arrays["mean"].dtype.kind not in "fiu":
        raise InputError(f"the mean in {path} is {arrays['mean'].dtype}, not an array of numbers: give mean2.npz")
    mean = torch.from_numpy(arrays["mean"].astype(np.float32))
    if mean.shape == (3, 1, *mean.shape[-3:]):
        mean = mean[:, 0]
    _check_mean(mean, path)
    return mean


def _members(path):
    if not path.exists():
        remedy = "check the path, or train one with python -m tgan_fast train-classifier"
        raise InputError(f"there is no classifier {path}: {remedy}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if not content.startswith(b"PK"):
        return []
    if not is_whole_zip(content):
        raise InputError(f"{path} is damaged: get the file anew")
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def _load(path):
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damage leads to errors of many types
        content = None
    if isinstance(content, dict) and "fc8.bias" in content:
        _check_classes(content, path)
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{path} is not a classifier, or is damaged: {_REMEDY}")
    return content


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"there is no {path}") from None
    except Exception:  # damage leads to errors of many types
        raise InputError(f"{path} is not a file of NumPy arrays, or is damaged") from None


def _from_chainer(path):
    names = {"W": "weight", "b": "bias"}
    state = {}
    for key, array in _read_npz(path).items():
        layer, _, kind = key.strip("/").partition("/")
        if kind not in names or array.dtype.kind != "f":
            raise InputError(f"the weights in {path} are not C3D's: it has {key}, {array.dtype} {list(array.shape)}")
        state[f"{layer}.{names[kind]}"] = torch.from_numpy(array.astype(np.float32))
    return state


def _from_torchscript(path):
    """Find C3D's weights by their order and shapes, since the names depend on the author of the script."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            script = torch.jit.load(io.BytesIO(path.read_bytes()), map_location="cpu")
        except Exception:  # damage leads to errors of many types
            raise InputError(f"{path} is not TorchScript, or is damaged: {_REMEDY}") from None
    # Tensors with fewer than 64 channels belong to preprocessing before the first convolution.
    tensors = [tensor.detach().float() for tensor in script.state_dict().values() if len(tensor.shape) in (1, 2, 5)]
    weights = [tensor for tensor in tensors if tensor.dim() > 1 and len(tensor) >= 64]
    biases = [tensor for tensor in tensors if tensor.dim() == 1 and len(tensor) >= 64]
    with torch.device("meta"):
        layers = [name for name, _ in C3D(UCF101_CLASSES).named_children() if name != "dropout"]
    if (len(weights), len(biases)) != (len(layers), len(layers)):
        raise InputError(
            f"{path} holds {len(weights)} weights and {len(biases)} biases that can be C3D's, which has "
            f"{len(layers)} of each: {_REMEDY}"
        )
    state = {f"{layer}.weight": weight for layer, weight in zip(layers, weights, strict=True)}
    return state | {f"{layer}.bias": bias for layer, bias in zip(layers, biases, strict=True)}


def _check_classes(state, path):
    classes = len(state.get("fc8.bias", ()))
    if classes not in (0, UCF101_CLASSES):
        remedy = "conv3d_deepnetA_ucf.npz is needed"
        if classes == 487:
            raise InputError(f"{path} has the 487 classes of Sports-1M, but scores need those of UCF-101: {remedy}")
        raise InputError(f"{path} has {classes} classes, but UCF-101 has {UCF101_CLASSES}: {remedy}")


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier in the package's own format, which `torch.load(weights_only=True)` reads.

    Raises:
        OSError: The file cannot be written; an older file at this path stays as it was.
    """
    content = io.BytesIO()
    values = {
        "format": CLASSIFIER_FORMAT,
        "architecture": classifier.architecture,
        "classes": list(classifier.classes),
        "channels": classifier.channels,
        "mean": classifier.mean,
        "accuracy": classifier.accuracy,
        "network": classifier.network.state_dict(),
    }
    torch.save(values, content)
    write_atomically(path, content)


def _from_content(content: Mapping[str, Any], path: Path) -> Classifier:
    """Return the classifier in a file of the package's own format.

    Args:
        content: Content of the file, as `torch.load(path, weights_only=True)` reads it.
        path: File name, for errors.

    Raises:
        InputError: The file is of a newer version or damaged, or its weights do not fit its architecture.
    """
    # A list, because a damaged value may not be hashable.
    if content.get("format") != CLASSIFIER_FORMAT or content.get("architecture") not in list(ARCHITECTURES):
        raise InputError(f"{path} is not a classifier that this tgan_fast knows: install a newer one")
    for name, is_right in _IS_VALID.items():
        if name not in content or not is_right(content[name]):
            raise InputError(f"{path} is damaged: its {name} is missing or invalid; get the file anew")
    architecture, classes, channels = content["architecture"], tuple(content["classes"]), content["channels"]
    with torch.device("meta"):
        network = build_network(architecture, len(classes), channels)
    _load_weights(network, content["network"], path)
    mean = content["mean"]
    if architecture == "c3d":
        _check_mean(mean, path)
    return Classifier(architecture, network.eval(), classes, channels, mean, content["accuracy"])


def _load_weights(network: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Make the tensors of `state` the network's own, or raise an InputError about the first that does not fit."""
    expected = network.state_dict()
    for name in expected:
        if name not in state:
            raise InputError(f"the weights in {path} are not those of this network: {name} is missing")
    for name, tensor in state.items():
        if name not in expected:
            raise InputError(f"the weights in {path} are not those of this network: it has no {name}")
        if not _is_dense(tensor) or tensor.dtype != expected[name].dtype:
            raise InputError(f"{name} in {path} is not an array of {expected[name].dtype}: get the file anew")
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"the weights in {path} are not those of this network: {name} is {list(tensor.shape)}, "
                f"and should be {list(expected[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{name} in {path} is not finite: get the file anew")
    network.load_state_dict(state, assign=True)


def _is_dense(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _is_number(value, least, most):
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


# Checks of values that `_load_weights` and `_check_mean` do not check.
_IS_VALID: dict[str, Callable[[Any], bool]] = {
    "classes": lambda value: isinstance(value, list) and value and all(isinstance(name, str) for name in value),
    "channels": lambda value: isinstance(value, int) and _is_number(value, 1, _MOST_CHANNELS),
    "mean": lambda value: value is None or (_is_dense(value) and value.dtype == torch.float32),
    "accuracy": lambda value: value is None or _is_number(value, 0, 1),
    "network": lambda value: isinstance(value, dict),
}


def _check_mean(mean: torch.Tensor | None, path: Path) -> None:
    """Raise an InputError unless `mean` is finite and of the shape that C3D needs."""
    if mean is None or tuple(mean.shape) != MEAN_SHAPE:
        shape = "missing" if mean is None else list(mean.shape)
        raise InputError(f"the mean in {path} is {shape}, but C3D needs {list(MEAN_SHAPE)}: give mean2.npz")
    if not mean.isfinite().all():
        raise InputError(f"the mean in {path} is not finite: get the file anew")
