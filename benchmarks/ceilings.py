"""Peak rates of a device, measured in the same run as the timings that are compared with them."""

from typing import NamedTuple

import torch

from benchmarks import harness
from benchmarks.result_files import rounded
from tgan_fast.precision import Precision, arithmetic, compute_dtype

_COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


class Work(NamedTuple):
    """Floating-point operations, where a multiplication and an addition count as two, and bytes to move."""

    flops: float
    nbytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Return the larger of the times for computing and for moving bytes."""
        return max(self.flops / flops_per_second, self.nbytes / bytes_per_second)


class Ceilings:
    """Rates of a large copy and of large matrix products, each measured when it is first needed."""

    def __init__(self, device: str):
        self._device = device
        self._rates: dict[str, float] = {}

    def rate(self, name: str) -> float:
        """Return the bytes per second of a `copy`, or the operations per second of a matrix product in a precision."""
        if name not in self._rates:
            copies = name == "copy"
            self._rates[name] = copy_bandwidth(self._device) if copies else matrix_product_rate(self._device, name)
        return self._rates[name]

    def floor(self, work: Work, precision: Precision) -> float:
        """Return the minimum time of work in seconds."""
        copy = self.rate("copy")
        return work.seconds(self.rate(precision) if work.flops else 1.0, copy)

    def record(self) -> dict[str, float]:
        """Return the rates that were used, for the file of results."""
        return {name: rounded(rate) for name, rate in self._rates.items()}


def copy_bandwidth(device: str) -> float:
    """Measure the bytes read and written per second when a large tensor is copied."""
    source = torch.rand(_COPY_BYTES[device] // 4, device=device)
    return 2 * source.nbytes / _fastest(torch.empty_like(source).copy_, source, device)


def matrix_product_rate(device: str, precision: Precision) -> float:
    """Measure the operations per second of a large square matrix product."""
    side, dtype = _MATRIX_SIDE[device], compute_dtype(precision, torch.float32)
    matrix = torch.rand(side, side, device=device).sub_(0.5).to(dtype)
    with arithmetic(precision):
        return 2 * side**3 / _fastest(matrix.mm, matrix.clone(), device)


def _fastest(call, inputs, device):
    # The fastest round is what the device can reach.
    return min(harness.measure({"call": call}, [inputs], device, harness.MOST_ROUNDS[device])["call"].rounds)
