"""The activation functions of batch norm + activation."""

from typing import NamedTuple


class Activation(NamedTuple):
    """An activation function and its parameter."""

    name: str = "leaky_relu"  # one of tgan_fast.choices.ActivationName
    negative_slope: float = 0.0  # of leaky_relu


IDENTITY = Activation("leaky_relu", 1.0)
