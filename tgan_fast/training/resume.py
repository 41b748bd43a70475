"""Resuming a run from a checkpoint: checks, and notices of changes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tgan_fast.data import ClipDataset, VideoFrames
from tgan_fast.errors import InputError, is_out_of_memory
from tgan_fast.training.build import GENERATOR_SETTINGS
from tgan_fast.training.checkpoint import first_not_finite, iteration_of, load_strictly, read_run, run_folder_of
from tgan_fast.training.config import TrainingConfig, in_current_words
from tgan_fast.training.run_folder import RunFolder
from tgan_fast.training.step import TrainingStep

# Settings of the networks, and the seed: most of its draws are in the checkpoint, so a new seed would be ignored.
_FIXED = GENERATOR_SETTINGS | {"discriminator", "optimizer", "seed", "init_from", "init_optimizers"}
# `open_saved` refuses another kind of device.
_UNIMPORTANT = {"device"}


def changed_settings(config: TrainingConfig, recorded: Mapping[str, Any]) -> list[str]:
    """Return a line that lists the settings changed since a checkpoint, or no line if there are none.

    Args:
        config: Settings of the resumed run.
        recorded: Settings in the checkpoint; empty for the notebook's, which has none.

    Raises:
        InputError: A setting has changed that must stay the same.
    """
    if not recorded:
        return []
    before = TrainingConfig().model_dump() | in_current_words(recorded)
    changed = {name: (before[name], now) for name, now in config.model_dump().items() if before[name] != now}
    for name, (old, new) in changed.items():
        parametrized = name == "constraint" and "spectral-norm" in (old, new)
        if name in _FIXED or parametrized:
            raise InputError(
                f"{name} cannot change on resume: the checkpoint has {old}, not {new}; leave it out, or start a new "
                "run with another --out"
            )
    lines = [f"{name} {old} → {new}" for name, (old, new) in changed.items() if name not in _UNIMPORTANT]
    return [f"changed since the checkpoint: {', '.join(lines)}"] if lines else []


def open_saved(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint to resume from, and raise an InputError if it was made on another kind of device."""
    saved = read_run(path)
    if saved.get("device") not in (device.type, None):
        made_on = saved["device"]
        raise InputError(
            f"{path} was made on {made_on} and does not resume on {device.type}: choose --device {made_on}"
        )
    return saved


def restore_step(step: TrainingStep, state: dict[str, Any], path: Path) -> None:
    """Load the state of a step, or raise an InputError if it is damaged or does not fit."""
    load_strictly(step.generator, state["generator"], path)
    load_strictly(step.discriminator, state["discriminator"], path)
    if broken := first_not_finite(state):
        raise InputError(f"{path} cannot be resumed: {broken} is not finite; resume an earlier checkpoint")
    if step.ema is not None:
        if "ema" not in state:
            raise InputError(f"{path} has no averaged weights, so ema_decay cannot be set now: leave it out")
        load_strictly(step.ema, state["ema"], path)
    try:
        step.load_state_dict(state)
    except ValueError as error:
        raise InputError(f"the optimizers in {path} do not fit: {error}") from None
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path} is damaged: the state of its optimizers or random numbers is incomplete") from None


def notices_on_data(
    config: TrainingConfig,
    dataset: ClipDataset | VideoFrames,
    data_fingerprint: str | None,
    saved: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Yield a notice if the data has changed since the checkpoint, or has classes that the run does not use."""
    if saved is not None and saved.get("data") not in (None, data_fingerprint):
        yield "the data has changed since the checkpoint was made: the run continues, but its results will differ"
    names = dataset.videos.class_names if isinstance(dataset, VideoFrames) else ()
    if names and not config.conditional:
        yield f"the videos have {len(names):,} classes, which this run does not use: --conditional would use them"


def take_over(folder: RunFolder, resume: Path | None, iteration: int) -> Iterator[str]:
    """Check that the locked folder may be written to, and yield a notice for every repair.

    Raises:
        InputError: The folder holds another run, or a newer checkpoint.
    """
    own = None if resume is None else run_folder_of(resume)
    if own is None or own.resolve() != folder.path.resolve():
        if folder.checkpoints.paths():
            raise InputError(
                f"{folder.path} holds another run: continue it with --resume {folder.path}, or choose another --out"
            )
        if earlier := folder.checkpoints.set_best_aside():
            yield f"the best.pt of an earlier run, which has no other checkpoint, was renamed: {earlier}"
        return
    for damaged in folder.checkpoints.set_damaged_aside():
        yield f"a damaged checkpoint was renamed: {damaged}"
    latest = folder.checkpoints.latest()
    if latest is not None and iteration_of(latest) > iteration:
        raise InputError(
            f"{folder.path} has a newer checkpoint, {latest.name}: resume from it, or choose a new folder with --out"
        )
