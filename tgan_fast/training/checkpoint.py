"""Checkpoint files, including the PyTorch notebook's: written atomically, and read without running code."""

import io
import json
import os
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tgan_fast.choices import WeightsOption
from tgan_fast.errors import InputError, nearest, printable
from tgan_fast.files import is_whole_zip, write_atomically
from tgan_fast.models import Discriminator, Generator
from tgan_fast.training.build import build_discriminator, build_generator
from tgan_fast.training.config import TrainingConfig
from tgan_fast.training.foreign_checkpoint import (
    MOST_ITERATIONS,
    NETWORKS,
    find_networks,
    is_state_dict,
    notebook_iteration,
    safe_numpy_values,
)

CHECKPOINT_FORMAT = "tgan_fast checkpoint 1"
_ZIP = b"PK"
# Generators that come with the package, by name.
PRETRAINED = {path.stem: path for path in (Path(__file__).parents[1] / "pretrained").glob("*.safetensors")}
_BEFORE_DIVERGENCE = "before-divergence.pt"
_NAME = re.compile(r"iteration-(\d{8})\.pt")


class CheckpointFolder:
    """Folder of the newest `iteration-NNNNNNNN.pt` files, and `best.pt`.

    Args:
        folder: Path of the folder.
        keep: Number of numbered checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def set_best_aside(self) -> Path | None:
        """Rename the `best.pt` of an earlier run, and return its new path, or None if there is none."""
        best = self.folder / "best.pt"
        return best.replace(best.with_name("best.pt.earlier")) if best.exists() else None

    def save(self, checkpoint: Mapping[str, Any], iteration: int) -> Path:
        """Write a checkpoint, then remove the oldest ones.

        Args:
            checkpoint: Tensors, numbers, strings and containers of them.
            iteration: Number of iterations done.

        Returns:
            Path of the file.

        Raises:
            OSError: The file cannot be written; all older checkpoints are still there.
        """
        path = self.folder / f"iteration-{iteration:08d}.pt"
        _write(path, checkpoint)
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def save_best(
        self, checkpoint: Mapping[str, Any], scores: Mapping[str, float], scored_by: Mapping[str, str]
    ) -> None:
        """Write a checkpoint as `best.pt`.

        Args:
            checkpoint: Content, as in `save`.
            scores: Score of the checkpoint by metric.
            scored_by: Protocol and classifier of the scores.

        Raises:
            OSError: The file cannot be written; an older `best.pt` is still there.
        """
        _write(self.folder / "best.pt", {**checkpoint, "scores": dict(scores), "scored_by": dict(scored_by)})

    def best_scores(self, scored_by: Mapping[str, str]) -> dict[str, float]:
        """Return the scores of `best.pt`; none if there is no such file, or if its `scored_by` differs."""
        best = self.folder / "best.pt"
        content = read(best) if best.exists() else {}
        return content["scores"] if content.get("scored_by") == scored_by else {}

    def paths(self) -> list[Path]:
        """Return all numbered checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("iteration-*.pt") if _NAME.fullmatch(path.name))

    def latest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return next(reversed(self.paths()), None)

    def newest_intact(self) -> tuple[Path | None, list[Path]]:
        """Return the newest checkpoint that is not damaged, or None, and all newer ones, which are damaged."""
        damaged: list[Path] = []
        for path in reversed(self.paths()):
            if not is_damaged(path):
                return path, damaged
            damaged.append(path)
        return None, damaged

    def set_damaged_aside(self) -> list[Path]:
        """Rename damaged checkpoints that are newer than every intact one, so that no later command reads them.

        Returns:
            Their new paths.
        """
        best = self.folder / "best.pt"
        damaged = self.newest_intact()[1] + ([best] if best.exists() and is_damaged(best) else [])
        return [path.replace(path.with_name(f"{path.name}.damaged")) for path in damaged]

    def keep_before(self, iteration: int) -> Path | None:
        """Copy the newest checkpoint of at most `iteration` iterations to `before-divergence.pt`, unless that exists.

        Returns:
            Path of the copy, which an earlier call may have made; None if there is no such checkpoint.
        """
        before = [path for path in self.paths() if iteration_of(path) <= iteration]
        if before and self.before_divergence() is None:
            write_atomically(self.folder / _BEFORE_DIVERGENCE, before[-1].read_bytes())
        return self.before_divergence()

    def before_divergence(self) -> Path | None:
        """Return the copy that `keep_before` has made, or None."""
        kept = self.folder / _BEFORE_DIVERGENCE
        return kept if kept.exists() else None


def _write(path, checkpoint):
    content = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, **checkpoint}, content)
    write_atomically(path, content)


def is_damaged(path: Path) -> bool:
    """Return whether a checkpoint of this package cannot be read, is incomplete, or fails its checksums."""
    try:
        raw = path.read_bytes()
    except OSError:
        return True
    return not (raw.startswith(_ZIP) and is_whole_zip(raw))


def iteration_of(path: Path) -> int:
    """Return the iteration in the name of a numbered checkpoint."""
    return int(path.stem.rpartition("-")[2])


