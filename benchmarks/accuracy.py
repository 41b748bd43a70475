"""Accuracy of contenders, checked before anything is timed."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch

from benchmarks import harness
from benchmarks.result_files import rounded

# Both results of a comparison are rounded to float32 or a lower precision.
FLOAT32_ROUNDING = 2 * torch.finfo(torch.float32).eps

Error = TypeVar("Error", float, tuple[float, ...], dict[str, float])


def check_contenders(
    case: object,
    calls: Mapping[str, Callable[[], Any]],
    error_of: Callable[[Any], Error],
    allowed: Callable[[str, dict[str, Error]], Error],
    rivals: Collection[str] = (),
) -> tuple[dict[str, Error], dict[str, str]]:
    """Return the errors of contenders that are accurate enough, and the reasons why rivals are left out.

    Args:
        case: Name of the case, for messages.
        calls: Contenders as calls without arguments, by name.
        error_of: Function that returns the error of a call's result: a number, or one for each of several results.
        allowed: Function that returns the largest allowed error of a contender, given its name and all errors.
        rivals: Names of contenders that are left out if they are too inexact; for others that is a SystemExit.
    """
    errors, left_out = {}, {}
    for name, call in calls.items():
        try:
            errors[name] = error_of(call())
        except (RuntimeError, ImportError) as error:
            if name not in rivals:
                raise
            left_out[name] = harness.short_reason(error)
    for name, error in errors.items():
        found, limits = _values(error), _values(allowed(name, errors))
        # The comparison is written so that NaN counts as too large.
        if not all(value <= limit for value, limit in zip(found, limits, strict=True)):
            said, most = (", ".join(f"{value:.1e}" for value in values) for values in (found, limits))
            reason = f"is off by {said}, more than {most}"
            if name not in rivals:
                raise SystemExit(f"error: {case}: {name} {reason}: nothing is timed")
            left_out[name] = reason
    return {name: error for name, error in errors.items() if name not in left_out}, left_out


def relative(got: Iterable[torch.Tensor], truth: Iterable[torch.Tensor]) -> float:
    """Return the largest error of several tensors, each relative to the norm of the true tensor."""
    errors = [(a.double() - b).norm() / b.norm() for a, b in zip(got, truth, strict=True)]
    return rounded(torch.stack(errors).max().item())  # max keeps NaN


def _values(error):
    return tuple(error.values()) if isinstance(error, dict) else error if isinstance(error, tuple) else (error,)
