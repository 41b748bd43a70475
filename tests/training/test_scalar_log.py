"""Scalars of iterations: complete, in order, and the first that is not finite is named."""

import pytest
import torch

from tgan_fast.errors import NonFiniteError
from tgan_fast.training.scalar_log import ScalarLog

NAMES = ("loss", "score")


def numbers(device, broken=0, largest_weight=1.5):
    return torch.tensor(broken, dtype=torch.int32, device=device), torch.tensor(largest_weight, device=device)


def filled(rows, iteration, device, broken=0):
    log = ScalarLog()
    for row in rows:
        log.append(torch.tensor(row, device=device))
    log.end_interval(iteration, *numbers(device, broken))
    return log


def test_an_interval_has_all_iterations_since_the_last_one(device):
    log = filled([[1.0, 2.0], [3.0, 6.0]], 12, device)
    interval = log.take(wait=True)
    assert (interval.first, interval.last, interval.rows) == (10, 12, [[1, 2], [3, 6]])
    assert interval.largest_weight == 1.5
    assert interval.means() == [2, 4]
    assert interval.seconds > 0
    interval.check(NAMES)
    assert log.take(wait=True) is None
    log.append(torch.tensor([5.0, 7.0], device=device))
    log.end_interval(13, *numbers(device, largest_weight=2000.0))
    interval = log.take(wait=True)
    assert (interval.rows, interval.largest_weight) == ([[5, 7]], 2000)


def test_nothing_appended_is_no_interval(device):
    assert filled([], 3, device).take(wait=True) is None


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_first_value_that_is_not_finite_is_named(device, value):
    interval = filled([[1.0, 2.0], [3.0, float(value)], [float("nan"), 0.0]], 9, device).take(wait=True)
    with pytest.raises(NonFiniteError, match=f"^score is {value} in iteration 8$"):
        interval.check(NAMES)


def test_a_broken_weight_is_reported(device):
    interval = filled([[1.0, 2.0]], 9, device, broken=1).take(wait=True)
    with pytest.raises(NonFiniteError, match=r"^a weight of the discriminator is no longer finite after 9 iterations$"):
        interval.check(NAMES)


@pytest.mark.gpu
def test_reading_does_not_wait_for_the_gpu():
    log = filled([[1.0, 2.0]], 1, "cuda")
    log.take(wait=True)
    torch.cuda._sleep(1 << 30)
    log.append(torch.ones(2, device="cuda"))
    log.end_interval(2, *numbers("cuda"))
    assert log.take() is None
    assert log.take(wait=True).rows == [[1, 1]]
