"""Files with classifiers: the package's own, and the forms in which people have C3D's weights.

conv3d_deepnetA_ucf.npz   of TGAN's authors: arrays with Chainer's names, conv1a/W, conv1a/b, …, fc8/b
c3d_ucf101.pt             the same as TorchScript; its weights are taken out, and its code is not run
mean2.npz                 `mean`, float [3, 16, 128, 171]: what both are used with
"""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from tgan_fast.errors import InputError
from tgan_fast.files import is_whole_zip
from tgan_fast.metrics.classifier import Classifier, check_mean, from_content, load_weights
from tgan_fast.metrics.classifier_networks import C3D

UCF101_CLASSES = 101

_REMEDY = "conv3d_deepnetA_ucf.npz, its TorchScript form, or a file of tgan_fast is needed"


def load_classifier(path: Path, mean: Path | None = None) -> Classifier:
    """Read a classifier, told apart by what the file holds, on the CPU and in evaluation mode.

    Args:
        path: one of those above, or what `save_classifier` wrote.
        mean: mean2.npz, which C3D's weights need where the file does not hold it.

    Raises:
        InputError: missing, unreadable, weights of another network or with other classes than UCF-101's, no mean or one
            of another shape, or one for a file that holds its own.
    """
    members = _members(path)
    of_numpy = any(name.endswith(".npy") for name in members)
    of_script = any(name.endswith("constants.pkl") for name in members)
    if not (of_numpy or of_script):
        if mean is not None:
            raise InputError(f"{path} holds all that it needs: leave out the mean {mean}")
        return from_content(_load(path), path)
    state = _from_chainer(path) if of_numpy else _from_torchscript(path)
    _check_classes(state, path)
    with torch.device("meta"):
        network = C3D(UCF101_CLASSES)
    load_weights(network, state, path)
    if mean is None:
        raise InputError(f"{path} has no mean: give mean2.npz as well")
    numbers = tuple(str(number) for number in range(UCF101_CLASSES))
    return Classifier("c3d", network.eval(), numbers, 3, read_mean(mean))


def read_mean(path: Path) -> torch.Tensor:
    """The array `mean` of an .npz file: float32 [3, 16, 128, 171].

    Raises:
        InputError: missing, unreadable, or of another shape.
    """
    arrays = _read_npz(path)
    if "mean" not in arrays:
        raise InputError(f"{path} has no array 'mean', but {', '.join(sorted(arrays)[:3])}: give mean2.npz")
    if arrays["mean"].dtype.kind not in "fiu":
        raise InputError(f"the mean in {path} is {arrays['mean'].dtype}, no array of numbers: give that of mean2.npz")
    mean = torch.from_numpy(arrays["mean"].astype(np.float32))
    if mean.shape == (3, 1, *mean.shape[-3:]):
        mean = mean[:, 0]
    check_mean(mean, path)
    return mean


def _members(path):
    if not path.exists():
        raise InputError(f"there is no classifier {path}")
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
    except Exception:  # whatever damage leads to
        content = None
    if isinstance(content, dict) and "fc8.bias" in content:
        _check_classes(content, path)
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{path} is no classifier, or is damaged: {_REMEDY}")
    return content


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"there is no {path}") from None
    except Exception:  # whatever damage leads to
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
    """C3D's weights are found by their order and shapes, since the names are those of whoever wrote the script."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            script = torch.jit.load(io.BytesIO(path.read_bytes()), map_location="cpu")
        except Exception:  # whatever damage leads to
            raise InputError(f"{path} is no TorchScript, or is damaged: {_REMEDY}") from None
    # Of what a script does before the first convolution, its parts have fewer than 64 channels.
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
            raise InputError(f"{path} tells the 487 classes of Sports-1M, but scores are those of UCF-101's: {remedy}")
        raise InputError(f"{path} tells {classes} classes, but UCF-101 has {UCF101_CLASSES}: {remedy}")