def run_folder_of(path: Path) -> Path | None:
    """Return the run folder of a checkpoint, or None if it is in no `checkpoints` folder."""
    return path.parent.parent if path.parent.name == "checkpoints" else None


def latest_of_run(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run folder, or None."""
    return CheckpointFolder(folder / "checkpoints", keep=1).latest()


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package or of the notebook to the CPU.

    Checksums reveal damage to ZIP archives, PyTorch's format since 1.6; older files have none.

    Returns:
        The content of the file. For files of other programs, `model_state_dict` is a list of the generator's state dict
        and, if the file has one, the discriminator's, without prefixes such as DataParallel's.

    Raises:
        InputError: The file is missing, unreadable or damaged, holds code (which is not run), or is no checkpoint.
    """
    return _content_of(path, _bytes_of(path))


def _content_of(path, raw):
    if _is_safetensors(raw):
        raise InputError(f"{path} holds an exported generator only: sample from it, or resume a checkpoint instead")
    if raw.startswith(_ZIP) and not is_whole_zip(raw):
        raise InputError(f"{path} is not a checkpoint, or is damaged")
    try:
        with safe_numpy_values():
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported global" in str(error) or "nsupported class" in str(error):
            found = re.search(r"(?:GLOBAL|class) (\S+)", str(error))
            held = f"the Python object {found[1]}" if found else "a Python object of an unknown class"
            raise InputError(
                f"{path} is refused, because it holds {held}, and such objects can run code when loaded: save only its "
                "tensors"
            ) from None
        raise InputError(f"{path} is not a checkpoint, or is damaged") from None
    except MemoryError:
        raise
    except Exception:  # bytes that are no checkpoint make the unpickler raise errors of many types
        raise InputError(f"{path} is not a checkpoint, or is damaged") from None
    if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT:
        if not _is_complete(content):
            raise InputError(f"{path} is an incomplete or damaged checkpoint")
        return content
    networks = find_networks(content)
    if networks is None:
        raise InputError(f"{path} is neither a checkpoint of tgan_fast nor one of the PyTorch notebook")
    return {**(content if isinstance(content, dict) else {}), "model_state_dict": networks}


def _bytes_of(path, names=()):
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}{nearest(str(path), names)}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _is_safetensors(raw):
    # A file begins with the length of its header in eight bytes. The header is JSON.
    return raw[8:9] == b"{" and int.from_bytes(raw[:8], "little") <= len(raw) - 8


def _is_complete(content):
    step = content.get("step")
    return (
        isinstance(content.get("config"), dict)
        and isinstance(step, dict)
        and isinstance(step.get("iteration"), int)
        and 0 <= step["iteration"] <= MOST_ITERATIONS
        and all(is_state_dict(step.get(name)) for name in NETWORKS)
        and is_state_dict(step.get("ema", {}))
    )


