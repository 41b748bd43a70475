"""What a device reaches at most, measured in the same run as everything that is compared with it."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from benchmarks import harness
from benchmarks.results import rounded
from tgan_fast.precision import Precision, arithmetic, compute_dtype

_COPY = "copy"
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


class Work(NamedTuple):
    """What an operation has to compute, multiplications and additions each counted, and to move."""

    flops: float
    nbytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Whichever takes longer."""
        return max(self.flops / flops_per_second, self.nbytes / bytes_per_second)


class Ceilings:
    """The rates of a large copy and of large matrix products, each measured when it is first needed."""

    def __init__(self, device: str):
        self._device = device
        self._rates: dict[str, float] = {}

    @property
    def bytes_per_second(self) -> float:
        """Read plus written by a copy."""
        return self._rate(_COPY)

    def flops_per_second(self, precision: Precision) -> float:
        """Of a matrix product."""
        return self._rate(precision)

    def measure(self, precisions: Iterable[Precision]) -> None:
        """All of them, now."""
        for name in (_COPY, *precisions):
            self._rate(name)

    def _rate(self, name):
        if name not in self._rates:
            measured = copy_bandwidth(self._device) if name == _COPY else matrix_product_rate(self._device, name)
            self._rates[name] = measured
        return self._rates[name]

    def floor(self, work: Work, precision: Precision) -> float:
        """Seconds that it takes at least."""
        # What computes nothing does not need the matrix product's rate.
        flops_per_second = self.flops_per_second(precision) if work.flops else 1.0
        return work.seconds(flops_per_second, self.bytes_per_second)

    def record(self) -> dict[str, float]:
        """What goes into the file of results: those that were needed, by `copy` and by precision."""
        return {name: rounded(rate) for name, rate in self._rates.items()}

    def __str__(self):
        rates = dict(self._rates)
        copy = [f"copy {rates.pop(_COPY) / 1e9:.0f} GB/s"] if _COPY in rates else []
        products = [f"matrix product in {name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items()]
        return ", ".join(copy + products)


def copy_bandwidth(device: str) -> float:
    """Bytes read plus written per second when a large tensor is copied: the ceiling of what moves bytes."""
    source = torch.rand(_COPY_BYTES[device] // 4, device=device)
    return 2 * source.nbytes / _fastest(torch.empty_like(source).copy_, source, device)


def matrix_product_rate(device: str, precision: Precision) -> float:
    """Operations per second of a large square matrix product of random numbers: the ceiling of convolutions."""
    side = _MATRIX_SIDE[device]
    dtype = compute_dtype(precision, torch.float32)
    left, right = (torch.rand(side, side, device=device).sub_(0.5).to(dtype) for _ in range(2))

    def product(_):
        with arithmetic(precision):
            return left @ right

    return 2 * side**3 / _fastest(product, None, device)


def _fastest(call, inputs, device):
    """Seconds in the best of many rounds: a ceiling is what the device reaches at all."""
    return min(harness.measure({"call": call}, [inputs], device, harness.MOST_ROUNDS[device])["call"].rounds)
