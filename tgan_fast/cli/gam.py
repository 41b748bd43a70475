"""Let two trained GANs judge each other: `python -m tgan_fast gam --help`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tgan_fast.cli.options import LARGEST_SEED, MOST_SAMPLES, check_range, parse


@dataclass
class GamCommand:
    """The generative adversarial metric of two checkpoints: which one's discriminator is fooled less by the other."""

    checkpoints: Annotated[tuple[Path, Path], tyro.conf.Positional, tyro.conf.arg(metavar="FIRST SECOND")]
    """Checkpoint files or run folders, of runs on the same data."""
    data: Path | None = None
    """Real videos to set thresholds with: what train --data takes; by default what the first was trained on."""
    test_data: Path | None = None
    """Real videos that neither has seen; by default other clips of --data, or other moving digits."""
    samples: int = 2048
    """Generated videos of each, and real clips of each kind."""
    seed: int = 0
    """Of latents and real clips."""
    weights: Literal["auto", "live", "ema"] = "auto"
    """Of the generators: averaged or live; auto: averaged where there are any."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …"""


def main(arguments: Sequence[str]) -> None:
    command = parse(GamCommand, arguments, prog="python -m tgan_fast gam")
    check_range(command, "samples", 2, MOST_SAMPLES)
    check_range(command, "seed", 0, LARGEST_SEED)
    from tgan_fast.cli.work.gam import run

    run(command)
