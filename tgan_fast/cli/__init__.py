"""The commands, one module each, and what they share: signals, exit codes, errors in one sentence.

This module imports no library, so that Ctrl-C ends a command quietly from the start. A command's module imports only
what its options need; its functions import the rest, so that help and wrong options are answered without PyTorch.
"""

import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from tgan_fast.errors import InputError, NonFiniteError, nearest, printable
from tgan_fast.extras import how_to_install

COMMANDS = {
    "train": "Train on videos or moving digits.",
    "sample": "Sample videos from a checkpoint.",
    "project": "Find the latents with which a generator reproduces a video.",
    "evaluate": "Compute the inception score, FID and FVD of a checkpoint or of videos.",
    "export": "Export a generator for use in other programs.",
    "prepare": "Turn videos into a clip store to train on.",
    "store": "Verify, preview or export a clip store.",
    "report": "Make an HTML page of a run.",
    "compare": "Compare the scores of runs.",
    "gam": "Compare two trained GANs by the generative adversarial metric.",
    "train-classifier": "Train a video classifier for evaluate.",
    "convert-classifier": "Convert C3D's weights to a classifier for evaluate.",
}
INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run the command that the process's arguments name."""
    name, *arguments = sys.argv[1:] or ["--help"]
    run(None if name in ("-h", "--help") else name, arguments)


def run(name: str | None, arguments: Sequence[str]) -> None:
    """Run a command and end the process with exit code 0, 2 for wrong input, 1 for numbers that are not finite.

    Args:
        name: One of `COMMANDS`; None lists them.
        arguments: Arguments of the command.
    """
    # Where SIGINT is ignored, as in a shell's background, it stays ignored. Only a main thread may handle signals.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    # A shell can close both streams.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = _Lossy(sys.stderr or open(os.devnull, "w"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.__stderr__):
        # File names may contain characters or bytes outside the terminal's encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _exit_code(name, arguments)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Drop the rest of the output if a pipe's reader, such as `head`, has ended or a disk is full.
        code = 1 if error.errno == errno.EPIPE else _print_error(f"cannot write the output: {error.strerror}", 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


class _Lossy:
    """Text stream that drops what cannot be written, because a failed message must not end training."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _interrupt(number, frame):
    """Raise a KeyboardInterrupt; during a command's imports, which may turn it into another error, end the process."""
    while frame is not None:
        in_import = frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
        if in_import and frame.f_globals.get("__name__", "").startswith(__name__):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
    raise KeyboardInterrupt


def _exit_code(name, arguments):
    if name is None:
        print(_overview())
        return 0
    if name not in COMMANDS:
        remedy = nearest(name, COMMANDS) or f": choose {', '.join(COMMANDS)}"
        return _print_error(f"there is no command {name}{remedy}", 2)
    try:
        importlib.import_module(f"{__name__}.{name.replace('-', '_')}").main(arguments)
    except InputError as error:
        return _print_error(error, 2)
    except NonFiniteError as error:
        return _print_error(error, 1)
    except ModuleNotFoundError as error:
        # A package that is there but lacks a module of its own is broken.
        if not error.name or "." in error.name:
            raise
        return _print_error(f"this command needs {error.name}: {how_to_install(error.name)}", 2)
    except KeyboardInterrupt:
        return _print_error("interrupted", INTERRUPTED)
    except SystemExit as end:
        return end.code
    return 0


def _print_error(problem, code):
    """Print an error, and return the exit code."""
    # With torchrun, the message says which process failed.
    rank = int(os.environ.get("RANK", "0"))
    sys.stderr.write(f"error{f' of process {rank}' if rank else ''}: {printable(str(problem))}\n")
    return code


def _overview():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(["usage: python -m tgan_fast COMMAND [--help]", "", *lines])
