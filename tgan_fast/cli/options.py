"""Typed options of the commands: parsing and checks, with errors in one sentence."""

import contextlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from tgan_fast.choices import WeightsOption
from tgan_fast.errors import InputError, nearest

# PyTorch takes larger seeds, but commands also use seeds just above the given one.
LARGEST_SEED = 2**63 - 1
MOST_SAMPLES = 1_000_000
# All frames of a video are made at once.
MOST_FRAMES = 10_000

CheckpointPath = Annotated[
    Path,
    tyro.conf.arg(
        help="Checkpoint file of this package or of the PyTorch notebook, run folder (its newest checkpoint is used), "
        "exported .safetensors file, or digits (the trained generator in the package)."
    ),
]
Weights = Annotated[
    WeightsOption,
    tyro.conf.arg(
        help="Weights to use: live, or ema (averaged, of a run with ema_decay); auto: ema if the run has them."
    ),
]
Device = Annotated[str, tyro.conf.arg(help="Device: auto (a GPU if there is one), cpu, cuda, cuda:1, …")]
KeepMemory = Annotated[
    bool,
    tyro.conf.arg(
        help="Keep freed memory for reuse until the command ends, which is faster; only on a CPU and with glibc."
    ),
]

Command = TypeVar("Command")


class OptionError(InputError):
    """Error in an option: it is unknown or missing, or its value has the wrong type."""


def parse(command: type[Command], arguments: Sequence[str], *, default: Command | None = None, prog: str) -> Command:
    """Return the options of a command line as an instance of the dataclass `command`.

    Raises:
        OptionError: An option is unknown (the nearest known one is named) or missing, or has a value of a wrong type.
        InputError: The dataclass refuses its values.
        SystemExit: Help was asked for.
    """
    parsed, unknown = parse_known(command, arguments, default=default, prog=prog)
    if unknown:
        name = unknown[0].split("=")[0]
        known = ["--help", *(f"--{option.replace('_', '-')}" for option in _option_names(parsed))]
        raise OptionError(f"there is no option {name}{nearest(name, known)}")
    return parsed


def parse_known(
    command: type[Command], arguments: Sequence[str], *, default: Command | None = None, prog: str
) -> tuple[Command, list[str]]:
    """Return the options that `command` has and the unknown arguments; raise the errors of `parse`."""
    options = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(command, args=list(arguments), prog=prog, return_unknown_args=True, **options)
    except SystemExit as end:
        if end.code:
            raise OptionError(_sentence(told.getvalue())) from None
        raise


def check_range(command: object, name: str, least: int, most: float = math.inf) -> None:
    """Raise an InputError unless an option is a number from `least` to `most`, or None because it was not given.

    Args:
        command: Dataclass of the options.
        name: Field of the option.
        least: Smallest allowed value.
        most: Largest allowed value; by default there is none.
    """
    value, option = getattr(command, name), f"--{name.replace('_', '-')}"
    if value is None:
        return
    if not value >= least:
        raise InputError(f"{option} is {value}, but must be at least {least:,}")
    if value > most:
        raise InputError(f"{option} is {value}, but must be at most {most:,}")


def check_class(command, generator) -> None:
    """Raise an InputError unless the option --class of a command is None or a class of the generator."""
    if command.class_ is None:
        return
    if not generator.classes:
        raise InputError(f"{command.checkpoint} was trained without classes: leave out --class")
    if not 0 <= command.class_ < generator.classes:
        raise InputError(f"--class is {command.class_}, but the classes are 0 to {generator.classes - 1}")


# Messages of tyro, and the package's wording of them: "name is value, but must be …".
_KINDS = {"INT": "an integer", "FLOAT": "a number"}
_PHRASES = (
    (r"invalid choice (?P<value>.*) for argument '(?P<name>.*)'\. Expected one of \((?P<choices>.*?),?\)\.",
     "{name} is {value}, but must be one of {choices}"),
    (r"Missing value for argument '(?P<name>.*)'\. .*", "{name} needs a value"),
    (r"Error parsing (?P<name>\S+): .*(?:instantiated from \[|: )(?P<value>'.*?')(?:\]\. Got errors: .*)?",
     "{name} is {value}, but must be {kind}"),
)  # fmt: skip


def _sentence(box):
    """Return the message in tyro's error box, which stands below its title and above the first rule."""
    lines = [line.strip("│").rstrip() for line in box.splitlines()[1:]]
    parts = [list(group) for rules, group in groupby(lines, _is_rule) if not rules] or [[box]]
    if parts[0][0].strip().startswith("Missing from"):
        # Options are indented by four columns, the help of each by more.
        missing = [line.strip() for line in parts[0][1:] if len(line) - len(line.lstrip()) <= 6]
        return f"missing: {', '.join(missing)}; --help describes what is needed"
    message, *described = (" ".join(" ".join(part).split()) for part in parts)
    for pattern, phrase in _PHRASES:
        if match := re.fullmatch(pattern, message):
            kind = re.search(r"(INT|FLOAT)\b", " ".join(described))
            if kind or "{kind}" not in phrase:
                return phrase.format(**match.groupdict(), kind=kind and _KINDS[kind[1]])
    return message


def _is_rule(line):
    """Return whether a line is one of the box itself, as tyro draws it for a terminal of UTF-8 or of ASCII."""
    return bool(line.strip()) and not line.strip(" ─-╰╯")


def _option_names(value):
    names = [field.name for field in fields(value)] if is_dataclass(value) else list(type(value).model_fields)
    for name in names:
        nested = getattr(value, name)
        if hasattr(type(nested), "model_fields"):
            yield from _option_names(nested)
        else:
            yield name
