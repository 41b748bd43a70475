"""Feature extractors: networks that compute class probabilities and features of generated videos and real clips."""

import copy
import hashlib
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from tgan_fast.errors import InputError
from tgan_fast.metrics.classifier import Classifier
from tgan_fast.metrics.protocols import Protocol
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.pixels import to_clips
from tgan_fast.precision import Precision, arithmetic, compute_dtype


class Features(NamedTuple):
    """Features of n videos.

    Attributes:
        probabilities: Class probabilities, float32 [n, classes]; None for a network without classes.
        features: Features, float32 [n, d].
    """

    probabilities: torch.Tensor | None
    features: torch.Tensor

    def difference(self, exact: "Features") -> str:
        """Return a sentence on the difference from the features computed in float32."""
        probabilities = (self.probabilities - exact.probabilities).abs().max()
        features = (self.features - exact.features).norm() / exact.features.norm()
        return f"probabilities differ by {probabilities:.2g} at most, features by {100 * features:.2g} %"


class ClassifierFeatures:
    """Features from a classifier under a protocol.

    Args:
        classifier: Classifier, which is copied.
        protocol: Protocol that prepares the input and names the layer of the features.
        device: Device that computes.
        precision: Precision of convolutions and matrix products; videos are always prepared in float32.

    Raises:
        InputError: The protocol is for another architecture, or names a layer that the network does not have.
    """

    def __init__(self, classifier: Classifier, protocol: Protocol, device: torch.device, precision: Precision):
        if classifier.architecture != protocol.architecture:
            raise InputError(
                f"the protocol {protocol.name} is for classifiers of the architecture {protocol.architecture}, "
                f"not {classifier.architecture}: leave out --protocol to choose the right one"
            )
        if protocol.layer not in classifier.network.taps:
            known = ", ".join(classifier.network.taps)
            raise InputError(f"there is no layer {protocol.layer!r} to take features from: choose {known}")
        self._classifier, self._protocol, self._precision = classifier, protocol, precision
        self._mean = None if classifier.mean is None else classifier.mean.to(device)
        self._device, self._dtype = device, compute_dtype(precision, torch.float32)
        network = copy.deepcopy(classifier.network).to(device, self._dtype).eval().requires_grad_(False)
        self._network = to_channels_last_(network)

    @property
    def identity(self) -> dict[str, str]:
        """Everything that the features of a video depend on."""
        return {
            "network": self._classifier.fingerprint,
            "protocol": self._protocol.name,
            "layer": self._protocol.layer,
            "precision": self._precision,
        }

    def of_generated(self, videos: torch.Tensor) -> Features:
        """Return the features of videos [n, C, T, H, W] in [-1, 1] on the device; C is 1 or the classifier's."""
        return self._compute(videos)

    def of_real(self, clips: torch.Tensor) -> Features:
        """Return the features of clips uint8 [n, T, H, W, C] on any device; C is 1 or the classifier's."""
        return self._compute(self._protocol.scaled(clips.to(self._device)))

    @torch.no_grad()
    def _compute(self, videos):
        channels = self._classifier.channels
        if videos.shape[1] not in (1, channels):
            raise InputError(
                f"the videos have {videos.shape[1]} channels, but the classifier takes {channels}: "
                "train one on the same data"
            )
        colored = videos.expand(-1, channels, -1, -1, -1)
        with arithmetic("fp32"):
            prepared = self._protocol.prepare(colored, self._mean)
        prepared = prepared.to(self._dtype, memory_format=torch.channels_last_3d)
        layer = self._protocol.layer
        with arithmetic(self._precision):
            activations = self._network(prepared, [layer])
        return Features(activations["logits"].float().softmax(1), activations[layer].float())


class I3DFeatures:
    """Features for the Fréchet video distance: the 400 logits of I3D in TorchScript, `i3d_torchscript.pt`.

    The file's own code is run as TorchScript.

    Args:
        path: Path of the file.
        device: Device that computes, in float32.

    Raises:
        InputError: The file is missing or damaged, or does not turn videos into features.

    Source: Unterthiner et al., arXiv:1812.01717; the script of github.com/universome/fvd-comparison.
    """

    def __init__(self, path: Path, device: torch.device):
        self._path, self._device = path, device
        if not path.exists():
            raise InputError(f"there is no {path}: i3d_torchscript.pt is needed for fvd")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._script = torch.jit.load(str(path), map_location=device).eval()
            except (RuntimeError, OSError):
                raise InputError(f"{path} is not TorchScript, or is damaged: i3d_torchscript.pt is needed") from None

    @property
    def identity(self) -> dict[str, str]:
        """Everything that the features of a video depend on."""
        return {"network": hashlib.sha256(self._path.read_bytes()).hexdigest(), "protocol": "fvd"}

    def of_generated(self, videos: torch.Tensor) -> Features:
        """Return the features of videos [n, C, 16, 64, 64] in [-1, 1] on the device, rounded to levels as in files."""
        return self.of_real(to_clips(videos))

    @torch.no_grad()
    def of_real(self, clips: torch.Tensor) -> Features:
        """Return the features of clips uint8 [n, 16, 64, 64, C] on any device; C is 1 or 3."""
        videos = clips.to(self._device).permute(0, 4, 1, 2, 3).expand(-1, 3, -1, -1, -1).float()
        try:
            with arithmetic("fp32"):
                features = self._script(videos, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"{self._path} does not take videos as i3d_torchscript.pt does: {reason}") from None
        if not isinstance(features, torch.Tensor) or features.dim() != 2 or len(features) != len(clips):
            raise InputError(f"{self._path} does not return features [videos, 400] as i3d_torchscript.pt does")
        return Features(None, features.float())
