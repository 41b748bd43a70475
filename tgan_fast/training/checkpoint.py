"""Checkpoints: written whole or not at all, read without running code, ours and the PyTorch notebook's."""

import io
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically
from tgan_fast.models import Discriminator, Generator
from tgan_fast.training.build import build_discriminator, build_generator
from tgan_fast.training.config import TrainingConfig

FORMAT = "tgan_fast checkpoint 1"
# In the order in which the notebook's has them.
_NETWORKS = "generator", "discriminator"
_NAME = re.compile(r"iteration-(\d{8})\.pt")


class CheckpointFolder:
    """A folder of `iteration-NNNNNNNN.pt` files, of which the newest `keep` stay, and `best.pt`."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, checkpoint: Mapping[str, Any], iteration: int) -> Path:
        """Write a checkpoint, then remove those that are too old.

        Args:
            checkpoint: of tensors and plain values alone.
            iteration: iterations done.

        Raises:
            OSError: the disk is full, for instance; all older checkpoints are still there.
        """
        path = self.folder / f"iteration-{iteration:08d}.pt"
        _write(path, checkpoint)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def save_best(
        self, checkpoint: Mapping[str, Any], scores: Mapping[str, float], scored_by: Mapping[str, str]
    ) -> None:
        """Write a checkpoint as `best.pt`, with its scores and what they depend on; raises as `save`."""
        _write(self.folder / "best.pt", {**checkpoint, "scores": dict(scores), "scored_by": dict(scored_by)})

    def best_scores(self, scored_by: Mapping[str, str]) -> dict[str, float]:
        """Of `best.pt`; none where there is no such file, or its scores depend on something else."""
        best = self.folder / "best.pt"
        content = read(best) if best.exists() else {}
        return content["scores"] if content.get("scored_by") == scored_by else {}

    def paths(self) -> list[Path]:
        """All numbered checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("iteration-*.pt") if _NAME.fullmatch(path.name))

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return next(reversed(self.paths()), None)


def _write(path, checkpoint):
    content = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, content)
    write_atomically(path, content)


def iteration_of(path: Path) -> int:
    """The iteration in the name of a numbered checkpoint."""
    return int(_NAME.fullmatch(path.name)[1])


def run_folder_of(path: Path) -> Path | None:
    """The run folder that a checkpoint lies in."""
    return path.parent.parent if path.parent.name == "checkpoints" else None


def latest_of_run(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder, or None."""
    return CheckpointFolder(folder / "checkpoints", keep=1).latest()


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, told apart by what it holds: ours or the notebook's.

    Raises:
        InputError: missing, unreadable, holding code (which is not run), or some other file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}") from None
    except pickle.UnpicklingError as error:
        if "nsupported global" in str(error) or "nsupported class" in str(error):
            raise InputError(
                f"{path} is refused: it holds Python objects that would run code when loaded, not only tensors"
            ) from None
        raise InputError(f"{path} is not a checkpoint, or is damaged") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a checkpoint, or is damaged"
        raise InputError(f"cannot read {path}: {reason}") from None
    if not (isinstance(content, dict) and (content.get("format") == FORMAT or _is_notebooks(content))):
        raise InputError(f"{path} is neither a checkpoint of tgan_fast nor one of the PyTorch notebook")
    return content


def _is_notebooks(content):
    networks = content.get("model_state_dict")
    return isinstance(networks, list) and len(networks) == 2 and all(isinstance(state, dict) for state in networks)


def read_run(path: Path) -> dict[str, Any]:
    """As `read`, for a checkpoint that a run can resume from.

    Of the notebook's: the networks and both RMSprop optimisers at the iteration it has as `epoch`; `config` and
    `device`, which it does not have, are empty, and the latents begin anew.
    """
    content = read(path)
    if not _is_notebooks(content):
        return content
    networks, optimizers = content["model_state_dict"], content.get("optimizer_state_dict")
    if not (isinstance(optimizers, list) and len(optimizers) == 2 and isinstance(content.get("epoch"), int)):
        raise InputError(f"{path} has no iteration or optimisers: videos can be sampled from it, but no run resumed")
    step = {"iteration": content["epoch"], **dict(zip(_NETWORKS, networks, strict=True))}
    step |= {f"{name}_optimizer": state for name, state in zip(_NETWORKS, optimizers, strict=True)}
    return {"config": {}, "device": None, "step": step}


def find(path: Path) -> Path:
    """A checkpoint file as it is; of a run folder, the newest checkpoint.

    Raises:
        InputError: the run folder has none.
    """
    if not path.is_dir():
        return path
    latest = latest_of_run(path)
    if latest is None:
        raise InputError(f"there is no checkpoint in {path / 'checkpoints'}")
    return latest


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, ours or the notebook's, as it was read.

    Attributes:
        path: of the file.
        config: how its run was set; None of the notebook's, which does not tell.
        states: state dicts of its networks, by their names.
        iteration: iterations done; None where the notebook's does not tell.
    """

    path: Path
    config: TrainingConfig | None
    states: Mapping[str, Any]
    iteration: int | None

    def kind(self, weights: Literal["auto", "live", "ema"]) -> Literal["live", "ema"]:
        """Which weights of the generator are meant: by "auto", the averaged ones where there are any."""
        if weights == "auto":
            return "ema" if "ema" in self.states else "live"
        return weights

    def generator(self, weights: Literal["auto", "live", "ema"] = "auto") -> Generator:
        """On the CPU and in evaluation mode.

        Args:
            weights: see `kind`.

        Raises:
            InputError: it is of another architecture, or has no weights of that kind.
        """
        kind = self.kind(weights)
        if kind == "ema" and "ema" not in self.states:
            raise InputError(f"{self.path} has no averaged weights: its run was not trained with ema_decay")
        generator = build_generator(self.config or TrainingConfig())
        load_strictly(generator, self.states["ema" if kind == "ema" else "generator"], self.path)
        return generator.eval()

    def discriminator(self) -> Discriminator:
        """On the CPU and in evaluation mode; raises as `generator`."""
        discriminator = build_discriminator(self.config or TrainingConfig())
        load_strictly(discriminator, self.states["discriminator"], self.path)
        return discriminator.eval()


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, ours or the notebook's; raises as `read`."""
    content = read(path)
    if _is_notebooks(content):
        return Checkpoint(
            path, None, dict(zip(_NETWORKS, content["model_state_dict"], strict=True)), content.get("epoch")
        )
    return Checkpoint(path, TrainingConfig(**content["config"]), content["step"], content["step"]["iteration"])


def load_generator(path: Path, *, weights: Literal["auto", "live", "ema"] = "auto") -> Generator:
    """The generator of a checkpoint; see `open_checkpoint` and `Checkpoint.generator`."""
    return open_checkpoint(path).generator(weights)


def load_strictly(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """`module.load_state_dict(state)`.

    Raises:
        InputError: the first key that is missing, unknown or of another shape.
    """
    expected = module.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            raise InputError(f"{path} is of another architecture: it has no {key}, here of {list(tensor.shape)}")
        if state[key].shape != tensor.shape:
            shapes = f"{list(state[key].shape)} there, but {list(tensor.shape)} here"
            raise InputError(f"{path} is of another architecture: {key} is {shapes}")
    for key in state:
        if key not in expected:
            raise InputError(f"{path} is of another architecture: it has {key}, which is not known here")
    module.load_state_dict(state)
