"""Checkpoints: written whole or not at all, read without running code, ours and the PyTorch notebook's."""

import io
import operator
import pickle
import re
import sys
import zipfile
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
from tgan_fast.training.numpy_values import safe_numpy_values

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
        """Return the newest checkpoint, or None."""
        return next(reversed(self.paths()), None)

    def newest_intact(self) -> tuple[Path | None, list[Path]]:
        """Return the newest checkpoint that is not damaged, or None, and the damaged ones that are newer."""
        damaged = []
        for path in reversed(self.paths()):
            if not is_damaged(path):
                return path, damaged
            damaged.append(path)
        return None, damaged

    def set_damaged_aside(self) -> list[Path]:
        """Rename the damaged checkpoints that are newer than all others, so that they are no longer taken for any.

        Returns:
            Their new paths.
        """
        best = self.folder / "best.pt"
        damaged = self.newest_intact()[1] + ([best] if best.exists() and is_damaged(best) else [])
        return [path.replace(path.with_name(f"{path.name}.damaged")) for path in damaged]

    def keep_before(self, iteration: int) -> Path | None:
        """Copy the newest checkpoint of at most `iteration` iterations to `before-divergence.pt`, which stays.

        Returns:
            The copy, which may be older; None if there is no such checkpoint.
        """
        kept = self.folder / "before-divergence.pt"
        before = [path for path in self.paths() if iteration_of(path) <= iteration]
        if before and not kept.exists():
            write_atomically(kept, before[-1].read_bytes())
        return kept if kept.exists() else None


def _write(path, checkpoint):
    content = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, content)
    write_atomically(path, content)


def is_damaged(path: Path) -> bool:
    """Return whether a checkpoint of this package is not whole, or not what was written; raises as `read`."""
    raw = _bytes_of(path)
    return not raw.startswith(b"PK") or _is_damaged_archive(raw)


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
    """Read a checkpoint file to the CPU, and tell by its content whether it is this package's or the notebook's.

    A damaged byte anywhere in the file is noticed: PyTorch stores a checksum with every tensor.

    Returns:
        The content of a file of this package; of others `model_state_dict`, a list of the generator's state dict and,
        unless the file has the generator's alone, the discriminator's, without prefixes such as DataParallel's.

    Raises:
        InputError: The file is missing, unreadable or damaged, holds code (which is not run), or is something else.
    """
    raw = _bytes_of(path)
    if _is_damaged_archive(raw):
        raise InputError(f"{path} is not a checkpoint, or is damaged")
    try:
        with safe_numpy_values():
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported global" in str(error) or "nsupported class" in str(error):
            found = re.search(r"(?:GLOBAL|class) (\S+)", str(error))
            raise InputError(
                f"{path} is refused: it holds the Python object {found[1] if found else 'of an unknown class'}, which "
                "could run code when loaded: save its tensors alone"
            ) from None
        raise InputError(f"{path} is not a checkpoint, or is damaged") from None
    except Exception:  # whatever the unpickler stumbles over in bytes that are no checkpoint
        raise InputError(f"{path} is not a checkpoint, or is damaged") from None
    if isinstance(content, dict) and content.get("format") == FORMAT:
        if not _is_complete(content):
            raise InputError(f"{path} lacks a part of what a checkpoint has, or is damaged")
        return content
    networks = _networks_of_others(content)
    if networks is None:
        raise InputError(f"{path} is neither a checkpoint of tgan_fast nor one of the PyTorch notebook")
    return {**(content if "model_state_dict" in content else {}), "model_state_dict": networks}


def _bytes_of(path):
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _is_damaged_archive(raw):
    """Whether bytes begin as a ZIP archive, which PyTorch writes, but are no whole one."""
    if not raw.startswith(b"PK"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return archive.testzip() is not None
    except Exception:  # whatever zipfile stumbles over in damaged bytes
        return True


def _is_complete(content):
    step = content.get("step")
    return (
        isinstance(content.get("config"), dict)
        and isinstance(step, dict)
        and isinstance(step.get("iteration"), int)
        and all(_is_state(step.get(name)) for name in _NETWORKS)
        and _is_state(step.get("ema", {}))
    )


def _is_state(state):
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    )


def _networks_of_others(content):
    """State dicts of the notebook's networks, or of a generator alone; None of anything else."""
    if not isinstance(content, dict):
        return None
    networks = content.get("model_state_dict", [content])
    if not (isinstance(networks, (list, tuple)) and len(networks) in (1, 2) and all(map(_is_state, networks))):
        return None
    networks = [_without_prefix(state) for state in networks]
    return networks if any(name.startswith("temp.") for name in networks[0]) else None


def _without_prefix(state):
    """A state dict without what DataParallel and torch.compile put before every name."""
    for prefix in ("module.", "_orig_mod."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def read_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a run can resume from.

    The notebook's has both networks and RMSprop optimizers at the iteration it calls `epoch`; its `config` is empty and
    its `device` None, and the latents begin anew.

    Raises:
        InputError: As `read`; a notebook's checkpoint without optimizers or iteration.
    """
    content = read(path)
    if "model_state_dict" not in content:
        return content
    networks, optimizers = content["model_state_dict"], content.get("optimizer_state_dict")
    iteration = _iteration(content)
    if len(networks) != 2 or not isinstance(optimizers, (list, tuple)) or len(optimizers) != 2 or iteration is None:
        raise InputError(f"{path} has no iteration or optimizers: videos can be sampled from it, but no run resumed")
    step = {"iteration": iteration, **dict(zip(_NETWORKS, networks, strict=True))}
    step |= {f"{name}_optimizer": state for name, state in zip(_NETWORKS, optimizers, strict=True)}
    return {"config": {}, "device": None, "step": step}


def _iteration(content):
    """The notebook's count of iterations, or None."""
    try:
        return operator.index(content.get("epoch"))
    except TypeError:
        return None


def find(path: Path) -> Path:
    """Return a checkpoint file as it is, and of a run folder the newest checkpoint that is not damaged.

    Damaged ones that are newer are named on stderr.

    Raises:
        InputError: The run folder has none.
    """
    if not path.is_dir():
        return path
    folder = CheckpointFolder(path / "checkpoints", keep=1)
    intact, damaged = folder.newest_intact()
    if intact is None and damaged:
        raise InputError(f"all checkpoints in {folder.folder} are damaged: start a new run with another --out")
    if intact is None:
        raise InputError(f"there is no checkpoint in {folder.folder}: start the run again with --out {path}")
    for broken in damaged:
        sys.stderr.write(f"{broken} is damaged: {intact.name}, which is older, is used instead\n")
    return intact


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
        """Return the discriminator on the CPU, in evaluation mode; raises as `generator`."""
        if "discriminator" not in self.states:
            raise InputError(f"{self.path} has a generator alone, but no discriminator")
        discriminator = build_discriminator(self.config or TrainingConfig())
        load_strictly(discriminator, self.states["discriminator"], self.path)
        return discriminator.eval()


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, ours or the notebook's; raises as `read`."""
    content = read(path)
    if "model_state_dict" in content:
        states = dict(zip(_NETWORKS, content["model_state_dict"], strict=False))
        return Checkpoint(path, None, states, _iteration(content))
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
        if state[key].is_floating_point() != tensor.is_floating_point():
            raise InputError(f"{path} is not of this network: {key} is {state[key].dtype} there, {tensor.dtype} here")
    for key in state:
        if key not in expected:
            raise InputError(f"{path} is of another architecture: it has {key}, which is not known here")
    module.load_state_dict(state)
