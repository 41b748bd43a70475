"""Make a trained generator usable without this package: `python -m tgan_fast export --help`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tgan_fast.choices import ExportFormat
from tgan_fast.cli.options import parse


@dataclass
class ExportCommand:
    """Write the generator of a checkpoint, of a run of this package or of the PyTorch notebook, for other programs."""

    checkpoint: Path
    """Checkpoint file, or a run folder for its newest one."""
    out: Path
    """The file to write: .safetensors, .onnx, or .pt2 for torch-export."""
    format: ExportFormat
    """safetensors: the weights by name; onnx: for onnxruntime and others; torch-export: for torch.export.load."""
    weights: Literal["auto", "live", "ema"] = "auto"
    """Of a run with ema_decay: the averaged weights or the live ones; auto: averaged where there are any."""


def main(arguments: Sequence[str]) -> None:
    command = parse(ExportCommand, arguments, prog="python -m tgan_fast export")
    from tgan_fast.cli.work.export import run

    run(command)
