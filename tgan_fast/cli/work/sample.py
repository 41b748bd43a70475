"""Sample videos, and write them as the file's name asks for."""

from functools import partial

import torch

from tgan_fast.cli.sample import SampleCommand
from tgan_fast.errors import InputError, NonFiniteError, printable, telling_of_memory
from tgan_fast.models.sampling import Sampler, draw_latents, not_finite, refuse_non_finite, sample_videos
from tgan_fast.pixels import to_clips
from tgan_fast.precision import arithmetic, resolve_precision
from tgan_fast.training.checkpoint import find, load_generator
from tgan_fast.training.devices import resolve_device
from tgan_fast.video_files import arrangement, check_format, check_videos, write_videos


def run(command: SampleCommand) -> None:
    check_format(command.out, command.fps)
    device = resolve_device(command.device)
    precision = resolve_precision(command.precision, device)
    checkpoint = find(command.checkpoint)
    generator = load_generator(checkpoint, weights=command.weights).to(device)
    _check_class(command, generator)
    rows, columns = _rows_and_columns(command, generator)
    size, frames = generator.image_size, generator.clip_frames * command.interpolate
    shape = rows * columns, frames, size, size, generator.channels
    check_videos(command.out, shape, fps=command.fps, columns=columns)
    too_many = (
        f"{shape[0]:,} videos of {frames:,} frames do not fit into the memory: choose a smaller --grid"
        f"{' or --interpolate' if command.interpolate > 1 else ''}"
    )
    try:
        with telling_of_memory(too_many):
            clips = _clips(command, checkpoint, generator, precision, _inputs(command, generator, rows, columns))
            write_videos(command.out, clips.numpy(), fps=command.fps, columns=columns)
    except OSError as error:
        raise InputError(f"cannot write {command.out}: {error.strerror or error}") from None
    print(f"{arrangement(command.out, len(clips), columns)}: {printable(str(command.out))}")


def _clips(command, checkpoint, generator, precision, inputs) -> torch.Tensor:
    if command.batch_norm == "running":
        refuse_non_finite(generator, checkpoint)
        return Sampler(generator, precision=precision, interpolate=command.interpolate)(inputs)
    with arithmetic("fp32"):
        videos = sample_videos(generator, inputs, batch_statistics=True, interpolate=command.interpolate)
    if not videos.isfinite().all():
        raise NonFiniteError(not_finite(checkpoint, "what it generates"))
    return to_clips(videos)


def _rows_and_columns(command, generator) -> tuple[int, int]:
    """Return the grid's rows and columns; a .png has a video in every row, and all of a walk below each other."""
    strip = command.out.suffix.lower() == ".png"
    rows = 1 if strip and command.walk is not None else command.grid
    columns = 1 if strip and command.walk is None else command.grid
    return generator.classes if _shows_all_classes(command, generator) else rows, columns


def _inputs(command, generator, rows, columns):
    """Return the generator's inputs for every place of the grid, row by row."""
    if not _shows_all_classes(command, generator):
        latents = _latents(command, generator, rows, columns).flatten(0, 1)
        labels = None if command.class_ is None else torch.full((rows * columns,), command.class_)
        return generator.conditioned(latents, labels)
    # The same latents in all rows, so that what differs is the class.
    latents = _latents(command, generator, 1, columns).expand(rows, -1, -1).flatten(0, 1)
    return generator.conditioned(latents, torch.arange(rows).repeat_interleave(columns))


def _latents(command, generator, rows, columns):
    """[rows, columns, latent_dim]"""
    options = {"distribution": generator.latent, "truncation": command.truncation}
    draw = partial(draw_latents, latent_dim=generator.latent_dim, **options)
    if command.walk is None:
        return draw(rows * columns, seed=command.seed).unflatten(0, (rows, columns))
    begin, end = (draw(rows, seed=seed) for seed in (command.seed, command.walk))
    return generator.latent.between(begin, end, torch.linspace(0, 1, columns))


def _shows_all_classes(command, generator):
    return generator.classes > 0 and command.class_ is None


def _check_class(command, generator) -> None:
    if command.class_ is None:
        return
    if not generator.classes:
        raise InputError(f"{command.checkpoint} was trained without classes: leave out --class")
    if not 0 <= command.class_ < generator.classes:
        raise InputError(f"--class is {command.class_}, but the classes are 0 to {generator.classes - 1}")
