"""Lower bounds of the time of a training iteration, from the FLOPs and bytes of each group of operations.

Operations are those of the mathematics, counting multiplications and additions, for any algorithm that computes a
convolution. Bytes are each operation's tensors read and written once; batch norm and activation are one operation. The
iteration is that of `TrainingStep`: N videos pass through the generator twice, and back once; 2·N and then N pass
through the discriminator, and both back, the second time without the gradients of its weights.
"""

from collections import defaultdict
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.ceilings import Work
from benchmarks.contenders import CLIP_INTERVAL, LATENT_DIM
from tgan_fast import reference

DECONVOLUTIONS, CONVOLUTIONS = "deconvolutions", "Conv3d, last convolution"
VECTORS = "temporal generator and linears"
BATCH_NORM = "batch norm + activation"
OTHERS = "everything else"
COPIES = "copies"
OPTIMIZERS = "optimizers"
CLIPPING = "singular value clipping"
_FIRST = ("temp.model.0", "slow.0", "model3d.0")  # layers that see latents or videos
_ON_IMAGES = dict.fromkeys((f"model.{index}" for index in (0, 3, 6, 9, 12)), DECONVOLUTIONS)
_ON_IMAGES |= dict.fromkeys(("model3d.0", "model3d.2", "model3d.5", "model3d.8", "conv2d"), CONVOLUTIONS)


def group_of(name: str, module: nn.Module) -> str | None:
    """Return the group of a module of the generator or discriminator, by its name in the state dict."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return BATCH_NORM
    return VECTORS if name.startswith(("temp", "fast", "slow")) else _ON_IMAGES.get(name)


class LayerCost(NamedTuple):
    """Cost of a convolution, linear layer or batch norm per video."""

    name: str
    group: str
    flops: float  # of a pass; each gradient takes as many
    inputs: float
    outputs: float
    weights: int

    def work(self, videos: int, itemsize: int) -> Work:
        """Return the work of a pass or a gradient: of inputs, outputs and weights, two are read and one is written."""
        return Work(self.flops * videos, itemsize * (videos * (self.inputs + self.outputs) + self.weights))


def layers(network: nn.Module, *shape: int) -> list[LayerCost]:
    """Return the layers of one of the reference's networks, without what can be left out, for inputs of a shape.

    The notebook convolves the content latent sixteen times instead of once, and half of the fourth Conv3d's kernel
    meets nothing but padding.
    """
    found = []

    def see(name, module, inputs, output):
        (x,), weights = inputs, module.weight.numel()
        # Each weight is used once at every position of a transposed convolution's input, of any other layer's output.
        positions = x if isinstance(module, nn.modules.conv._ConvTransposeNd) else output
        share = (1 + 1 / reference.FRAMES) / 2 if name == "model.0" else 1
        flops = 2 * weights * positions.numel() / positions.shape[1] * (0.5 if name == "model3d.8" else share)
        found.append(LayerCost(name, group_of(name, module), flops, x.numel() * share, output.numel(), weights))

    for name, child in network.named_modules():
        if getattr(child, "weight", None) is not None:
            child.register_forward_hook(partial(see, name))
    network(torch.empty(1, *shape, device="meta"))
    return found


def iteration(batch_size: int, itemsize: int, width: float = 1.0) -> dict[str, list[Work]]:
    """Return the operations of every group of an iteration, clipping in every fifth.

    Args:
        batch_size: N.
        itemsize: Bytes of an activation, and of a weight that computes; 2 in bfloat16.
        width: Multiplier of the channel counts.
    """
    with torch.device("meta"):
        networks = reference.Generator(width, LATENT_DIM).eval(), reference.Discriminator(width).eval()
    generator, discriminator = layers(networks[0], LATENT_DIM), layers(networks[1], 3, reference.FRAMES, 64, 64)
    n, works = batch_size, defaultdict(list)
    # Numbers of videos: in forward passes, in backward passes, and in their gradients of weights and of inputs.
    passes = (generator, [n, n], [n], [n, n]), (discriminator, [2 * n, n], [2 * n, n], [2 * n, 2 * n, n])
    for network, forward, backward, gradients in passes:
        for layer in network:
            if layer.group == BATCH_NORM:
                # Forward reads x twice and writes y; backward reads x and dy twice and writes dx.
                values = layer.outputs * (3 * sum(forward) + 5 * sum(backward))
                works[BATCH_NORM].append(Work(0, itemsize * values))
            else:
                # The first layer of each network needs no gradient of its inputs in one of the passes.
                videos = forward + gradients[layer.name in _FIRST :]
                works[layer.group] += [layer.work(each, itemsize) for each in videos]
    # Tanh twice, its gradient, and real videos beside the fake ones; the first leaky ReLU, and its gradient.
    values = (2 + 2 + 3 + 2) * discriminator[0].inputs + 3 * (2 + 3) * discriminator[0].outputs
    works[OTHERS].append(Work(0, itemsize * values * n))
    works[COPIES] = []
    count = sum(parameter.numel() for network in networks for parameter in network.parameters())
    copied = itemsize if itemsize < 4 else 0
    # Weight and average read and written, the gradient read, and the weights that compute written.
    works[OPTIMIZERS].append(Work(0, count * (4 * 4 + itemsize + copied)))
    clipped = sum(layer.weights for layer in discriminator if layer.group != BATCH_NORM)
    works[CLIPPING].append(Work(0, clipped * (2 * 4 + copied) / CLIP_INTERVAL))
    return dict(works)
