"""Sample videos from a trained generator: `python -m tgan_fast sample --help`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tgan_fast.choices import PrecisionOption
from tgan_fast.cli.options import (
    LARGEST_SEED,
    MOST_FRAMES,
    CheckpointPath,
    Device,
    KeepMemory,
    Weights,
    check_class,
    check_range,
    parse,
)
from tgan_fast.cli.outputs import check_folder, writing
from tgan_fast.errors import InputError, NonFiniteError, printable, refuse_out_of_memory

# Such a grid has a million videos.
_LARGEST_GRID = 1000
# All frames of a video are made at once.
_MOST_INTERPOLATED = 100


@dataclass
class SampleCommand:
    """Sample videos from a checkpoint of this package or of the PyTorch notebook."""

    checkpoint: CheckpointPath
    out: Path
    """File to write: a grid of videos as .gif, .mp4, .webp or .apng;
    a row of frames for each video as .png; uint8 [N, T, H, W, C] as .npy. All but .mp4 and colored .gif are exact."""
    grid: int = 8
    """Rows and columns of the grid: N × N videos, also in .npy; N videos in .png.
    With a conditional run, one row per class."""
    seed: int = 0
    """Seed of the latents."""
    class_: Annotated[int | None, tyro.conf.arg(name="class")] = None
    """Conditional run: number of the class to sample, from 0; by default all classes."""
    truncation: float | None = None
    """Largest absolute value of the latents, for less variety and fewer failures; by default no limit."""
    walk: int | None = None
    """Second seed; every row interpolates from a latent of --seed to a latent of this seed."""
    frames: int | None = None
    """Number of frames, of more or less motion; by default as many as the generator was trained with."""
    interpolate: int = 1
    """Factor by which to increase the number of frames, for the same motion in more frames."""
    weights: Weights = "auto"
    batch_norm: Literal["running", "batch"] = "running"
    """Statistics of batch norms: running, or those of the batch as in training, which computes in fp32."""
    precision: PrecisionOption = "auto"
    """Precision of convolutions and matrix products; auto: bf16 on GPUs that support it, else fp32."""
    fps: int = 16
    """Frames per second; at most 50 in .gif."""
    device: Device = "auto"
    keep_memory: KeepMemory = True


def main(arguments: Sequence[str]) -> None:
    command = parse(SampleCommand, arguments, prog="python -m tgan_fast sample")
    _check(command)
    from tgan_fast import allocator
    from tgan_fast.devices import resolve_device
    from tgan_fast.precision import resolve_precision
    from tgan_fast.training.checkpoint import find, load_generator
    from tgan_fast.video_files import arrangement, check_format, check_videos, write_videos

    check_format(command.out, command.fps)
    device = resolve_device(command.device)
    if command.keep_memory and device.type == "cpu":
        allocator.keep_memory()
    precision = resolve_precision(command.precision, device)
    checkpoint = find(command.checkpoint)
    generator = load_generator(checkpoint, weights=command.weights).to(device)
    check_class(command, generator)
    rows, columns = _rows_and_columns(command, generator)
    size, frames = generator.image_size, _frames(command, generator) * command.interpolate
    shape = rows * columns, frames, size, size, generator.channels
    check_videos(command.out, shape, fps=command.fps, columns=columns)
    too_many = (
        f"{shape[0]:,} videos of {frames:,} frames do not fit into the memory: choose a smaller --grid"
        f"{' or --interpolate' if command.interpolate > 1 else ''}{' or --frames' if command.frames else ''}"
    )
    with writing(command.out), refuse_out_of_memory(too_many):
        clips = _clips(command, checkpoint, generator, precision, _inputs(command, generator, rows, columns))
        write_videos(command.out, clips.numpy(), fps=command.fps, columns=columns)
    print(f"{arrangement(command.out, len(clips), columns)}: {printable(str(command.out))}")


def _check(command: SampleCommand) -> None:
    check_folder(command.out)
    for name in ("seed", "walk"):
        check_range(command, name, 0, LARGEST_SEED)
    check_range(command, "grid", 1, _LARGEST_GRID)
    check_range(command, "frames", 1, MOST_FRAMES)
    check_range(command, "interpolate", 1, _MOST_INTERPOLATED)
    if command.truncation is not None and not 0 < command.truncation < math.inf:
        raise InputError(f"--truncation is {command.truncation}, but must be a number more than 0")
    if command.walk is not None and command.grid < 2:
        raise InputError("--walk needs a beginning and an end: choose --grid 2 or more")
    if command.batch_norm == "batch" and command.grid < 2:
        raise InputError("--batch-norm batch needs at least 2 videos: choose --grid 2 or more")
    if command.batch_norm == "batch" and command.precision not in ("auto", "fp32"):
        raise InputError(f"--batch-norm batch computes only in fp32: leave out --precision {command.precision}")


def _clips(command, checkpoint, generator, precision, inputs):
    from tgan_fast.models.sampling import Sampler, not_finite, refuse_non_finite, sample_videos
    from tgan_fast.pixels import to_clips
    from tgan_fast.precision import arithmetic

    lengths = {"interpolate": command.interpolate, "frames": command.frames}
    if command.batch_norm == "running":
        refuse_non_finite(generator, checkpoint)
        return Sampler(generator, precision=precision, **lengths)(inputs)
    with arithmetic("fp32"):
        videos = sample_videos(generator, inputs, batch_statistics=True, **lengths)
    if not videos.isfinite().all():
        raise NonFiniteError(not_finite(checkpoint, "its output"))
    return to_clips(videos)


def _frames(command, generator) -> int:
    """Return the number of frames before interpolation."""
    return command.frames or generator.clip_frames


def _rows_and_columns(command, generator) -> tuple[int, int]:
    """Return the grid's rows and columns. A .png has one video per row; a walk there is one column of videos."""
    strip = command.out.suffix.lower() == ".png"
    rows = 1 if strip and command.walk is not None else command.grid
    columns = 1 if strip and command.walk is None else command.grid
    return generator.classes if _shows_all_classes(command, generator) else rows, columns


def _inputs(command, generator, rows, columns):
    """Return the generator's inputs for all cells of the grid, row by row."""
    import torch

    if not _shows_all_classes(command, generator):
        latents = _latents(command, generator, rows, columns).flatten(0, 1)
        labels = None if command.class_ is None else torch.full((rows * columns,), command.class_)
        return generator.conditioned(latents, labels)
    # All rows have the same latents, so that only the class differs.
    latents = torch.cat([_latents(command, generator, 1, columns)[0]] * rows)
    return generator.conditioned(latents, torch.arange(rows).repeat_interleave(columns))


def _latents(command, generator, rows, columns):
    """Return latents [rows, columns, latent_dim], or [rows, columns, windows, latent_dim] for several windows."""
    import torch

    from tgan_fast.models.sampling import draw_latents

    windows = generator.windows(_frames(command, generator))
    options = {"distribution": generator.latent, "truncation": command.truncation, "windows": windows}
    draw = partial(draw_latents, latent_dim=generator.latent_dim, **options)
    if command.walk is None:
        return draw(rows * columns, seed=command.seed).unflatten(0, (rows, columns))
    begin, end = (draw(rows, seed=seed).reshape(rows * windows, -1) for seed in (command.seed, command.walk))
    walk = generator.latent.between(begin, end, torch.linspace(0, 1, columns))
    # Every window walks from the one seed's latent to the other's.
    return walk if windows == 1 else walk.unflatten(0, (rows, windows)).transpose(1, 2)


def _shows_all_classes(command, generator):
    return generator.classes > 0 and command.class_ is None
