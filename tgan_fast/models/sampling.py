"""Sampling of videos from a generator, without side effects on its training."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from tgan_fast.cuda_graph import CudaGraphMode, Replayed, use_cuda_graph
from tgan_fast.errors import NonFiniteError
from tgan_fast.models.folding import FoldedGenerator
from tgan_fast.models.generator import Generator
from tgan_fast.models.latents import LATENTS, LatentDistribution
from tgan_fast.ops.levels import tanh_to_levels
from tgan_fast.precision import PrecisionOption, arithmetic, compute_dtype, resolve_precision

_CPU_BATCH = 2  # larger batches do not fit into the cache


def draw_latents(
    count: int,
    latent_dim: int,
    seed: int,
    *,
    distribution: LatentDistribution = LATENTS["uniform"],
    truncation: float | None = None,
    windows: int = 1,
) -> torch.Tensor:
    """Return latents [count, latent_dim] on the CPU, or [count, windows, latent_dim] for several windows.

    Args:
        count, latent_dim: Shape of the result.
        seed: Seed of the generator of random numbers. The first windows do not depend on how many there are.
        distribution: Distribution of the latents.
        truncation: Limit > 0 on their absolute value, for less variety and fewer failures; None for no limit.
        windows: Number of latents for a video, from `Generator.windows`.
    """
    random = torch.Generator().manual_seed(seed)
    latents = torch.empty(windows, count, latent_dim)
    for window in latents:
        distribution.fill_(window, random)
    latents = latents[0] if windows == 1 else latents.transpose(0, 1)
    return latents if truncation is None else distribution.truncated(latents, truncation)


def draw_labels(generator: Generator, count: int, seed: int) -> torch.Tensor | None:
    """Return labels int64 [count] on the CPU, uniform over the classes; None if the generator takes none."""
    if not generator.classes:
        return None
    # A separate seed, so that labels do not depend on the random bits of the latents.
    random = torch.Generator().manual_seed(seed + (1 << 32))
    return torch.randint(generator.classes, (count,), generator=random)


def draw_inputs(generator: Generator, count: int, seed: int, frames: int | None = None) -> torch.Tensor:
    """Return inputs of a `Sampler` on the CPU: latents, and labels if the generator has classes.

    Args:
        generator: Generator that the inputs are for.
        count: Number of videos.
        seed: Seed of latents and labels.
        frames: Number of frames of the videos; None: the generator's.

    Returns:
        Inputs [count, inputs], or [count, windows, inputs] for longer videos that need several latents.
    """
    windows = generator.windows(frames or generator.clip_frames)
    latents = draw_latents(count, generator.latent_dim, seed, distribution=generator.latent, windows=windows)
    return generator.conditioned(latents, draw_labels(generator, count, seed))


class Sampler:
    """Sampler of clips from a generator in evaluation mode, with folded batch norms and, on a GPU, a CUDA graph.

    It computes with its own weights. The generator is only read, now and by `refresh`.

    Args:
        generator: Generator in any mode; it stays on its device.
        batch_size: Largest number of clips in a batch, and fewer of longer ones. A GPU always computes full batches and
            drops the surplus; a CPU computes smaller ones where they are faster.
        precision: Precision of convolutions and matrix products, an option of `tgan_fast.precision`.
        cuda_graph: Mode of `tgan_fast.cuda_graph.use_cuda_graph`.
        output: Kind of result: "clips", uint8 [n, T, H, W, C], or "videos", float32 [n, C, T, H, W] in (-1, 1) as other
            networks take them, from `on_device` only.
        interpolate: Factor by which to increase the number of frames.
        frames: Number of frames before interpolation; None: the generator's.

    Raises:
        InputError: The device does not support the precision, or a required CUDA graph is not possible.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        batch_size: int = 64,
        precision: PrecisionOption = "auto",
        cuda_graph: CudaGraphMode = "auto",
        output: Literal["clips", "videos"] = "clips",
        interpolate: int = 1,
        frames: int | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, and is {batch_size}")
        if interpolate < 1:
            raise ValueError(f"interpolate must be at least 1, and is {interpolate}")
        if frames is not None and frames < 1:
            raise ValueError(f"frames must be at least 1, and is {frames}")
        weight, length = next(generator.parameters()), frames or generator.clip_frames
        batch_size = batch_size if weight.is_cuda else min(batch_size, _CPU_BATCH)
        # A longer video takes the place of several in memory.
        self.batch_size = max(1, batch_size * generator.clip_frames // max(length, generator.clip_frames))
        self._check = partial(generator.check_inputs, length=length)
        self._inputs = weight.detach().new_zeros(self.batch_size, *generator.input_shape(length))
        self._clip_frames, self._interpolate, self._length = length * interpolate, interpolate, length
        self._clip_shape = self._clip_frames, generator.image_size, generator.image_size, generator.channels
        self._precision = resolve_precision(precision, weight.device)
        self._generator = FoldedGenerator(generator, compute_dtype(self._precision, weight.dtype))
        replays = use_cuda_graph(cuda_graph, weight.device, [generator])
        self._makes_clips = output == "clips"
        self._static, self._download = None, _copy_each
        if weight.is_cuda:
            with torch.cuda.device(weight.device):
                replayed = Replayed(weight.device, required=cuda_graph == "on") if replays else None
                self._static = _StaticBatch(self._inputs, replayed)
                self._download = _Download((self.batch_size, *self._clip_shape))

    def refresh(self) -> None:
        """Read the generator's current weights and running statistics."""
        self._generator.refresh()

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return clips uint8 [N, T, H, W, C] on the CPU.

        On a GPU the clips of one batch are copied while the next one is computed.

        Args:
            inputs: Latents [N, latent_dim] on any device; for a generator with classes, latents and labels [N, inputs]
                from `Generator.conditioned`. For videos of several windows, as `draw_inputs` returns them.

        Raises:
            ValueError: The inputs have another shape.
        """
        batches = self.on_device(inputs)
        clips = torch.empty((len(inputs), *self._clip_shape), dtype=torch.uint8)
        self._download(batches, clips.split(self.batch_size))
        return clips

    def on_device(self, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """Return an iterator over batches of clips or videos on the generator's device, computed as they are taken.

        Arguments and errors are those of `__call__`.
        """
        self._check(inputs)
        inputs = inputs.to(self._inputs).contiguous()
        starts = range(0, len(inputs), self.batch_size)
        return (self._batch(inputs[start : start + self.batch_size]) for start in starts)

    def _batch(self, inputs):
        with torch.no_grad(), arithmetic(self._precision), torch.cuda.device_of(inputs):
            compute = self._clips if self._makes_clips else self._videos
            return compute(inputs) if self._static is None else self._static(compute, inputs)

    def _clips(self, inputs):
        levels = tanh_to_levels(self._generator.frames(inputs, self._interpolate, self._length))
        return levels.permute(0, 2, 3, 1).contiguous().unflatten(0, (-1, self._clip_frames))

    def _videos(self, inputs):
        frames = self._generator.frames(inputs, self._interpolate, self._length)
        return frames.float().tanh_().unflatten(0, (-1, self._clip_frames)).transpose(1, 2)


class _StaticBatch:
    """Runner of a function on a batch of fixed size in fixed GPU memory."""

    def __init__(self, inputs: torch.Tensor, replayed: Replayed | None):
        self._inputs, self._replayed = inputs, replayed

    def __call__(self, function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        self._inputs[: len(inputs)] = inputs
        call = partial(function, self._inputs)
        made = call() if self._replayed is None else self._replayed(call)
        # A copy, because the next replay overwrites the result.
        return made[: len(inputs)].clone()


class _Download:
    """Download of batches from a GPU through two buffers of pinned memory: one is filled while the other is emptied."""

    def __init__(self, shape: tuple[int, ...]):
        self._stream = torch.cuda.Stream()
        self._buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)]

    def __call__(self, batches: Iterable[torch.Tensor], places: Iterable[torch.Tensor]) -> None:
        """Copy every batch to its place on the CPU."""
        under_way = deque()
        # Taking a batch starts its computation, which continues during the wait for the previous batch.
        for buffer, batch, place in zip(cycle(self._buffers), batches, places, strict=False):
            under_way.append((batch, buffer[: len(batch)], place, self._start(batch, buffer[: len(batch)])))
            if len(under_way) == len(self._buffers):
                self._finish(*under_way.popleft())
        for copy in under_way:
            self._finish(*copy)

    def _start(self, batch, buffer):
        self._stream.wait_stream(torch.cuda.current_stream(batch.device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(batch, non_blocking=True)
        return self._stream.record_event()

    def _finish(self, batch, buffer, place, copied):
        # `batch` must live until here: its memory could be reused before the copy.
        copied.synchronize()
        place.copy_(buffer)


def _copy_each(batches, places):
    for batch, place in zip(batches, places, strict=False):
        place.copy_(batch)


@torch.no_grad()
def sample_videos(
    generator: Generator,
    inputs: torch.Tensor,
    *,
    batch_size: int = 32,
    batch_statistics: bool = False,
    interpolate: int = 1,
    frames: int | None = None,
) -> torch.Tensor:
    """Generate videos with the generator itself; a `Sampler` is faster.

    Args:
        generator: Generator in any mode; its mode and running statistics are restored afterwards.
        inputs: Inputs on any device, as for `Sampler`.
        batch_size: Largest number of videos in a batch.
        batch_statistics: Whether to normalize with each batch's own statistics, as in training, instead of the running
            ones.
        interpolate: Factor by which to increase the number of frames.
        frames: Number of frames before interpolation; None: the generator's.

    Returns:
        Videos [N, C, T, H, W] in (-1, 1), on the CPU.
    """
    device = next(generator.parameters()).device
    with undisturbed(generator, batch_statistics=batch_statistics):
        # Nearly equal batches: a remainder of one video would have no batch statistics.
        batches = inputs.tensor_split(math.ceil(len(inputs) / batch_size))
        made = torch.cat([generator.frames(batch.to(device), interpolate, frames).tanh().cpu() for batch in batches])
    return made.unflatten(0, (len(inputs), -1)).transpose(1, 2)


def refuse_non_finite(generator: Generator, path: Path) -> None:
    """Raise a NonFiniteError if a weight, a running statistic or one of two sampled videos is not finite.

    Args:
        generator: Generator in any mode; it is only read.
        path: Checkpoint file, for the message.
    """
    for name, tensor in generator.state_dict().items():
        if not tensor.isfinite().all():
            raise NonFiniteError(not_finite(path, name))
    # Weights can be finite, but so large that the videos are not.
    if not sample_videos(generator, draw_inputs(generator, 2, 0)).isfinite().all():
        raise NonFiniteError(not_finite(path, "its output"))


def not_finite(path: Path, what: str) -> str:
    """Return the error message for a generator with infinite values or NaN.

    Args:
        path: Checkpoint file.
        what: Name of the tensor or result.
    """
    return f"the generator in {path} cannot be used, because {what} is not finite: choose an earlier checkpoint"


@contextmanager
def undisturbed(module: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Use running statistics (or the batch's) inside the block, and restore all modes and buffers afterwards."""
    training = {child: child.training for child in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.train(batch_statistics)
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
        for child, mode in training.items():
            child.training = mode
