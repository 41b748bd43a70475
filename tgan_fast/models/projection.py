"""Projection of a given video onto a generator: latents that reproduce it, found by gradient descent."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tgan_fast.models.folding import FoldedGenerator
from tgan_fast.models.generator import Generator
from tgan_fast.models.sampling import draw_latents

RESTARTS, STEPS, LEARNING_RATE = 20, 900, 0.1
# Restarts that continue after the first third of the steps.
_KEPT = 4
# Smaller steps than for the latent, because the frame latents begin near their goal.
_SLOWER_FOR_FRAMES = 0.1


@dataclass(frozen=True)
class Projection:
    """Latents that reproduce a video, and the two reproductions.

    Attributes:
        latent: Latent [latent_dim], within the bounds of the generator's distribution.
        label: Class of the reproductions; None for a generator without classes.
        frame_latents: Freed latents of the frames [T, latent_dim].
        content: Freed latent of the content [latent_dim]; generators whose frames have no content leave it as `latent`.
        video: Reproduction from `latent`, [C, T, H, W] in (-1, 1).
        freed_video: Reproduction from `frame_latents` and `content`, of the same shape.
        error: Root mean square error of `video` in levels, from 0 to 255.
        freed_error: Root mean square error of `freed_video` in levels.
        random_error: Root mean square error of the closest video before the first step, in levels.
    """

    latent: torch.Tensor
    label: int | None
    frame_latents: torch.Tensor
    content: torch.Tensor
    video: torch.Tensor
    freed_video: torch.Tensor
    error: float
    freed_error: float
    random_error: float


def project(
    generator: Generator,
    video: torch.Tensor,
    *,
    restarts: int = RESTARTS,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    labels: torch.Tensor | None = None,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> Projection:
    """Find the latents with which a generator in evaluation mode reproduces a video.

    Adam minimizes the mean squared error. All restarts take the first third of the steps; the best four continue. Then
    the best one's frame latents, and its content latent where there is one, are freed for as many steps again.

    Args:
        generator: Generator in any mode; it is only read.
        video: Video [C, T, H, W] in [-1, 1], of the generator's size.
        restarts: Number of random latents to begin with.
        steps: Number of steps of each of the two stages.
        learning_rate: Learning rate of Adam at the beginning; it falls to 0 along a cosine.
        labels: Labels of the restarts, int64 [restarts]; None: all classes in turn, if the generator has classes.
        seed: Seed of the first latents.
        progress: Function to call after every step, 2·steps times.

    Raises:
        ValueError: The video has another shape, a count is less than 1, or labels do not fit.
    """
    shape = generator.channels, generator.clip_frames, generator.image_size, generator.image_size
    if video.shape != shape:
        raise ValueError(f"the generator makes videos {list(shape)}, and the given one is {list(video.shape)}")
    if min(restarts, steps) < 1:
        raise ValueError(f"restarts and steps must be at least 1, and are {restarts} and {steps}")
    weight = next(generator.parameters())
    # A folded copy, so that neither gradients nor statistics of the generator change.
    network = FoldedGenerator(generator, weight.dtype).network
    video = video.to(weight)
    if labels is None and generator.classes:
        labels = torch.arange(restarts) % generator.classes
    labels = None if labels is None else labels.to(weight.device)
    drawn = draw_latents(restarts, generator.latent_dim, seed, distribution=generator.latent).to(weight)
    free = generator.latent.to_free(drawn)

    def from_latents(free, labels):
        return network(generator.latent.from_free(free), labels)

    first = math.ceil(steps / 3)
    random_error = _rms(_errors(from_latents(free, labels).detach(), video).min())
    for begin, end, kept in ((0, first, _KEPT), (first, steps, 1)):
        (free,) = _descend(
            [free], lambda x, y=labels: from_latents(x, y), video, learning_rate, begin, end, steps, progress
        )
        with torch.no_grad():
            best = _errors(from_latents(free, labels), video).argsort()[:kept]
        free, labels = free[best], None if labels is None else labels[best]

    with torch.no_grad():
        latent = generator.latent.from_free(free)
        reproduced = network(latent, labels)
        frame_latents = network.temp(network.conditioned(latent, labels))

    def from_frames(free, frames):
        inputs = network.conditioned(generator.latent.from_free(free), labels)
        return network.images(inputs, frames).tanh().unflatten(0, (1, -1)).transpose(1, 2)

    rate = learning_rate * _SLOWER_FOR_FRAMES
    content, frame_latents = _descend([free, frame_latents], from_frames, video, rate, 0, steps, steps, progress)
    with torch.no_grad():
        freed = from_frames(content, frame_latents)
    return Projection(
        latent=latent[0],
        label=None if labels is None else int(labels[0]),
        frame_latents=frame_latents[0],
        content=generator.latent.from_free(content)[0],
        video=reproduced[0],
        freed_video=freed[0],
        error=_rms(_errors(reproduced, video)[0]),
        freed_error=_rms(_errors(freed, video)[0]),
        random_error=random_error,
    )


def _descend(variables, generate, video, learning_rate, begin, end, steps, progress):
    """Return variables after the steps from `begin` to `end` of a schedule of `steps`."""
    variables = [variable.clone().requires_grad_() for variable in variables]
    optimizer = torch.optim.Adam(variables, lr=learning_rate, betas=(0.9, 0.99))
    for step in range(begin, end):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        with torch.enable_grad():
            _errors(generate(*variables), video).sum().backward()
        optimizer.step()
        progress()
    return [variable.detach() for variable in variables]


def _errors(videos, video):
    """Return the mean squared error of each video."""
    return (videos - video).square().mean((1, 2, 3, 4))


def _rms(error):
    return 127.5 * float(error.sqrt())
