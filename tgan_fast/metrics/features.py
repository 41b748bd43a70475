"""Feature extractors: networks that compute class probabilities and features of generated videos and real clips."""

import copy
import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from tgan_fast.errors import InputError
from tgan_fast.metrics.classifier import Classifier
from tgan_fast.metrics.protocols import Protocol
from tgan_fast.metrics.score_kinds import Metric
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.pixels import to_clips
from tgan_fast.precision import Precision, arithmetic, compute_dtype
from tgan_fast.processes import Processes

_FRAMES_AT_ONCE = 64


class Features(NamedTuple):
    """Features of n videos.

    Attributes:
        probabilities: Class probabilities, float32 [n, classes]; None for a network without classes.
        features: Features, float32 [n, d]; those of frames, [n·T, d], have a row for each frame of a video.
    """

    probabilities: torch.Tensor | None
    features: torch.Tensor

    def of_videos(self, videos: torch.Tensor, count: int) -> "Features":
        """Return the features of some of `count` videos, by their indices [n]."""
        rows = self.features.unflatten(0, (count, -1))[videos].flatten(0, 1)
        return Features(None if self.probabilities is None else self.probabilities[videos], rows)

    def movable(self, processes: Processes) -> "Features":
        """Return features that can be sent to other processes: on the CPU, if there are others."""
        if processes.size == 1:
            return self
        return Features(*(None if tensor is None else tensor.cpu() for tensor in self))

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


class ScriptFeatures(ABC):
    """Features from a network in TorchScript, computed in float32. The file's own code is run as TorchScript.

    Args:
        path: Path of the file.
        device: Device that computes.

    Raises:
        InputError: The file is missing or damaged, or does not turn clips into features.
    """

    metric: ClassVar[Metric]
    file: ClassVar[str]
    result: ClassVar[str]

    def __init__(self, path: Path, device: torch.device):
        self._path, self._device = path, device
        if not path.exists():
            raise InputError(f"there is no {path}: {self.file} is needed for {self.metric}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._script = torch.jit.load(str(path), map_location=device).eval()
            except (RuntimeError, OSError):
                raise InputError(f"{path} is not TorchScript, or is damaged: {self.file} is needed") from None

    @property
    def identity(self) -> dict[str, str]:
        """Everything that the features of a video depend on."""
        return {"network": hashlib.sha256(self._path.read_bytes()).hexdigest(), "protocol": self.metric}

    def of_generated(self, videos: torch.Tensor) -> Features:
        """Return the features of videos [n, C, T, H, W] in [-1, 1] on the device, rounded to levels as in files."""
        return self.of_real(to_clips(videos))

    @torch.no_grad()
    def of_real(self, clips: torch.Tensor) -> Features:
        """Return the features of clips uint8 [n, T, H, W, C] on any device; C is 1 or 3."""
        levels = clips.to(self._device).permute(0, 4, 1, 2, 3).expand(-1, 3, -1, -1, -1)
        inputs = self._inputs(levels)
        try:
            with arithmetic("fp32"):
                outputs = [self._call(part) for part in inputs]
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"{self._path} does not take videos as {self.file} does: {reason}") from None
        for given, found in zip(inputs, outputs, strict=True):
            if not isinstance(found, torch.Tensor) or found.dim() != 2 or len(found) != len(given):
                raise InputError(f"{self._path} does not return features {self.result} as {self.file} does")
        return Features(None, torch.cat(outputs).float())

    @abstractmethod
    def _inputs(self, levels: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the inputs of the network, in parts, from levels uint8 [n, 3, T, H, W]."""

    @abstractmethod
    def _call(self, part: torch.Tensor) -> torch.Tensor:
        """Return the features of a part of the inputs."""


class I3DFeatures(ScriptFeatures):
    """Features for the Fréchet video distance: the 400 logits of I3D, from clips of 16 frames of 64×64 pixels.

    Source: Unterthiner et al., arXiv:1812.01717; the script of github.com/universome/fvd-comparison.
    """

    metric = "fvd"
    file = "i3d_torchscript.pt"
    result = "[videos, 400]"

    def _inputs(self, levels):
        return [levels.float()]

    def _call(self, part):
        return self._script(part, rescale=True, resize=True, return_features=True)


class InceptionFeatures(ScriptFeatures):
    """Features for the Fréchet distance of frames: 2,048 of Inception-v3's last pooling for each frame of any size.

    Source: Skorokhodov et al., arXiv:2112.14683; the script of github.com/NVlabs/stylegan2-ada-pytorch.
    """

    metric = "frame-fid"
    file = "inception-2015-12-05.pt"
    result = "[frames, 2,048]"

    def _inputs(self, levels):
        # All frames of a batch at once would take gigabytes, since the network enlarges them to 299×299 pixels.
        return levels.transpose(1, 2).flatten(0, 1).split(_FRAMES_AT_ONCE)

    def _call(self, part):
        return self._script(part, return_features=True)
