"""The batch and random numbers of an iteration, kept at fixed addresses for CUDA graphs."""

from collections.abc import Callable, Collection

import torch

from tgan_fast.choices import Transform
from tgan_fast.models import Discriminator, Generator
from tgan_fast.models.conditions import check_labels
from tgan_fast.ops.augmentation import RANDOM_NUMBERS, augment_videos
from tgan_fast.processes import Processes


class Inputs:
    """The batch of an iteration.

    Args:
        generator, discriminator: Networks that the batch has to fit.
        read: Function that turns a batch into videos; None: batches are videos.
        critic_steps: Number of equal parts that a batch consists of.
        processes: Processes that share the batch.
        static: Whether to copy batches into the memory of the first one.

    Attributes:
        labels: Labels of the loaded batch, int64 [N], or None.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        *,
        read: Callable[[torch.Tensor], torch.Tensor] | None,
        critic_steps: int,
        processes: Processes,
        static: bool,
    ):
        self._device, self._classes = next(generator.parameters()).device, generator.classes
        self._discriminator, self._read, self._critic_steps = discriminator, read, critic_steps
        self._processes, self._static = processes, static
        self._batch: torch.Tensor | None = None
        self.labels: torch.Tensor | None = None

    def check(self, batch: torch.Tensor, labels: torch.Tensor | None) -> int:
        """Return the number of videos for a critic step.

        Raises:
            ValueError: The batch does not fit. No random number has been drawn and no running statistic changed.
        """
        if batch.device != self._device:
            raise ValueError(f"the batch is on {batch.device}, but the networks are on {self._device}")
        count, rest = divmod(batch.shape[0], self._critic_steps)
        if rest:
            raise ValueError(
                f"a batch of {batch.shape[0]} cannot be split evenly over {self._critic_steps} critic steps: choose a "
                f"multiple of {self._critic_steps}"
            )
        if count < 2 and self._processes.size == 1:
            raise ValueError(f"a batch of {count} is too small: batch norm needs at least 2 videos")
        check_labels(labels, len(batch), self._classes, "training step")
        if self._read is None:
            if not batch.is_floating_point():
                raise ValueError(f"training takes floating-point videos in [-1, 1] and got {batch.dtype}")
            self._discriminator.check(batch)
        held, shape = self._batch, torch.Size([count, *batch.shape[1:]])
        if self._static and held is not None and (shape, batch.dtype) != (held.shape, held.dtype):
            raise ValueError(
                f"the CUDA graph takes batches of {list(held.shape)} {held.dtype} and got {list(shape)} "
                f'{batch.dtype}: use cuda_graph="off" for batches that differ'
            )
        return count

    def load(self, batch: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Load a batch that was checked, or a part of one."""
        if not self._static:
            self._batch, self.labels = batch, labels
        elif self._batch is None:
            self._batch, self.labels = batch.clone(), None if labels is None else labels.clone()
        else:
            self._batch.copy_(batch)
            if labels is not None and self.labels is not None:
                self.labels.copy_(labels)

    def videos(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the real videos, [N, C, T, H, W] in [-1, 1]."""
        assert self._batch is not None, "load comes first"
        videos = self._batch if self._read is None else self._read(self._batch)
        return videos.to(dtype)


class Draws:
    """The random numbers for one step of one network.

    Every process draws the numbers of all processes, in float32 at any precision, and uses its part of them, so that
    several processes use the same numbers for a batch as one process. Drawing does not wait for a GPU.

    Args:
        generator: Generator that the latents are for.
        random: Source of the random numbers, but for those of the augmentation.
        augmentation_random: Source of those, so that the others do not depend on whether videos are augmented.
        transforms: Names of the transforms of the discriminator's videos; empty for no augmentation.
        noise: Standard deviation of the noise on the discriminator's videos; 0 is none.
        real: Whether the step also sees real videos, which get noise and an augmentation of their own.
        mixes: Whether to draw the shares at which real and fake videos are mixed.
        processes: Processes that draw the same numbers.
    """

    def __init__(
        self,
        generator: Generator,
        random: torch.Generator,
        *,
        augmentation_random: torch.Generator,
        transforms: Collection[Transform],
        noise: float,
        real: bool,
        mixes: bool,
        processes: Processes,
    ):
        self._generator, self._random, self._noise, self._mixes = generator, random, noise, mixes
        self._augmentation_random, self._transforms = augmentation_random, transforms
        self._kinds = 2 if real else 1
        self._processes = processes
        self._latents = torch.empty(0, 0)

    def draw(self, count: int) -> None:
        """Draw for a step on `count` videos in each process."""
        count *= self._processes.size
        if self._latents.shape != (count, self._generator.latent_dim):
            self._allocate(count)
        self._generator.latent.fill_(self._latents, self._random)
        if self._noise:
            self._deviations.normal_(generator=self._random)
        if self._mixes:
            self._shares.uniform_(generator=self._random)
        if self._transforms:
            self._numbers.uniform_(generator=self._augmentation_random)

    def latents(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the latents, [count, latent_dim]."""
        return self._rank_rows(self._latents, 0).to(dtype)

    def mix(self) -> torch.Tensor | None:
        """Return numbers uniform in [0, 1), float32 [count, 1, 1, 1, 1], or None where nothing is mixed."""
        return self._rank_rows(self._shares, 0) if self._mixes else None

    def augment(self, videos: torch.Tensor) -> torch.Tensor:
        """Return videos [count or 2·count, C, T, H, W], the real ones first, augmented."""
        if not self._transforms:
            return videos
        return augment_videos(videos, self._rank_rows(self._numbers, 1).flatten(0, 1), self._transforms)

    def add_noise(self, videos: torch.Tensor) -> torch.Tensor:
        """Return videos [count or 2·count, C, T, H, W], the real ones first, with their noise."""
        if not self._noise:
            return videos
        deviations = self._rank_rows(self._deviations, 1).flatten(0, 1).movedim(-1, 1)
        return torch.add(videos, deviations.to(videos.dtype), alpha=self._noise)

    def _allocate(self, count):
        model, device = self._generator, self._random.device
        self._latents = torch.empty(count, model.latent_dim, device=device)
        if self._noise:
            video = model.clip_frames, model.image_size, model.image_size, model.channels
            self._deviations = torch.empty(self._kinds, count, *video, device=device)
        if self._mixes:
            self._shares = torch.empty(count, 1, 1, 1, 1, device=device)
        if self._transforms:
            self._numbers = torch.empty(self._kinds, count, RANDOM_NUMBERS, device=device)

    def _rank_rows(self, drawn, dim):
        return drawn.chunk(self._processes.size, dim)[self._processes.rank]
