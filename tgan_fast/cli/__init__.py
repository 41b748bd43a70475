"""The commands, one module each, and what happens around each of them: signals, exit codes, errors in one sentence.

Importing this imports neither PyTorch nor a library, so that Ctrl-C ends a command quietly from the beginning.
"""

import difflib
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

COMMANDS = {
    "train": "Train on videos or moving digits.",
    "sample": "Sample videos from a checkpoint.",
    "evaluate": "Compute the inception score, FID and FVD of a checkpoint.",
    "export": "Write a generator for other programs.",
    "prepare": "Turn videos into a clip store to train on.",
    "store": "Verify, preview or export a clip store.",
    "report": "Make one HTML page of a run.",
    "compare": "Compare the scores of runs.",
    "gam": "Let trained GANs judge each other.",
    "train-classifier": "Train a classifier of videos for evaluate.",
    "convert-classifier": "Convert C3D's weights for evaluate.",
}
_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run the command that the process's arguments name."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        run(None, [])
    run(name, arguments)


def run(name: str | None, arguments: Sequence[str]) -> None:
    """Run a command and end the process: exit code 0, 2 after a user's error, 1 after one of the training.

    Args:
        name: One of `COMMANDS`; None lists them.
        arguments: Arguments of the command.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names may have characters, or bytes, that a terminal's encoding does not have.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _exit_code(name, arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has seen enough, such as `head`. What is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _exit_code(name, arguments):
    if name is None:
        print(_overview())
        return 0
    if name not in COMMANDS:
        matches = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {matches[0]}?" if matches else f": choose {', '.join(COMMANDS)}"
        return _told(f"there is no command {name}{hint}", 2)
    with _killed_by_ctrl_c():
        from tgan_fast.errors import InputError, NonFiniteError

        command = importlib.import_module(f"tgan_fast.cli.{name.replace('-', '_')}")
    try:
        command.main(arguments)
    except InputError as error:
        return _told(error, 2)
    except NonFiniteError as error:
        return _told(error, 1)
    except KeyboardInterrupt:
        return _told("interrupted", _INTERRUPTED)
    except SystemExit as end:
        return end.code
    return 0


@contextmanager
def _killed_by_ctrl_c() -> Iterator[None]:
    """Let SIGINT end the process without a traceback, also in imports that would take a KeyboardInterrupt amiss."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _told(problem, code):
    # Of several processes that torchrun has started, each says which it is.
    rank = int(os.environ.get("RANK", "0"))
    sys.stderr.write(f"error{f' of process {rank}' if rank else ''}: {problem}\n")
    return code


def _overview():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(["usage: python -m tgan_fast COMMAND [--help]", "", *lines])
