"""What one training iteration has to compute and to move, group by group: the floor below its time.

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

from benchmarks.ceilings import Work
from tgan_fast import reference

FORWARD, BACKWARD = "forward", "backward"
INPUT_GRADIENT, WEIGHT_GRADIENT = "input gradient", "weight gradient"
COPIES = "copies"
VECTORS = "temporal generator and linears"
BATCH_NORM = "batch norm + activation"
ELEMENTWISE = "other element-wise work"
LAYOUT = "layout transposes, other copies"
OPTIMIZERS = "optimisers"
CLIPPING = "singular value clipping"
COMMUNICATION = "communication"

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
CLIP_INTERVAL = 5
LATENT_DIM = 100

_IMAGE_LAYERS = {
    GENERATOR: {f"model.{index}": f"deconvolution {number}" for number, index in enumerate((0, 3, 6, 9, 12), 1)},
    DISCRIMINATOR: {f"model3d.{index}": f"Conv3d {number}" for number, index in enumerate((0, 2, 5, 8), 1)}
    | {"conv2d": "last convolution"},
}
# They see videos or latents, and of the discriminator's two passes back only the second asks for their gradients.
_FIRST = ("temp.model.0", "slow.0", "model3d.0")
_MEASURED = 2  # videos from which the sizes are taken


def group_of(network: str, name: str, module: nn.Module) -> str | None:
    """The group of a module of the generator or of the discriminator, by the name that its weights have."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return BATCH_NORM
    if name.startswith(("temp", "fast", "slow")):
        return VECTORS
    return _IMAGE_LAYERS[network].get(name)


def row(group: str, part: str) -> str:
    """The name of a part of a group."""
    return f"{group}, {part}"


class Layer(NamedTuple):
    """A convolution, linear layer or batch norm, its sizes per video."""

    name: str
    group: str
    flops: float  # of a pass; each gradient takes as many
    inputs: float
    outputs: float
    weights: int

    def work(self, videos: int, itemsize: int) -> Work:
        """Of a pass or a gradient: of inputs, outputs and weights two are read and the third is written."""
        return Work(self.flops * videos, itemsize * (videos * (self.inputs + self.outputs) + self.weights))

    def needed(self) -> "Layer":
        """Without what can be left out: the notebook convolves the content latent sixteen times instead of once, and
        half of the fourth Conv3d's kernel meets nothing but padding.
        """
        if self.group == "deconvolution 1":
            share = (1 + 1 / reference.FRAMES) / 2
            return self._replace(flops=self.flops * share, inputs=self.inputs * share)
        return self._replace(flops=self.flops / 2) if self.group == "Conv3d 4" else self


def layers(network: str, width: float, channels: int = 3) -> list[Layer]:
    """Those of the reference, with all that it computes, in the order of the forward pass."""
    with torch.device("meta"):
        if network == GENERATOR:
            module, inputs = reference.Generator(width, LATENT_DIM, channels), torch.empty(_MEASURED, LATENT_DIM)
        else:
            module = reference.Discriminator(width, channels)
            inputs = torch.empty(_MEASURED, channels, reference.FRAMES, 64, 64)
    found = []
    for name, child in module.named_modules():
        group = group_of(network, name, child)
        if group is not None and getattr(child, "weight", None) is not None:
            child.register_forward_hook(
                lambda child, inputs, output, name=name, group=group: found.append(
                    _measure(name, group, child, *inputs, output)
                )
            )
    module(inputs)
    return found


def _measure(name, group, module, x, y):
    weights = module.weight.numel()
    transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    # How often every weight is used: at each position of the tensor that it meets as a whole.
    tensor, channels = (x, module.weight.shape[0]) if transposed else (y, module.weight.shape[0])
    flops = 0 if group == BATCH_NORM else 2 * weights * tensor.numel() / channels / _MEASURED
    return Layer(name, group, flops, x.numel() / _MEASURED, y.numel() / _MEASURED, weights)


def parameter_counts(width: float, channels: int = 3) -> dict[str, int]:
    """Of both networks."""
    with torch.device("meta"):
        networks = {
            GENERATOR: reference.Generator(width, LATENT_DIM, channels),
            DISCRIMINATOR: reference.Discriminator(width, channels),
        }
    return {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks.items()}


def iteration(batch_size: int, itemsize: int, width: float = 1.0, channels: int = 3) -> dict[str, list[Work]]:
    """The operations of every row of an iteration, clipping in every fifth.

    Args:
        batch_size: N.
        itemsize: bytes of an activation, and of a weight that computes; 2 in bfloat16.
    """
    n, rows = batch_size, defaultdict(list)
    found = {network: [layer.needed() for layer in layers(network, width, channels)] for network in _IMAGE_LAYERS}
    for network in found.values():
        network.sort(key=lambda layer: layer.group == BATCH_NORM)
    for layer in found[GENERATOR]:
        _add(rows, layer, itemsize, [n, n], [n], [] if layer.name in _FIRST else [n])
    for layer in found[DISCRIMINATOR]:
        _add(rows, layer, itemsize, [2 * n, n], [2 * n], [n] if layer.name in _FIRST else [2 * n, n])

    def moves(values):
        return Work(0, itemsize * values * n)

    videos = channels * reference.FRAMES * 64 * 64
    activated = found[DISCRIMINATOR][0].outputs
    rows[ELEMENTWISE] += [moves(2 * videos)] * 2  # tanh
    rows[ELEMENTWISE] += [moves(3 * videos)]  # its gradient
    rows[ELEMENTWISE] += [moves(2 * videos)]  # real videos beside the fake ones
    rows[ELEMENTWISE] += [moves(3 * 2 * activated), moves(3 * 3 * activated)]  # the first leaky ReLU, and its gradient
    rows[LAYOUT] += []
    copied = itemsize if itemsize < 4 else 0
    for count in parameter_counts(width, channels).values():
        # Weight and average read and written, the gradient read, and the weights that compute written.
        rows[OPTIMIZERS].append(Work(0, count * (4 * 4 + itemsize + copied)))
    clipped = sum(layer.weights for layer in found[DISCRIMINATOR] if layer.group != BATCH_NORM)
    rows[CLIPPING].append(Work(0, clipped * (2 * 4 + copied) / CLIP_INTERVAL))
    rows[COMMUNICATION] += []
    return dict(rows)


def _add(rows, layer, itemsize, passes, weight_gradients, input_gradients):
    """`passes` and the others list the videos of each."""
    if layer.group == BATCH_NORM:
        both = {FORWARD: (passes, 3), BACKWARD: (sorted({*weight_gradients, *input_gradients}), 5)}
        for part, (counts, times) in both.items():
            # Forward reads x twice and writes y; backward reads x and dy twice and writes dx.
            rows[row(BATCH_NORM, part)] += [Work(0, itemsize * times * layer.outputs * count) for count in counts]
        return
    parts = {FORWARD: passes, INPUT_GRADIENT: input_gradients, WEIGHT_GRADIENT: weight_gradients}
    for part, counts in parts.items():
        if layer.group == VECTORS and part != FORWARD:
            part = BACKWARD  # products in which nothing tells which of the two they are
        rows[row(layer.group, part)] += [layer.work(count, itemsize) for count in counts]
    rows[row(layer.group, COPIES)] += []
