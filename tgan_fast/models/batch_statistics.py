"""Running statistics of a generator's batch norms, estimated from its own videos."""

import torch

from tgan_fast.models.generator import Generator
from tgan_fast.models.sampling import draw_inputs
from tgan_fast.nn import BATCH_NORMS

# Small batches, so that they fit wherever training does.
_BATCHES, _BATCH_SIZE = 16, 16


@torch.no_grad()
def estimate_statistics_(generator: Generator) -> None:
    """Replace the running statistics of a generator by the mean statistics of batches of its videos, in place.

    The videos are always of the same latents. The generator needs this after its weights were averaged: statistics of
    other weights do not fit, however near the weights are (Wu and Johnson, arXiv:2105.07576, section 3).

    Args:
        generator: Generator on any device; the modes of its modules stay as they are.
    """
    norms = [module for module in generator.modules() if isinstance(module, BATCH_NORMS)]
    momentum = [norm.momentum for norm in norms]
    training = [(module, module.training) for module in generator.modules()]
    weight = next(generator.parameters())
    try:
        for norm in norms:
            norm.reset_running_stats()
            # The mean of all batches with equal weights.
            norm.momentum = None
        generator.train()
        for seed in range(_BATCHES):
            generator.frames(draw_inputs(generator, _BATCH_SIZE, seed).to(weight))
    finally:
        for module, mode in training:
            module.training = mode
        for norm, value in zip(norms, momentum, strict=True):
            norm.momentum = value
