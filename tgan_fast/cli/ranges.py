"""Bounds of the numbers that options take."""

import math

from tgan_fast.errors import InputError

# PyTorch takes more, but some seeds are counted up from the one that is given.
LARGEST_SEED = 2**63 - 1
MOST_SAMPLES = 1_000_000


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
