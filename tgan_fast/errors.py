"""Errors that users can fix, with a problem and a remedy in one sentence; classification of PyTorch errors."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Texts of torch.OutOfMemoryError, the CPU's allocator, the CUDA runtime and its libraries.
_OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|allocate memory|ALLOC(ATION)?_FAILED", re.IGNORECASE)
# Texts of cuDNN and PyTorch for tensors of 2³¹ elements or more. Other mistakes produce them, too.
_TOO_LARGE = re.compile(
    r"find an engine|valid cuDNN algorithm|CUDNN_STATUS_(NOT_SUPPORTED|BAD_PARAM)|32.?bit", re.IGNORECASE
)
# Control characters, line and paragraph separators, changes of direction, and lone surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a CPU or GPU ran out, in PyTorch's words or a library's."""
    return isinstance(error, MemoryError) or _message_matches(error, _OUT_OF_MEMORY)


def may_be_too_large(error: BaseException) -> bool:
    """Return whether an error may come from tensors of 2³¹ elements or more, which some operations do not take."""
    return _message_matches(error, _TOO_LARGE)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def refuse_out_of_memory(message: str) -> Iterator[None]:
    """Raise an InputError with this message if memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(message) from None


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 iteration", "2,000 iterations"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Return a text on one line, with control characters and invalid UTF-8 of file names escaped."""
    return _UNPRINTABLE.sub(lambda match: _escaped(match[0]), text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for an unknown name, or an empty text if no known name is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def _escaped(character):
    # Python represents a byte that is not valid UTF-8 as one of 128 surrogates.
    is_byte = "\udc80" <= character <= "\udcff"
    return f"\\x{ord(character) & 0xFF:02x}" if is_byte else ascii(character)[1:-1]


def _message_matches(error, pattern):
    return isinstance(error, RuntimeError) and pattern.search(str(error)) is not None


class _UserError(Exception):
    """Error whose message is shown to the user."""

    def __str__(self) -> str:
        # File names may have line breaks, escape sequences and bytes that are not text.
        return printable(super().__str__())


class InputError(_UserError):
    """Error in something that the user gave; command lines print the message and exit with code 2."""


class NonFiniteError(_UserError):
    """Loss or weight that became infinite or NaN; command lines print the message and exit with code 1."""


class UnreadableVideoError(Exception):
    """Video that cannot be read, with the reason as message; preparation continues without it."""
