"""Make a trained generator usable without this package: `python -m tgan_fast export --help`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tgan_fast.choices import ExportFormat
from tgan_fast.cli.options import MOST_FRAMES, CheckpointPath, Weights, check_range, parse
from tgan_fast.cli.outputs import check_folder, writing
from tgan_fast.errors import InputError, printable
from tgan_fast.files import write_atomically


@dataclass
class ExportCommand:
    """Export the generator of a checkpoint, of this package or of the PyTorch notebook, for use in other programs."""

    checkpoint: CheckpointPath
    out: Path
    """File to write: .safetensors, .onnx, or .pt2 for torch-export."""
    format: ExportFormat
    """safetensors: weights by name; onnx: for onnxruntime and others; torch-export: for torch.export.load."""
    frames: int | None = None
    """Number of frames that the exported generator makes, for onnx and torch-export; by default as in training."""
    weights: Weights = "auto"


def main(arguments: Sequence[str]) -> None:
    command = parse(ExportCommand, arguments, prog="python -m tgan_fast export")
    from tgan_fast.models.exporting import FORMATS, describe
    from tgan_fast.models.sampling import refuse_non_finite
    from tgan_fast.training.checkpoint import find, open_checkpoint

    _check(command, FORMATS[command.format])
    checkpoint = open_checkpoint(find(command.checkpoint))
    generator = checkpoint.generator(command.weights)
    refuse_non_finite(generator, checkpoint.path)
    facts = describe(generator, command.frames)
    metadata = {**facts, **_record(checkpoint), "weights": checkpoint.kind(command.weights)}
    content = FORMATS[command.format].write(generator, metadata)
    with writing(command.out):
        write_atomically(command.out, content)
    print(f"{command.format}, {len(content) / 1e6:.1f} MB: {printable(str(command.out))}")
    print(_signature(generator, facts))


def _record(checkpoint) -> dict[str, str]:
    """Return the metadata that `open_checkpoint` reads: settings of the run, and the number of iterations."""
    from tgan_fast.training import TrainingConfig
    from tgan_fast.training.build import GENERATOR_SETTINGS
    from tgan_fast.training.config import PATHS

    if checkpoint.tells_data:
        # Only names of files, to keep the user's folders private.
        names = {name: Path(getattr(checkpoint.config, name) or "").name or None for name in PATHS}
        settings = checkpoint.config.model_dump() | names
    else:
        settings = (checkpoint.config or TrainingConfig()).model_dump(include=GENERATOR_SETTINGS)
    iteration = {} if checkpoint.iteration is None else {"iteration": str(checkpoint.iteration)}
    return {"settings": json.dumps(settings), **iteration}


def _signature(generator, facts) -> str:
    """Return text like "latents float32 [N, 4], uniform in (-1, 1) → videos float32 [N, 3, 16, 64, 64] in [-1, 1]"."""
    windows = "" if facts["windows"] == "1" else f"{facts['windows']}, "
    inputs = f"latents float32 [N, {windows}{generator.latent_dim}], {facts['latent_distribution']}"
    if generator.classes:
        inputs += f"; labels int64 [N], 0 to {generator.classes - 1}"
    shape = ["N", generator.channels, facts["frames"], generator.image_size, generator.image_size]
    return f"{inputs} → videos float32 [{', '.join(map(str, shape))}] in {facts['video_range']}"


def _check(command, chosen):
    if command.out.suffix.lower() != chosen.suffix:
        raise InputError(
            f"cannot write {command.out}: with --format {command.format} its name must end in {chosen.suffix}"
        )
    check_range(command, "frames", 1, MOST_FRAMES)
    if command.frames is not None and command.format == "safetensors":
        raise InputError(
            "--frames is for onnx and torch-export, because safetensors holds only weights, which make videos of any "
            "length: leave it out"
        )
    check_folder(command.out)
    chosen.check_packages()
