"""Run folders, opened for reading."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from tgan_fast.errors import InputError, printable
from tgan_fast.metrics.score_kinds import ScoreKind

_GIF = re.compile(r"\d{8}\.gif")
_VALUE = str | int | float | None
# Integers that floating-point numbers represent exactly.
_Count = Annotated[int, Field(ge=0, le=2**53)]
# Larger than the squares of float32's largest number summed over features, with room for axes.
_Scored = Annotated[FiniteFloat, Field(ge=-1e100, le=1e100)]


class _Line(BaseModel):
    """Line of a JSON-lines file; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)


class Losses(_Line):
    """Mean losses over the log interval that ended with `iteration`; `seconds` is the training time so far."""

    iteration: _Count
    seconds: FiniteFloat
    loss_discriminator: float
    loss_generator: float


class Evaluation(_Line):
    """Scores during training; `seconds` is the training time so far, without evaluations."""

    iteration: _Count
    seconds: FiniteFloat
    protocol: str
    classifier: str
    inception_score: _Scored | None = None
    frechet_distance: _Scored | None = None

    def score(self, kind: ScoreKind) -> float | None:
        """Return a score, or None if it was not computed."""
        return getattr(self, kind.name, None)


class RecordedScore(_Line):
    """Mean and standard deviation over several runs; `real` is the score of as many real clips."""

    mean: float
    std: float
    real: float | None = None
    layer: str | None = None
    real_clips: int | None = None


class ScoreRecord(_Line):
    """Scores of one checkpoint from the command `evaluate`."""

    checkpoint: str
    weights: str
    protocol: str
    samples: int
    runs: int
    seed: int
    precision: str
    iteration: int | None = None
    classifier: str | None = None
    inception_score: RecordedScore | None = None
    frechet_distance: RecordedScore | None = None
    frechet_video_distance: RecordedScore | None = None
    frame_frechet_distance: RecordedScore | None = None
    notices: list[str] = Field([], alias="remarks")

    def score(self, kind: ScoreKind) -> RecordedScore | None:
        """Return a score, or None if it was not computed."""
        return getattr(self, kind.name)


@dataclass(frozen=True)
class RecordedRun:
    """Records of a run.

    Attributes:
        path: Path of the run folder.
        config: Settings of the latest start.
        starts: Iteration and versions at the first start and every resumption.
        losses: Losses in the order of iterations.
        evaluations: Evaluations during training in the order of iterations.
        scores: Scores of checkpoints in the order of their evaluation.
        samples: Path of the newest GIF; None if there is none.
        has_best: Whether there is a best checkpoint.
    """

    path: Path
    config: dict[str, str | int | float | None]
    starts: list[dict[str, str | int | float | None]]
    losses: list[Losses]
    evaluations: list[Evaluation]
    scores: list[ScoreRecord]
    samples: Path | None
    has_best: bool

    @property
    def name(self) -> str:
        """Name of the folder, with unprintable bytes escaped."""
        return printable(self.path.resolve().name)

    @property
    def iterations(self) -> int:
        """Number of recorded iterations."""
        return max((line.iteration for line in (*self.losses, *self.evaluations)), default=0)

    @property
    def seconds(self) -> float:
        """Recorded training time."""
        return max((line.seconds for line in (*self.losses, *self.evaluations)), default=0.0)

    @property
    def comparable(self) -> list[Evaluation]:
        """Evaluations with the protocol and classifier of the last one, which a resumed run can change."""
        return comparable(self.evaluations)

    @property
    def left_out(self) -> str | None:
        """Sentence on how many evaluations are not comparable with the last one; None if all are."""
        count = len(self.evaluations) - len(self.comparable)
        return f"{count} evaluations under another protocol or with another classifier are left out" if count else None


