"""Train a video classifier to use instead of C3D: `python -m tgan_fast train-classifier --help`."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tgan_fast.cli import INTERRUPTED
from tgan_fast.cli.options import LARGEST_SEED, Device, KeepMemory, check_range, parse
from tgan_fast.cli.outputs import check_folder, writing
from tgan_fast.errors import InputError, printable, refuse_out_of_memory

_MOST_STEPS = 1_000_000
_LARGEST_BATCH = 10_000
# Adam moves every weight by about the learning rate in each step.
_FASTEST = 1.0


@dataclass
class TrainClassifierCommand:
    """Train a video classifier for `python -m tgan_fast evaluate`, to use instead of C3D's weights.

    Scores from different classifiers are not comparable.
    """

    data: Path | None = None
    """Clip store, or prepared .h5 or .npz file, with classes; by default moving digits."""
    out: Path = Path("classifier.pt")
    """File to write."""
    architecture: Literal["auto", "small", "c3d"] = "auto"
    """Network; auto: small for moving digits (three minutes on a CPU), c3d for videos (needs a GPU)."""
    steps: int | None = None
    """Training steps; by default 1,000 for small, 20,000 for c3d."""
    batch_size: int = 32
    """Clips per step."""
    learning_rate: float | None = None
    """Peak of the learning rate's cycle; by default 3e-3 for small, 1e-4 for c3d."""
    held_out: float = 0.2
    """Share of the handwritings, groups or videos of each class that is held out to measure accuracy."""
    seed: int = 0
    """Seed of the held-out choice, the weights and the clips."""
    digits: Literal[1, 2] = 1
    """Moving digits: digits per clip."""
    channels: Literal[1, 3] = 1
    """Moving digits: color channels of the videos to score; with 3, the classifier sees the mean of the channels."""
    device: Device = "auto"
    keep_memory: KeepMemory = True


def main(arguments: Sequence[str]) -> None:
    command = parse(TrainClassifierCommand, arguments, prog="python -m tgan_fast train-classifier")
    _check(command)
    from tqdm import tqdm

    from tgan_fast import allocator
    from tgan_fast.devices import resolve_device
    from tgan_fast.metrics.classifier import widened
    from tgan_fast.metrics.classifier_files import save_classifier
    from tgan_fast.metrics.classifier_training import train_classifier

    device = resolve_device(command.device)
    if command.keep_memory and device.type == "cpu":
        allocator.keep_memory()
    architecture, recipe = _architecture_and_recipe(command)
    clips = _clips(command)
    for line in (clips.summary, *clips.notices):
        print(line)
    if architecture == "c3d" and device.type == "cpu":
        print("C3D learns too slowly on a CPU: use a GPU, or --architecture small")
    progress = tqdm(desc=str(command.out), total=recipe.steps, unit="step", dynamic_ncols=True, file=sys.stderr)
    try:
        with progress as bar, refuse_out_of_memory(f"{device} has too little memory: choose a smaller --batch-size"):
            classifier = train_classifier(
                clips, architecture, recipe, seed=command.seed, device=device, progress=lambda loss: _show(bar, loss)
            )
    except KeyboardInterrupt:
        print("interrupted; nothing was written")
        raise SystemExit(INTERRUPTED) from None
    if classifier.channels < command.channels and command.data is None:
        classifier = widened(classifier, command.channels)
    with writing(command.out):
        save_classifier(command.out, classifier)
    print(
        f"accuracy {classifier.accuracy:.1%} on {len(clips.held_out):,} held-out clips: {printable(str(command.out))}"
    )


def _check(command):
    check_range(command, "steps", 1, _MOST_STEPS)
    check_range(command, "batch_size", 1, _LARGEST_BATCH)
    check_range(command, "seed", 0, LARGEST_SEED)
    if command.learning_rate is not None and not 0 < command.learning_rate <= _FASTEST:
        raise InputError(f"--learning-rate is {command.learning_rate}, but must be more than 0, and at most {_FASTEST}")
    if not 0 < command.held_out < 1:
        raise InputError(f"--held-out is {command.held_out}, but must be more than 0 and less than 1")
    check_folder(command.out)
    if command.out.is_dir():
        raise InputError(f"cannot write {command.out}: it is a folder")
    with writing(command.out), tempfile.TemporaryFile(dir=command.out.resolve().parent):
        pass


def _architecture_and_recipe(command):
    from tgan_fast.metrics.classifier_training import RECIPES

    architecture = command.architecture
    if architecture == "auto":
        architecture = "small" if command.data is None else "c3d"
    given = {"steps": command.steps, "batch_size": command.batch_size, "learning_rate": command.learning_rate}
    return architecture, replace(RECIPES[architecture], **{name: x for name, x in given.items() if x is not None})


def _clips(command):
    from tgan_fast.metrics.held_out import split_digits, split_videos

    if command.data is not None:
        return split_videos(command.data, command.held_out, seed=command.seed)
    return split_digits(command.held_out, digits=command.digits, seed=command.seed)


def _show(bar, loss):
    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    bar.update()