def read_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a run can resume from.

    A notebook's checkpoint has both networks, their RMSprop optimizers, and the iteration, which it calls `epoch`. Its
    `config` is returned empty and its `device` as None, and its run resumes with latents from the seed.

    Raises:
        InputError: The file cannot be read by `read`, or is a notebook's checkpoint without optimizers or iteration.
    """
    content = read(path)
    if "model_state_dict" not in content:
        return content
    networks, optimizers = content["model_state_dict"], content.get("optimizer_state_dict")
    iteration = notebook_iteration(content)
    if len(networks) != 2 or not isinstance(optimizers, (list, tuple)) or len(optimizers) != 2 or iteration is None:
        raise InputError(f"{path} has no iteration or optimizers: sample from it, or resume another checkpoint instead")
    step = {"iteration": iteration, **dict(zip(NETWORKS, networks, strict=True))}
    step |= {f"{name}_optimizer": state for name, state in zip(NETWORKS, optimizers, strict=True)}
    return {"config": {}, "device": None, "step": step}


def find(path: Path) -> Path:
    """Return the newest intact checkpoint of a run folder, the file of a generator in the package, or `path` itself.

    A file or folder takes precedence over the generator of that name in `PRETRAINED`. Damaged newer checkpoints are
    listed on stderr.

    Raises:
        InputError: The run folder has no intact checkpoint.
    """
    if not path.exists():
        return PRETRAINED.get(str(path), path)
    if not path.is_dir():
        return path
    folder = CheckpointFolder(path if path.name == "checkpoints" else path / "checkpoints", keep=1)
    intact, damaged = folder.newest_intact()
    if intact is None and damaged:
        others = [other for other in sorted(folder.folder.glob("*.pt")) if not is_damaged(other)]
        remedy = f"give {others[0]} instead" if others else "restore one from a copy, or train with another --out"
        raise InputError(f"all numbered checkpoints in {folder.folder} are damaged: {remedy}")
    if intact is None:
        ended = (path / "config.yaml").exists()
        remedy = ", because the run ended before the first one: start it again with the same --out" if ended else ""
        raise InputError(f"there is no checkpoint in {folder.folder}{remedy}")
    # Only one of torchrun's processes prints this.
    for broken in damaged if os.environ.get("RANK", "0") == "0" else ():
        sys.stderr.write(printable(f"{broken} is damaged: using the older {intact.name} instead") + "\n")
    return intact


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint of this package or of the notebook, or of a generator exported as safetensors.

    Attributes:
        path: Path of the file.
        config: Settings of its run; None for a notebook's checkpoint, which has none.
        states: State dicts of the networks by name.
        iteration: Number of iterations done; None if the file does not say.
        tells_data: Whether `config` says which data the networks were trained on.
    """

    path: Path
    config: TrainingConfig | None
    states: Mapping[str, Any]
    iteration: int | None
    tells_data: bool

    def kind(self, weights: WeightsOption) -> Literal["live", "ema"]:
        """Return the kind of weights to use; "auto" is the averaged weights if there are any."""
        if weights == "auto":
            return "ema" if "ema" in self.states else "live"
        return weights

    def generator(self, weights: WeightsOption = "auto") -> Generator:
        """Return the generator on the CPU, in evaluation mode.

        Args:
            weights: Kind of weights: "ema" (averaged), "live", or "auto" for the averaged ones if there are any.

        Raises:
            InputError: The checkpoint is of another architecture, or has no weights of this kind.
        """
        kind = self.kind(weights)
        if kind == "ema" and "ema" not in self.states:
            raise InputError(f"{self.path} has no averaged weights: its run was not trained with ema_decay")
        if kind == "live" and "generator" not in self.states:
            raise InputError(f"{self.path} has only averaged weights: leave out --weights live")
        generator = build_generator(self.config or TrainingConfig())
        load_strictly(generator, self.states["ema" if kind == "ema" else "generator"], self.path)
        return generator.eval()

    def discriminator(self) -> Discriminator:
        """Return the discriminator on the CPU, in evaluation mode; raise an InputError if none fits."""
        if "discriminator" not in self.states:
            raise InputError(f"{self.path} has a generator, but no discriminator")
        discriminator = build_discriminator(self.config or TrainingConfig())
        load_strictly(discriminator, self.states["discriminator"], self.path)
        return discriminator.eval()


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this package or the notebook, or an exported safetensors file, with the errors of `read`."""
    raw = _bytes_of(path, PRETRAINED)
    if _is_safetensors(raw):
        return _from_safetensors(path, raw)
    content = _content_of(path, raw)
    if "model_state_dict" in content:
        states = dict(zip(NETWORKS, content["model_state_dict"], strict=False))
        return Checkpoint(path, None, states, notebook_iteration(content), tells_data=False)
    config, step = TrainingConfig(**content["config"]), content["step"]
    return Checkpoint(path, config, step, step["iteration"], tells_data=True)


def _from_safetensors(path, raw):
    import safetensors.torch

    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    try:
        state = safetensors.torch.load(raw)
        metadata = json.loads(header).get("__metadata__", {})
        settings = json.loads(metadata.get("settings", "{}"))
        iteration = int(metadata["iteration"]) if "iteration" in metadata else None
        if not isinstance(settings, dict):
            raise ValueError("settings are not a mapping")
    except (safetensors.SafetensorError, ValueError):
        raise InputError(f"{path} is not a generator exported as safetensors, or is damaged") from None
    try:
        config = TrainingConfig(**settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    states = {"ema" if metadata.get("weights") == "ema" else "generator": state}
    # Files of 0.1.0 have only the generator's settings.
    return Checkpoint(path, config, states, iteration, tells_data="data" in settings)


def first_not_finite(state: Mapping[str, Any]) -> str | None:
    """Return the name of a tensor that is not finite, such as "slow.0.weight of the generator", or None."""
    for network in (*NETWORKS, "ema"):
        for name, tensor in state.get(network, {}).items():
            if not tensor.isfinite().all():
                return f"{name} of the {network}"
    return None


def load_generator(path: Path, *, weights: WeightsOption = "auto") -> Generator:
    """Return the generator of a checkpoint, with the weights and errors of `Checkpoint.generator`."""
    return open_checkpoint(path).generator(weights)


def load_strictly(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load a state dict that fits the module exactly.

    Args:
        module: Module to load into.
        state: State dict; `num_batches_tracked` may be missing, as in files from before PyTorch 0.4.1.
        path: File of the state dict, for errors.

    Raises:
        InputError: A key is missing, unknown or of another shape; the message names the first.
    """
    expected = module.state_dict()
    counts = {key: tensor for key, tensor in expected.items() if key.endswith("num_batches_tracked")}
    state = {**counts, **state}
    for key, tensor in expected.items():
        if key not in state:
            raise InputError(f"{path} is of another architecture: it has no {key} of shape {list(tensor.shape)}")
        if state[key].shape != tensor.shape:
            shapes = f"{list(state[key].shape)} in the file, but {list(tensor.shape)} in the network"
            raise InputError(f"{path} is of another architecture: {key} is {shapes}")
        if state[key].is_floating_point() != tensor.is_floating_point():
            raise InputError(f"{path} is not of this network: {key} is {state[key].dtype} instead of {tensor.dtype}")
    for key in state:
        if key not in expected:
            raise InputError(f"{path} is of another architecture: it has {key}, which the network does not have")
    module.load_state_dict(state)
