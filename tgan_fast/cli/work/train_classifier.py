"""Train a classifier on videos or moving digits, and write it."""

import sys
from dataclasses import replace

from tqdm import tqdm

from tgan_fast.cli.train_classifier import TrainClassifierCommand
from tgan_fast.errors import InputError, printable, telling_of_memory
from tgan_fast.metrics.classifier import save_classifier
from tgan_fast.metrics.classifier_training import RECIPES, train_classifier
from tgan_fast.metrics.held_out import split_digits, split_videos
from tgan_fast.training.devices import resolve_device

# Of an interrupted command.
_INTERRUPTED = 130


def run(command: TrainClassifierCommand) -> None:
    device = resolve_device(command.device)
    architecture, recipe = _recipe(command)
    clips = _clips(command)
    for line in (clips.summary, *clips.remarks):
        print(line)
    if architecture == "c3d" and device.type == "cpu":
        print("C3D learns too slowly on a CPU: use a GPU, or --architecture small")
    progress = tqdm(desc=str(command.out), total=recipe.steps, unit="step", dynamic_ncols=True, file=sys.stderr)
    try:
        with progress as bar, telling_of_memory(f"{device} has too little memory: choose a smaller --batch-size"):
            classifier = train_classifier(
                clips, architecture, recipe, seed=command.seed, device=device, progress=lambda loss: _show(bar, loss)
            )
    except KeyboardInterrupt:
        print("interrupted; nothing was written")
        raise SystemExit(_INTERRUPTED) from None
    try:
        save_classifier(command.out, classifier)
    except OSError as error:
        raise InputError(f"cannot write {command.out}: {error.strerror}") from None
    print(
        f"accuracy {classifier.accuracy:.1%} on {len(clips.held_out):,} held-out clips: {printable(str(command.out))}"
    )


def _recipe(command):
    architecture = command.architecture
    if architecture == "auto":
        architecture = "small" if command.data is None else "c3d"
    given = {"steps": command.steps, "batch_size": command.batch_size, "learning_rate": command.learning_rate}
    return architecture, replace(RECIPES[architecture], **{name: x for name, x in given.items() if x is not None})


def _clips(command):
    if command.data is not None:
        return split_videos(command.data, command.held_out, seed=command.seed)
    return split_digits(command.held_out, digits=command.digits, channels=command.channels, seed=command.seed)


def _show(bar, loss):
    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    bar.update()
