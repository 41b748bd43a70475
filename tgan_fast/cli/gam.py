"""Compare two trained GANs by each other's discriminators: `python -m tgan_fast gam --help`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tgan_fast.cli.options import LARGEST_SEED, MOST_SAMPLES, Device, Weights, check_range, parse
from tgan_fast.errors import InputError
from tgan_fast.reports.number_format import format_number


@dataclass
class GamCommand:
    """Compare two checkpoints by the generative adversarial metric: each discriminator scores the other's videos."""

    checkpoints: Annotated[tuple[Path, Path], tyro.conf.Positional, tyro.conf.arg(metavar="FIRST SECOND")]
    """Checkpoint files or run folders, of runs on the same data."""
    data: Path | None = None
    """Real videos to set thresholds with, as for train --data; by default the first checkpoint's training data."""
    test_data: Path | None = None
    """Real videos that neither was trained on; by default other clips of --data, or other moving digits."""
    samples: int = 2048
    """Number of generated videos of each checkpoint, and of real clips of each kind."""
    seed: int = 0
    """Seed of the latents and of the choice of real clips."""
    weights: Weights = "auto"
    device: Device = "auto"


def main(arguments: Sequence[str]) -> None:
    command = parse(GamCommand, arguments, prog="python -m tgan_fast gam")
    check_range(command, "samples", 2, MOST_SAMPLES)
    check_range(command, "seed", 0, LARGEST_SEED)
    from tqdm import tqdm

    from tgan_fast.devices import resolve_device
    from tgan_fast.metrics.generative_adversarial_metric import battle, errors_of_both
    from tgan_fast.models.sampling import refuse_non_finite
    from tgan_fast.training.checkpoint import find, open_checkpoint

    device = resolve_device(command.device)
    checkpoints = [open_checkpoint(find(path)) for path in command.checkpoints]
    generators = [checkpoint.generator(command.weights).to(device) for checkpoint in checkpoints]
    discriminators = [checkpoint.discriminator().to(device) for checkpoint in checkpoints]
    if generators[0].channels != generators[1].channels:
        channels = " and ".join(str(generator.channels) for generator in generators)
        raise InputError(f"the two generators make videos of {channels} channels: compare runs on the same data")
    sizes = [f"{generator.clip_frames} frames of {generator.image_size} pixels" for generator in generators]
    if sizes[0] != sizes[1]:
        raise InputError(f"the two generators make videos of {' and of '.join(sizes)}: compare runs of the same size")
    if any(generator.classes for generator in generators):
        raise InputError("gam cannot compare conditional runs: choose runs without classes")
    for checkpoint, generator in zip(checkpoints, generators, strict=True):
        refuse_non_finite(generator, checkpoint.path)
    real, unseen = _real_and_unseen(command, checkpoints[0].config)

    with tqdm(desc="videos scored", total=8 * command.samples, unit="video", dynamic_ncols=True) as bar:
        test, samples = errors_of_both(
            generators, discriminators, real, unseen, count=command.samples, seed=command.seed, progress=bar.update
        )
    _print([checkpoint.path for checkpoint in checkpoints], test, samples, battle(test, samples))


def _real_and_unseen(command, config):
    from tgan_fast.training import TrainingConfig
    from tgan_fast.training.dataset import open_data, with_data

    if config is None and command.data is None:
        raise InputError(f"{command.checkpoints[0]} does not say what it was trained on: give --data")
    config = with_data(config or TrainingConfig(), command.data)
    # Another seed gives other moving digits; it does not change a data set of videos.
    unseen = with_data(config.model_copy(update={"seed": config.seed + 1}), command.test_data)
    return open_data(config), open_data(unseen)


def _print(paths, test, samples, outcome) -> None:
    for number, path in enumerate(paths):
        print(
            f"{path}: wrong about {100 * test[number].share:.1f} % of unseen real clips, "
            f"{100 * samples[number].share:.1f} % of the other's videos"
        )
    for name, ratio in (("r_test", outcome.r_test), ("r_samples", outcome.r_samples)):
        value, low, high = (format_number(number) for number in (ratio.value, ratio.low, ratio.high))
        print(f"{name:10}{value:>8}   95 %: {low} to {high}")
    verdict = "neither wins" if outcome.winner is None else f"{paths[outcome.winner - 1]} wins"
    print(verdict)
