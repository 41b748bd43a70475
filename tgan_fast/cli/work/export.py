"""Write the generator of a checkpoint for other programs."""

import json

from tgan_fast.cli.export import ExportCommand
from tgan_fast.errors import InputError, printable
from tgan_fast.files import write_atomically
from tgan_fast.models.exporting import FORMATS, describe
from tgan_fast.models.sampling import refuse_non_finite
from tgan_fast.training import TrainingConfig
from tgan_fast.training.build import GENERATOR_SETTINGS
from tgan_fast.training.checkpoint import find, open_checkpoint


def run(command: ExportCommand) -> None:
    _check(command)
    checkpoint = open_checkpoint(find(command.checkpoint))
    generator = checkpoint.generator(command.weights)
    refuse_non_finite(generator, checkpoint.path)
    settings = (checkpoint.config or TrainingConfig()).model_dump(include=GENERATOR_SETTINGS)
    metadata = {**describe(generator), "settings": json.dumps(settings)}
    content = FORMATS[command.format].write(generator, metadata)
    try:
        write_atomically(command.out, content)
    except OSError as error:
        raise InputError(f"cannot write {command.out}: {error.strerror}") from None
    print(f"{command.format}, {len(content) / 1e6:.1f} MB: {printable(str(command.out))}")
    print(_signature(generator))


def _signature(generator) -> str:
    """Such as: latents float32 [N, 100], uniform in (-1, 1) → videos float32 [N, 3, 16, 64, 64] in [-1, 1]"""
    facts = describe(generator)
    inputs = f"latents float32 [N, {generator.latent_dim}], {facts['latent_distribution']}"
    if generator.classes:
        inputs += f"; labels int64 [N], 0 to {generator.classes - 1}"
    shape = ["N", generator.channels, generator.clip_frames, generator.image_size, generator.image_size]
    return f"{inputs} → videos float32 [{', '.join(map(str, shape))}] in {facts['video_range']}"


def _check(command: ExportCommand) -> None:
    chosen = FORMATS[command.format]
    if command.out.suffix.lower() != chosen.suffix:
        raise InputError(
            f"cannot write {command.out}: with --format {command.format} its name must end in {chosen.suffix}"
        )
    if not command.out.resolve().parent.is_dir():
        raise InputError(f"cannot write {command.out}: there is no folder {command.out.parent}")
    chosen.check_packages()
