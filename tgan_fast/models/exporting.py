"""Export of generators to files that other programs read without this package.

"safetensors" holds the weights by name. "onnx" and "torch-export" hold the computation too: in evaluation mode and in
float32 on a CPU, with batch norms folded into the layers.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from tgan_fast.choices import ExportFormat
from tgan_fast.extras import require_package
from tgan_fast.models.folding import FoldedGenerator
from tgan_fast.models.generator import Generator
from tgan_fast.ops.native import native_ops


def describe(generator: Generator, frames: int | None = None) -> dict[str, str]:
    """Return the metadata of every format: what a program must know to call an exported generator.

    Args:
        generator: Generator to export.
        frames: Number of frames of its videos; None: `clip_frames`.
    """
    frames = frames or generator.clip_frames
    return {
        "latent_distribution": generator.latent.description,
        "latent_dim": str(generator.latent_dim),
        "windows": str(generator.windows(frames)),
        "classes": str(generator.classes),
        "channels": str(generator.channels),
        "frames": str(frames),
        "image_size": str(generator.image_size),
        "video_range": "[-1, 1]",
    }


def to_safetensors(generator: Generator, metadata: Mapping[str, str]) -> bytes:
    """Return the state dict as a file of Hugging Face's safetensors.

    Args:
        generator: Generator on any device, in any memory format.
        metadata: Entries of the file's header.
    """
    # Here, since only this format needs it.
    from safetensors.torch import save

    state = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    return save(state, {"format": "pt", **metadata})


def to_onnx(generator: Generator, metadata: Mapping[str, str]) -> bytes:
    """Return an ONNX model with its weights.

    Its inputs are `latents`, float32 [N, latent_dim] for any N, or [N, windows, latent_dim] for windows, and for
    a generator with classes `labels`, int64 [N]. Its output is `videos`, float32 [N, C, T, H, W].

    Args:
        generator: Generator on the CPU, in any mode; it is only read.
        metadata: Entries of the model's `metadata_props`, from `describe`; `frames` is the number T.
    """
    frames = int(metadata["frames"])
    with _silenced():
        from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

        exported = torch.onnx.export(
            _exported_program(generator, frames),
            dynamo=True,
            dynamic_shapes={name: {0: "N"} for name in _examples(generator, frames)},
            output_names=["videos"],
            verbose=False,
        )
        ClearMetadataAndDocStringPass()(exported.model)
        exported.model.metadata_props.update(metadata)
        return exported.model_proto.SerializeToString()


def to_torch_export(generator: Generator, metadata: Mapping[str, str]) -> bytes:
    """Return a program for `torch.export.load`; its module has the inputs and the output of `to_onnx`.

    Args:
        generator: Generator on the CPU, in any mode; it is only read.
        metadata: Entries of the program's extra file "metadata.json", from `describe`.
    """
    content = io.BytesIO()
    with _silenced():
        program = _exported_program(generator, int(metadata["frames"]))
        torch.export.save(program, content, extra_files={"metadata.json": json.dumps(dict(metadata))})
    return content.getvalue()


class Format(NamedTuple):
    """A file format: suffix, function that makes a file, and packages that it needs besides PyTorch."""

    suffix: str
    write: Callable[[Generator, Mapping[str, str]], bytes]
    packages: tuple[str, ...] = ()

    def check_packages(self) -> None:
        """Raise an InputError unless the packages are installed."""
        for package in self.packages:
            require_package(package, f"{self.suffix} files need {package}")


FORMATS: dict[ExportFormat, Format] = {
    "safetensors": Format(".safetensors", to_safetensors),
    "onnx": Format(".onnx", to_onnx, ("onnx", "onnxscript")),
    "torch-export": Format(".pt2", to_torch_export),
}


class _NamedInputs(nn.Module):
    """The generator with its inputs named as in the exported file."""

    def __init__(self, generator: Generator, frames: int):
        super().__init__()
        self.generator, self.frames = FoldedGenerator(generator, torch.float32).network, frames

    def forward(self, latents, labels=None):
        return self.generator(latents, labels, self.frames)


def _exported_program(generator, frames) -> torch.export.ExportedProgram:
    """Return a folded generator as an exported program, for any number of videos of `frames` frames."""
    examples = _examples(generator, frames)
    count = torch.export.Dim("N", min=1)
    with native_ops():
        program = torch.export.export(
            _NamedInputs(generator, frames),
            tuple(examples.values()),
            dynamic_shapes={name: {0: count} for name in examples},
            strict=True,  # otherwise len() of a tensor would make N a constant
        )
    for node in program.graph.nodes:
        # Stack traces name folders of this computer.
        node.meta.pop("stack_trace", None)
    return program


def _examples(generator, frames) -> dict[str, torch.Tensor]:
    """Return inputs for two videos, by name."""
    examples = {"latents": torch.zeros(2, *generator.input_shape(frames)[:-1], generator.latent_dim)}
    if generator.classes:
        examples["labels"] = torch.zeros(2, dtype=torch.int64)
    return examples


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress logs and warnings, which PyTorch's exporters write for their own developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
