"""The folder of a training run: settings, statistics, samples, checkpoints and curves."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from tgan_fast.errors import InputError, printable
from tgan_fast.files import append_line, lock, write_atomically
from tgan_fast.reports.curves import bytes_of, loss_figure, score_figure
from tgan_fast.reports.recorded_run import comparable, read_stats
from tgan_fast.training.checkpoint import CheckpointFolder
from tgan_fast.training.config import TrainingConfig
from tgan_fast.video_files import TitledGrid, stack_grids, write_videos

_COLUMNS = 4


class RunFolder:
    """Folder with `config.yaml`, `environment.jsonl`, `stats.jsonl`, `tensorboard/`, `samples/`, `checkpoints/`, plots.

    Args:
        path: Path of the folder, which is created if it is missing.
        keep: Number of newest checkpoints to keep.

    Raises:
        InputError: The folder cannot be created or written to, or another process trains in it.
    """

    def __init__(self, path: Path, keep: int):
        self.path = path
        try:
            (path / "samples").mkdir(parents=True, exist_ok=True)
            (path / "checkpoints").mkdir(exist_ok=True)
            write_atomically(path / "writable", b"")
            (path / "writable").unlink()
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"cannot write to the output folder {path}: {error.strerror}") from None
        if not lock(self._lock):
            os.close(self._lock)
            raise InputError(f"another process trains in {path}: wait for it, or choose another --out")
        self.checkpoints = CheckpointFolder(path / "checkpoints", keep)
        self._stats = path / "stats.jsonl"
        self._tensorboard: SummaryWriter | None = None
        self._plotted = False

    def start(self, config: TrainingConfig, environment: dict[str, Any], iteration: int) -> None:
        """Write the settings and the environment, and drop statistics after `iteration`, which training will repeat."""
        for unfinished in self.path.rglob(".*.partial"):
            unfinished.unlink()
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False).encode())
        append_line(self.path / "environment.jsonl", json.dumps({"iteration": iteration, **environment}))
        kept = [line for line in self.stats() if line["iteration"] <= iteration]
        write_atomically(self._stats, "".join(json.dumps(line) + "\n" for line in kept).encode())
        # TensorBoard cannot write to a path that is not valid UTF-8.
        with suppress(UnicodeEncodeError):
            self._tensorboard = SummaryWriter(self.path / "tensorboard", purge_step=iteration + 1)

    def stats(self) -> list[dict[str, Any]]:
        """Return the lines of stats.jsonl, without lines that a crash cut short or a disk garbled."""
        if not self._stats.exists():
            return []
        lines = []
        for line in self._stats.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            with suppress(ValueError):
                lines.append(json.loads(line))
        return [line for line in lines if _is_of_an_iteration(line)]

    def record(self, line: dict[str, Any]) -> None:
        """Append a line to stats.jsonl, and its numbers to TensorBoard."""
        append_line(self._stats, json.dumps(line))
        self._plotted = False
        if self._tensorboard is None:
            return
        for name, value in line.items():
            if name != "iteration" and not isinstance(value, str):
                self._tensorboard.add_scalar(name, value, line["iteration"])

    def write_samples(self, grids: Sequence[TitledGrid], iteration: int) -> Path:
        """Write `samples/NNNNNNNN.gif` and return its path; clips that are not gray or RGB show their first channel."""
        path = self.path / "samples" / f"{iteration:08d}.gif"
        shown = [grid if grid.clips.shape[-1] in (1, 3) else grid._replace(clips=grid.clips[..., :1]) for grid in grids]
        clip = stack_grids(shown, _COLUMNS)
        # Fewer frames per second make clips of under 16 frames last one second.
        write_videos(path, clip, fps=min(16, clip.shape[1]))
        return path

    def plot(self) -> None:
        """Draw `loss.png` from stats.jsonl, and `scores.png` if there were evaluations, unless nothing is new."""
        if self._plotted:
            return
        # The flag is set before the lines are read, since training may record more lines meanwhile.
        self._plotted = True
        losses, evaluations = read_stats(self._stats)
        name = printable(self.path.resolve().name)
        write_atomically(self.path / "loss.png", bytes_of(loss_figure(name, losses), "png"))
        if evaluations:
            # A resumed run may have another classifier, whose scores cannot be compared.
            figure = score_figure({name: comparable(evaluations)})
            write_atomically(self.path / "scores.png", bytes_of(figure, "png"))

    def close(self) -> None:
        """Flush TensorBoard, and unlock the folder."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        os.close(self._lock)


def _is_of_an_iteration(line):
    numbers = {"iteration": int, "seconds": (int, float)}
    return isinstance(line, dict) and all(isinstance(line.get(name), kind) for name, kind in numbers.items())
