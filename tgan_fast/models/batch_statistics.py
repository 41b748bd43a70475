"""Running statistics of a generator's batch norms, estimated from its own videos."""

import math
from functools import partial

import torch

from tgan_fast.models.generator import Generator
from tgan_fast.models.sampling import draw_inputs
from tgan_fast.nn import BATCH_NORMS

# Fewest videos whose statistics are averaged.
_VIDEOS = 256


@torch.no_grad()
def estimate_statistics_(generator: Generator, batch_size: int) -> None:
    """Replace a generator's running statistics so that evaluation scales as training does on average, in place.

    Training divides by the standard deviation of a batch. On average, its inverse is larger than the inverse over all
    videos, especially for small batches. The running variance is set so that its inverse square root, the scale, is the
    mean of the batches' scales, and the running mean so that the shift is the mean of their shifts.

    The latents are always the same. The generator needs this after its weights were averaged: statistics of other
    weights do not fit, even if the weights are similar (Wu and Johnson, arXiv:2105.07576, section 3).

    Args:
        generator: Generator on any device; the modes of its modules do not change.
        batch_size: Number of videos in a batch of training, at least 2.
    """
    weight = next(generator.parameters())
    norms = [module for module in generator.modules() if isinstance(module, BATCH_NORMS)]
    modes = [(module, module.training) for module in generator.modules()]
    batches = math.ceil(_VIDEOS / batch_size)
    sums = [torch.zeros_like(norm.running_var).repeat(2, 1) for norm in norms]

    def add(scale_and_shift, norm, inputs):
        x = inputs[0].to(norm.running_var.dtype)
        variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        scale = (variance + norm.eps).rsqrt()
        scale_and_shift += torch.stack([scale, scale * mean])

    hooks = [norm.register_forward_pre_hook(partial(add, total)) for norm, total in zip(norms, sums, strict=True)]
    try:
        generator.train()
        for seed in range(batches):
            generator.frames(draw_inputs(generator, batch_size, seed).to(weight))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    for norm, (scale, shift) in zip(norms, sums, strict=True):
        # Rounding may make a variance of 0 negative.
        norm.running_var.copy_((scale / batches) ** -2 - norm.eps).clamp_min_(0)
        norm.running_mean.copy_(shift / scale)
        norm.num_batches_tracked.fill_(batches)
