"""A small classifier with random weights, a small generator, and scripts with the interfaces of I3D and Inception."""

import torch
from support.generators import as_if_trained_
from torch import nn

from tgan_fast.metrics.classifier import Classifier, build_network
from tgan_fast.metrics.features import ClassifierFeatures
from tgan_fast.metrics.protocols import PROTOCOLS
from tgan_fast.models import VideoGenerator

CPU = torch.device("cpu")


def random_classifier(channels=1, classes=5, seed=0):
    """Return a classifier with fitting running statistics and confident predictions."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network("small", classes, channels)
        for _ in range(20):
            network(torch.rand(4, channels, 16, 64, 64) * 2 - 1)
        network.linear.weight.data.mul_(20)
    return Classifier("small", network.eval().requires_grad_(False), tuple("abcdefghij"[:classes]), channels)


def seen_by(classifier, precision="fp32"):
    return ClassifierFeatures(classifier, PROTOCOLS["plain"], CPU, precision)


def small_generator(seed=0):
    """Return a generator in training mode whose videos differ, as if it had been trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = VideoGenerator(width=0.0625, latent_dim=6, channels=1)
        return as_if_trained_(generator, torch.rand(16, 6) * 2 - 1)


class Means(nn.Module):
    """Module with I3D's interface, whose features are the means of every channel and frame."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        return x.mean([3, 4]).flatten(1)


class FrameMeans(nn.Module):
    """Module with Inception's interface, whose features are the means of every channel and of the upper half."""

    def forward(self, img: torch.Tensor, return_features: bool) -> torch.Tensor:
        assert return_features
        assert img.dtype == torch.uint8
        levels = img.float()
        return torch.cat([levels.mean([2, 3]), levels[:, :, : img.shape[2] // 2].mean([2, 3])], 1)


def scripted(module, path):
    torch.jit.script(module).save(path)
    return path
