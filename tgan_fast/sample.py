"""Sample videos from a trained generator: `python -m tgan_fast.sample --help`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tgan_fast.command_line import parse, run
from tgan_fast.data import to_clips
from tgan_fast.data.video_files import encoder_of, write_videos
from tgan_fast.errors import InputError
from tgan_fast.models.sampling import Sampler, draw_latents, sample_videos
from tgan_fast.precision import PrecisionOption, arithmetic, resolve_precision
from tgan_fast.training.checkpoint import find, load_generator
from tgan_fast.training.devices import resolve_device


@dataclass
class SampleCommand:
    """Sample videos from a checkpoint, of a run of this package or of the PyTorch notebook."""

    checkpoint: Path
    """Checkpoint file, or a run folder for its newest one."""
    out: Path
    """.gif or .mp4: a grid of videos; .png: a row of frames for each of --grid videos; .npy: uint8 [N, T, H, W, C]."""
    grid: int = 8
    """Rows and columns of the grid; .npy holds as many videos as the grid."""
    seed: int = 0
    """Of the latents."""
    weights: Literal["auto", "live", "ema"] = "auto"
    """Of a run with ema_decay: the averaged weights or the live ones; auto: averaged where there are any."""
    batch_norm: Literal["running", "batch"] = "running"
    """Normalise with the running statistics, or with those of the batch as in training, in fp32."""
    precision: PrecisionOption = "auto"
    """Of convolutions and matrix products; auto: bf16 on GPUs that have it, fp32 elsewhere."""
    fps: int = 16
    """Frames a second of a GIF or MP4."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …"""


def main(arguments: Sequence[str]) -> None:
    command = parse(SampleCommand, arguments, prog="python -m tgan_fast.sample")
    _check(command)
    device = resolve_device(command.device)
    precision = resolve_precision(command.precision, device)
    generator = load_generator(find(command.checkpoint), weights=command.weights).to(device)
    count = command.grid if command.out.suffix.lower() == ".png" else command.grid**2
    latents = draw_latents(count, generator.latent_dim, command.seed)
    if command.batch_norm == "batch":
        with arithmetic("fp32"):
            clips = to_clips(sample_videos(generator, latents, batch_statistics=True))
    else:
        clips = Sampler(generator, precision=precision)(latents)
    try:
        write_videos(command.out, clips.numpy(), fps=command.fps)
    except OSError as error:
        raise InputError(f"cannot write {command.out}: {error.strerror or error}") from None
    print(f"{count} videos: {command.out}")


def _check(command: SampleCommand) -> None:
    encoder_of(command.out)
    if not command.out.resolve().parent.is_dir():
        raise InputError(f"cannot write {command.out}: there is no folder {command.out.parent}")
    if command.grid < 1:
        raise InputError(f"--grid is {command.grid}, but must be at least 1")
    if command.fps < 1:
        raise InputError(f"--fps is {command.fps}, but must be at least 1")
    if command.batch_norm == "batch" and command.grid < 2:
        raise InputError("--batch-norm batch needs at least 2 videos: choose --grid 2 or more")
    if command.batch_norm == "batch" and command.precision not in ("auto", "fp32"):
        raise InputError(f"--batch-norm batch computes in fp32 alone: leave out --precision {command.precision}")


if __name__ == "__main__":
    run(main)
