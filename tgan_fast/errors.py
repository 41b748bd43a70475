"""Errors that are the user's to mend: one sentence each, which names the thing and the remedy."""


class InputError(Exception):
    """Something given to the package does not work; command lines print the message and exit with code 2."""


class NonFiniteError(Exception):
    """A loss or a weight became infinite or NaN; command lines print the message and exit with code 1."""


class UnreadableVideoError(Exception):
    """A video cannot be read, for the reason that the message gives; preparing a data set goes on without it."""
