"""Convert C3D's weights to the package's own format: `python -m tgan_fast convert-classifier --help`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tgan_fast.cli.options import parse
from tgan_fast.cli.outputs import check_folder, writing
from tgan_fast.errors import printable


@dataclass
class ConvertCommand:
    """Write C3D's weights and mean to one classifier file for evaluate, and for train --classifier."""

    weights: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]
    """Weights file: conv3d_deepnetA_ucf.npz, or its TorchScript form c3d_ucf101.pt."""
    mean: Path
    """File mean2.npz of C3D's mean."""
    out: Path = Path("c3d.pt")
    """File to write."""


def main(arguments: Sequence[str]) -> None:
    command = parse(ConvertCommand, arguments, prog="python -m tgan_fast convert-classifier")
    check_folder(command.out)
    from tgan_fast.metrics.classifier_files import load_classifier, save_classifier

    classifier = load_classifier(command.weights, command.mean)
    with writing(command.out):
        save_classifier(command.out, classifier)
    print(f"C3D for {len(classifier.classes)} classes: {printable(str(command.out))}")
