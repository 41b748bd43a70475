"""What one training iteration has to compute and to move, part by part: the floor below its time.

Operations are those of the mathematics, multiplications and additions each counted, whatever form a convolution is
computed in. Bytes are each operation's tensors read and written once: nothing stays on the chip from one operation to
the next, but batch norm and activation are one operation. The iteration is the one that `TrainingStep` describes: N
videos pass through the generator twice, and back once; 2·N and then N pass through the discriminator, and both back,
the second time without the gradients of its weights.
"""

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ceilings import Work
from tgan_fast import reference

FORWARD, BACKWARD = "forward", "backward"
VECTORS = "temporal generator and linears"
BATCH_NORM = "batch norm + activation"
ELEMENTWISE = "other element-wise work"
COPIES = "copies"
OPTIMIZERS = "optimizers"
CLIPPING = "singular value clipping"

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
CLIP_INTERVAL = 5
LATENT_DIM = 100

_IMAGE_LAYERS = {
    GENERATOR: {f"model.{index}": f"deconvolution {number}" for number, index in enumerate((0, 3, 6, 9, 12), 1)},
    DISCRIMINATOR: {f"model3d.{index}": f"Conv3d {number}" for number, index in enumerate((0, 2, 5, 8), 1)}
    | {"conv2d": "last convolution"},
}
# Layers that see videos or latents. Only the generator's step asks for the gradients of videos.
_FIRST = ("temp.model.0", "slow.0", "model3d.0")
_MEASURED = 2  # videos from which sizes are taken


def group_of(network: str, name: str, module: nn.Module) -> str | None:
    """Return the group of a module of the generator or discriminator, by the name that its weights have."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return BATCH_NORM
    if name.startswith(("temp", "fast", "slow")):
        return VECTORS
    return _IMAGE_LAYERS[network].get(name)


def row(group: str, direction: str) -> str:
    """Return the name of a group's forward or backward part."""
    return f"{group}, {direction}"


class Layer(NamedTuple):
    """A convolution, linear layer or batch norm, its sizes per video."""

    name: str
    group: str
    flops: float  # of a pass; each gradient takes as many
    inputs: float
    outputs: float
    weights: int

    def work(self, videos: int, itemsize: int) -> Work:
        """Return the work of a pass or a gradient: of inputs, outputs and weights, two are read and one is written."""
        return Work(self.flops * videos, itemsize * (videos * (self.inputs + self.outputs) + self.weights))

    def needed(self) -> "Layer":
        """Return the layer without what can be left out.

        The notebook convolves the content latent sixteen times instead of once, and half of the fourth Conv3d's kernel
        meets nothing but padding.
        """
        if self.group == "deconvolution 1":
            share = (1 + 1 / reference.FRAMES) / 2
            return self._replace(flops=self.flops * share, inputs=self.inputs * share)
        return self._replace(flops=self.flops / 2) if self.group == "Conv3d 4" else self


def build(network: str, width: float) -> nn.Module:
    """Return one of the reference's networks without memory for its weights."""
    with torch.device("meta"):
        return reference.Generator(width, LATENT_DIM) if network == GENERATOR else reference.Discriminator(width)


def layers(network: str, width: float) -> list[Layer]:
    """Return the layers of the reference, with all that it computes, in the order of the forward pass."""
    module, sizes = build(network, width), {}
    shape = (LATENT_DIM,) if network == GENERATOR else (3, reference.FRAMES, 64, 64)
    names = {child: name for name, child in module.named_modules() if getattr(child, "weight", None) is not None}
    for child in names:
        child.register_forward_hook(
            lambda child, inputs, output: sizes.update({child: (inputs[0].numel(), output.numel())})
        )
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(_MEASURED, *shape, device="meta"))
    counts, found = counter.get_flop_counts(), []
    for child, (inputs, outputs) in sizes.items():
        name = names[child]
        flops = sum(counts.get(f"{type(module).__name__}.{name}", {}).values())
        per_video = [size / _MEASURED for size in (flops, inputs, outputs)]
        found.append(Layer(name, group_of(network, name, child), *per_video, child.weight.numel()))
    return found


def iteration(batch_size: int, itemsize: int, width: float = 1.0) -> dict[str, list[Work]]:
    """Return the operations of every part of an iteration, clipping in every fifth.

    Args:
        batch_size: N.
        itemsize: Bytes of an activation, and of a weight that computes; 2 in bfloat16.
    """
    n, rows = batch_size, defaultdict(list)
    discriminator = [layer.needed() for layer in layers(DISCRIMINATOR, width)]
    for layer in layers(GENERATOR, width):
        _add(rows, layer.needed(), itemsize, [n, n], [n] if layer.name in _FIRST else [n, n])
    for layer in discriminator:
        _add(rows, layer, itemsize, [2 * n, n], [2 * n, n] if layer.name in _FIRST else [2 * n, 2 * n, n])

    def moves(values):
        return Work(0, itemsize * values * n)

    videos, activated = 3 * reference.FRAMES * 64 * 64, discriminator[0].outputs
    rows[ELEMENTWISE] += [moves(2 * videos), moves(2 * videos), moves(3 * videos)]  # tanh twice, and its gradient
    rows[ELEMENTWISE] += [moves(2 * videos)]  # real videos beside the fake ones
    rows[ELEMENTWISE] += [moves(3 * 2 * activated), moves(3 * 3 * activated)]  # the first leaky ReLU, and its gradient
    rows[COPIES] = []
    copied = itemsize if itemsize < 4 else 0
    for network in (GENERATOR, DISCRIMINATOR):
        count = sum(parameter.numel() for parameter in build(network, width).parameters())
        # Weight and average read and written, the gradient read, and the weights that compute written.
        rows[OPTIMIZERS].append(Work(0, count * (4 * 4 + itemsize + copied)))
    clipped = sum(layer.weights for layer in discriminator if layer.group != BATCH_NORM)
    rows[CLIPPING].append(Work(0, clipped * (2 * 4 + copied) / CLIP_INTERVAL))
    return dict(rows)


def _add(rows, layer, itemsize, forward, backward):
    """Add a layer's passes and gradients; the lists have the videos of each."""
    if layer.group == BATCH_NORM:
        # Forward reads x twice and writes y; backward reads x and dy twice and writes dx.
        rows[row(BATCH_NORM, FORWARD)] += [Work(0, itemsize * 3 * layer.outputs * videos) for videos in forward]
        rows[row(BATCH_NORM, BACKWARD)] += [Work(0, itemsize * 5 * layer.outputs * videos) for videos in set(backward)]
        return
    rows[row(layer.group, FORWARD)] += [layer.work(videos, itemsize) for videos in forward]
    rows[row(layer.group, BACKWARD)] += [layer.work(videos, itemsize) for videos in backward]
