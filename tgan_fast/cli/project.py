"""Find the latents of a given video: `python -m tgan_fast project --help`."""

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro

from tgan_fast.cli.options import (
    LARGEST_SEED,
    CheckpointPath,
    Device,
    KeepMemory,
    Weights,
    check_class,
    check_range,
    parse,
)
from tgan_fast.cli.outputs import check_folder, writing
from tgan_fast.errors import InputError, NonFiniteError, UnreadableVideoError, counted, printable, refuse_out_of_memory
from tgan_fast.extras import require_package
from tgan_fast.files import write_atomically

_LARGEST = 1_000_000
_MOST_RESTARTS = 10_000


@dataclass
class ProjectCommand:
    """Find the latents with which a generator reproduces a video, and show the video beside its reproductions."""

    video: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")]
    """Video file, folder of images, or clips in a .npy file, as for prepare; it is fitted to the generator's size."""
    checkpoint: CheckpointPath
    out: Path
    """File to write, in a format of sample: the given clip, its reproduction from a latent, and one from free frame
    latents, side by side."""
    latents: Path | None = None
    """File .npz for the latents and the label; by default they are not written."""
    clip: int = 0
    """Number of the video, from 0, if the source has several."""
    start: int = 0
    """First frame to reproduce, from 0."""
    class_: Annotated[int | None, tyro.conf.arg(name="class")] = None
    """Conditional run: number of the class, from 0; by default the class that fits best is found."""
    restarts: int = 20
    """Number of random latents to begin with; the best four continue after a third of the steps."""
    steps: int = 900
    """Number of steps for the latent, and again for the frame latents."""
    learning_rate: float = 0.1
    """Learning rate of Adam at the beginning."""
    seed: int = 0
    """Seed of the first latents."""
    weights: Weights = "auto"
    fps: int = 16
    """Frames per second; at most 50 in .gif."""
    device: Device = "auto"
    keep_memory: KeepMemory = True


def main(arguments: Sequence[str]) -> None:
    command = parse(ProjectCommand, arguments, prog="python -m tgan_fast project")
    _check(command)
    require_package("av", "project needs PyAV")
    import numpy as np
    import torch
    from tqdm import tqdm

    from tgan_fast import allocator
    from tgan_fast.devices import resolve_device
    from tgan_fast.models.projection import project
    from tgan_fast.models.sampling import not_finite, refuse_non_finite
    from tgan_fast.pixels import to_clips, to_videos
    from tgan_fast.precision import arithmetic
    from tgan_fast.training.checkpoint import find, load_generator
    from tgan_fast.video_files import arrangement, check_format, check_videos, write_videos

    check_format(command.out, command.fps)
    device = resolve_device(command.device)
    if command.keep_memory and device.type == "cpu":
        allocator.keep_memory()
    checkpoint = find(command.checkpoint)
    generator = load_generator(checkpoint, weights=command.weights).to(device)
    refuse_non_finite(generator, checkpoint)
    check_class(command, generator)
    clip = _read_clip(command, generator)
    check_videos(command.out, (3, *clip.shape), fps=command.fps, columns=3)
    labels = None if command.class_ is None else torch.full((command.restarts,), command.class_)
    too_many = f"{command.restarts:,} restarts do not fit into the memory: choose fewer --restarts"
    bar = tqdm(desc="steps", total=2 * command.steps, unit="step", dynamic_ncols=True, file=sys.stderr)
    with bar, refuse_out_of_memory(too_many), arithmetic("fp32"):
        found = project(
            generator,
            to_videos(torch.from_numpy(clip)[None])[0],
            restarts=command.restarts,
            steps=command.steps,
            learning_rate=command.learning_rate,
            labels=labels,
            seed=command.seed,
            progress=bar.update,
        )
    videos = torch.stack([found.video, found.freed_video]).cpu()
    if not videos.isfinite().all():
        raise NonFiniteError(not_finite(checkpoint, "a reproduction"))
    with writing(command.out):
        shown = np.concatenate([clip[None], to_clips(videos).numpy()])
        write_videos(command.out, shown, fps=command.fps, columns=3)
    if command.latents is not None:
        with writing(command.latents):
            write_atomically(command.latents, _packed(found))
    label = "" if found.label is None else f", class {found.label}"
    print(
        f"root mean square error in levels: {found.error:.2f} from a latent (best of "
        f"{counted(command.restarts, 'restart')}{label}), {found.freed_error:.2f} with free frame latents, "
        f"{found.random_error:.2f} of the closest random video"
    )
    print(f"{arrangement(command.out, 3, 3)}: {printable(str(command.out))}")


def _check(command: ProjectCommand) -> None:
    check_folder(command.out)
    if command.latents is not None:
        check_folder(command.latents)
        if command.latents.suffix.lower() != ".npz":
            raise InputError(f"cannot write {command.latents}: its name must end in .npz")
    check_range(command, "clip", 0)
    check_range(command, "start", 0)
    check_range(command, "restarts", 1, _MOST_RESTARTS)
    check_range(command, "steps", 1, _LARGEST)
    check_range(command, "seed", 0, LARGEST_SEED)
    if not 0 < command.learning_rate <= _LARGEST:
        raise InputError(f"--learning-rate is {command.learning_rate}, but must be more than 0 and at most 1,000,000")


def _read_clip(command, generator):
    """Return the chosen frames uint8 [T, H, W, C]."""
    import numpy as np

    from tgan_fast.preparation.decoding import FrameFormat
    from tgan_fast.preparation.sources import recognize

    if generator.channels not in (1, 3):
        raise InputError(f"{command.checkpoint} makes videos of {generator.channels} channels, and not of 1 or 3")
    videos = recognize(command.video).videos
    if command.clip >= len(videos):
        raise InputError(f"--clip is {command.clip}, but {command.video} has {counted(len(videos), 'video')}, from 0")
    frame_format = FrameFormat(generator.image_size, generator.image_size, generator.channels)
    end = command.start + generator.clip_frames
    try:
        frames = (frame for batch in videos[command.clip].read(frame_format) for frame in batch)
        chosen = list(islice(frames, command.start, end))
    except UnreadableVideoError as error:
        raise InputError(f"{command.video} cannot be read: {error}") from None
    if len(chosen) < generator.clip_frames:
        raise InputError(
            f"{command.video} has fewer than {end:,} frames, but the generator makes {generator.clip_frames} frames "
            f"and --start is {command.start}: give a longer video or an earlier --start"
        )
    return np.stack(chosen)


def _packed(found) -> io.BytesIO:
    """Return an .npz file of plain arrays; the label is -1 without classes."""
    import numpy as np

    content = io.BytesIO()
    arrays = {name: getattr(found, name).cpu().numpy() for name in ("latent", "frame_latents", "content")}
    np.savez(content, **arrays, label=np.int64(-1 if found.label is None else found.label))
    return content
