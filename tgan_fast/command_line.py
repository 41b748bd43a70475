"""What all command lines share: typed options, and errors in one sentence."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import TypeVar

import tyro

from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.training.config import nearest

Command = TypeVar("Command")


def parse(command: type[Command], arguments: Sequence[str], *, default: Command | None = None, prog: str) -> Command:
    """The options of a command line as an instance of the dataclass `command`.

    Raises:
        InputError: an unknown option, with the nearest known one.
        SystemExit: help was asked for (0), or a value is of the wrong type (2).
    """
    options = {} if default is None else {"default": default}
    parsed, unknown = tyro.cli(command, args=list(arguments), prog=prog, return_unknown_args=True, **options)
    if unknown:
        name = unknown[0].split("=")[0]
        known = [f"--{option.replace('_', '-')}" for option in _option_names(parsed)]
        raise InputError(f"there is no option {name}{nearest(name, known)}")
    return parsed


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run `main` on the process's arguments; user errors become one line on stderr and an exit code."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        _fail(error, 2)
    except NonFiniteError as error:
        _fail(error, 1)


def _fail(error, code):
    # Of several processes that torchrun has started, each says which it is.
    rank = int(os.environ.get("RANK", "0"))
    sys.stderr.write(f"error{f' of process {rank}' if rank else ''}: {error}\n")
    sys.exit(code)


def _option_names(value):
    names = [field.name for field in fields(value)] if is_dataclass(value) else list(type(value).model_fields)
    for name in names:
        nested = getattr(value, name)
        if hasattr(type(nested), "model_fields"):
            yield from _option_names(nested)
        else:
            yield name