def open_run(path: Path) -> RecordedRun:
    """Read the folder of a run, which may still be training. A last line that a crash cut short is left out.

    Raises:
        InputError: The folder is not a run folder, or a file in it cannot be read or is damaged; the message names the
            file and, for damage in a line, its number.
    """
    config = path / "config.yaml"
    if not config.is_file():
        what = "is not a run folder: it has no config.yaml" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; give the folder that python -m tgan_fast.train made")
    losses, evaluations = read_stats(path / "stats.jsonl")
    scores = path / "scores.jsonl"
    return RecordedRun(
        path=path,
        config=_read_config(config),
        starts=[_values_of(values, where) for where, values in _lines(path / "environment.jsonl")],
        losses=losses,
        evaluations=evaluations,
        scores=[_checked(ScoreRecord, values, where) for where, values in _lines(scores)],
        samples=max((gif for gif in path.glob("samples/*.gif") if _GIF.fullmatch(gif.name)), default=None),
        has_best=(path / "checkpoints" / "best.pt").is_file(),
    )


def read_stats(path: Path) -> tuple[list[Losses], list[Evaluation]]:
    """Return the losses and the evaluations in a stats.jsonl; none if there is no file.

    Raises:
        InputError: The file cannot be read or is damaged; the message names the line.
    """
    losses, evaluations = [], []
    for where, values in _lines(path):
        if {"inception_score", "frechet_distance"}.isdisjoint(values):
            losses.append(_checked(Losses, values, where))
        else:
            evaluations.append(_checked(Evaluation, values, where))
    return losses, evaluations


def comparable(evaluations: list[Evaluation]) -> list[Evaluation]:
    """Return the evaluations with the protocol and the classifier of the last one."""
    return [
        line
        for line in evaluations
        if (line.protocol, line.classifier) == (evaluations[-1].protocol, evaluations[-1].classifier)
    ]


def best_of(evaluations: list[Evaluation], kind: ScoreKind) -> Evaluation | None:
    """Return the first evaluation with the best score; None if none has this score."""
    scored = [line for line in evaluations if line.score(kind) is not None]
    return kind.best(scored, key=lambda line: line.score(kind)) if scored else None


def last_of(evaluations: list[Evaluation], kind: ScoreKind) -> Evaluation | None:
    """Return the last evaluation that has this score; None if none has."""
    return next((line for line in reversed(evaluations) if line.score(kind) is not None), None)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each line, in words, and its values."""
    # Lines are split before decoding, since a crash can leave half of a character.
    for number, line in enumerate(_read_or_empty(path).split(b"\n")[:-1], start=1):
        where = f"{path}, line {number}"
        try:
            values = json.loads(line.decode())
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise InputError(f"{where} is damaged: it is not a JSON object; remove the line or restore the file")
        yield where, values


def _read_or_empty(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _read_config(path):
    try:
        values = yaml.safe_load(_read_or_empty(path).decode())
    except InputError:
        raise
    except Exception as error:  # PyYAML raises errors of many types for invalid values
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        raise InputError(f"{path}{line} is damaged: it is not YAML; restore it from a checkpoint's config") from None
    return _values_of(values, str(path))


def _values_of(values, where):
    """Return values if they are a mapping of names to strings, numbers or None."""
    if not isinstance(values, dict):
        raise InputError(f"{where} is damaged: it must hold lines of 'key: value'")
    for name, value in values.items():
        if not (isinstance(name, str) and isinstance(value, _VALUE)):
            raise InputError(f"{where} is damaged: {name} is {type(value).__name__}, but must be text or a number")
    return values


_Checked = TypeVar("_Checked", bound=_Line)


def _checked(kind: type[_Checked], values: dict[str, Any], where: str) -> _Checked:
    try:
        return kind.model_validate(values)
    except ValidationError as errors:
        error = errors.errors()[0]
        key, problem = ".".join(map(str, error["loc"])), error["msg"][0].lower() + error["msg"][1:]
        raise InputError(f"{where} is damaged: {key}: {problem.replace('input should', 'it must')}") from None
