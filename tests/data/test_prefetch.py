"""Prefetching by threads and copies: in order, nothing overwritten too early, nothing left behind."""

import functools
import itertools
import threading
import time

import numpy as np
import pytest
import torch
from support import simulated_streams

from tgan_fast.data.prefetch import Filling, TensorSpec, batches_ahead, filled_ahead, made_ahead, uploaded_ahead

OTHERS = set()


@pytest.fixture(autouse=True)
def _others():
    """Remember threads of earlier tests, which may not have been collected yet."""
    OTHERS.clear()
    OTHERS.update(threads())


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("clips") and thread not in OTHERS]


def pattern(k, size=1000):
    return (np.arange(size) * 7 + k * 13) % 251


def filling_of(fill, size, dtype=torch.uint8):
    """Return the filling of one vector."""
    return Filling(fill, (TensorSpec((size,), dtype),))


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("start", [0, 7])
def test_what_threads_make_comes_in_order(workers, start):
    def make(k):
        time.sleep(0.001 * (k % 3))
        return k, threading.current_thread().name

    with_names = list(itertools.islice(made_ahead(make, start, workers), 30))
    assert [k for k, _ in with_names] == list(range(start, start + 30))
    assert len({name for _, name in with_names}) == workers
    assert not threads()


@pytest.mark.parametrize("workers", [1, 3])
def test_work_runs_ahead_but_not_too_far(workers):
    begun = []
    batches = made_ahead(begun.append, 0, workers)
    for k in range(10):
        next(batches)
        deadline = time.monotonic() + 10
        while len(begun) < k + batches_ahead(workers) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.005)
        assert sorted(begun) == list(range(k + batches_ahead(workers)))
    batches.close()
    assert not threads()


def test_an_error_is_raised_in_its_turn_and_no_thread_is_left():
    def fill(k, out):
        if k == 3:
            raise OSError("batch 3 is unreadable")
        out[...] = k

    batches = filled_ahead(filling_of(fill, 2), 0, 2)
    assert [next(batches)[0].tolist() for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(OSError, match="batch 3 is unreadable"):
        next(batches)
    assert not threads()


def test_batches_on_the_cpu_have_memory_of_their_own():
    filling = filling_of(lambda k, out: np.copyto(out, k), 3)
    batches = list(itertools.islice(filled_ahead(filling, 5, 2), 20))
    assert [batch.tolist() for (batch,) in batches] == [[k] * 3 for k in range(5, 25)]


def fill_two(k, one, other):
    one[...] = pattern(k, one.size).reshape(one.shape)
    other[...] = -k


SPECS_OF_TWO = TensorSpec((5, 7), torch.uint8), TensorSpec((5,), torch.int64)


def assert_is_batch(k, batch):
    """Check a batch that `fill_two` has filled."""
    one, other = batch
    assert (one.dtype, other.dtype) == (torch.uint8, torch.int64)
    assert np.array_equal(one.cpu().numpy(), pattern(k, 35).reshape(5, 7))
    assert other.tolist() == [-k] * 5


def test_a_batch_can_be_of_several_tensors():
    batches = list(itertools.islice(filled_ahead(Filling(fill_two, SPECS_OF_TWO), 3, 2), 20))
    for k, batch in enumerate(batches, start=3):
        assert_is_batch(k, batch)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("producer", "consumer"), [(0, 0), (3e-3, 0), (0, 3e-3), (3e-3, 3e-3)])
def test_the_ring_on_simulated_streams(monkeypatch, workers, producer, consumer):
    """Each of the three waits is needed: without one, batches of a long and a short tensor are torn."""
    current, count, torn = simulated_streams.simulate(monkeypatch, torch.cuda), 60, []

    def fill(k, *arrays):
        for array in arrays:
            simulated_streams.write_slowly(array, np.full_like(array, k), producer)

    def look(k, arrays):
        before = [array.copy() for array in arrays]
        time.sleep(consumer)
        for array, copy in zip(arrays, before, strict=True):
            if not (copy == array).all() or not (array == k).all():
                torn.append(k)

    specs = TensorSpec((64,), None), TensorSpec((2,), None)
    filling = simulated_streams.SimulatedFilling(fill, specs)
    batches = uploaded_ahead(filling, 0, workers, torch.device("cpu"))
    for k, batch in enumerate(itertools.islice(batches, count)):
        current.launch(functools.partial(look, k, [memory.array for memory in batch]))
    batches.close()
    current.synchronize()
    assert not torn
    assert not threads()


def cycles(milliseconds):
    """Return the argument of `torch.cuda._sleep` for about this time."""
    return int(milliseconds * 1e6)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("slow", ["neither", "producer", "consumer", "both", "now and then"])
def test_the_ring_under_stress(workers, slow):
    """Use batches so large that a copy that begins too early is still running when it does harm."""
    size, count, random = 8 << 20, 60, np.random.default_rng(0)
    pauses = random.uniform(0, 4, (2, count + batches_ahead(workers)))
    if slow == "now and then":
        pauses *= random.integers(2, size=pauses.shape)
    else:
        pauses *= {"neither": [[0], [0]], "producer": [[1], [0]], "consumer": [[0], [1]], "both": [[1], [1]]}[slow]

    def fill(k, out):
        time.sleep(pauses[0, k] / 1e3)
        out[...] = k % 251

    batches = uploaded_ahead(filling_of(fill, size), 0, workers, torch.device("cuda"))
    extremes = []
    for k, (batch,) in enumerate(itertools.islice(batches, count)):
        torch.cuda._sleep(cycles(pauses[1, k]))
        extremes.append(torch.stack([*batch.aminmax(), batch[0], batch[-1]]))
    batches.close()
    assert torch.stack(extremes).tolist() == [[k % 251] * 4 for k in range(count)]
    assert not threads()


@pytest.mark.gpu
def test_the_ring_yields_what_was_filled_in():
    batches = uploaded_ahead(Filling(fill_two, SPECS_OF_TWO), 3, 2, torch.device("cuda"))
    for k, batch in enumerate(itertools.islice(batches, 40), start=3):
        assert all(tensor.is_cuda for tensor in batch)
        assert_is_batch(k, batch)


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_gpu():
    filling = filling_of(lambda k, out: np.copyto(out, k), 1 << 20)
    batches = uploaded_ahead(filling, 0, 1, torch.device("cuda"))
    next(batches)
    torch.cuda.synchronize()
    torch.cuda._sleep(cycles(2000))
    busy = torch.cuda.Event()
    busy.record()
    for _ in range(batches_ahead(1) - 1):
        next(batches)
    assert not busy.query()
    batches.close()


@pytest.mark.gpu
@pytest.mark.parametrize("taken", [1, 9])
def test_a_ring_that_is_closed_leaves_nothing_that_writes(taken):
    """Check that memory allocated directly afterwards keeps its values."""
    filling = filling_of(lambda k, out: np.copyto(out, 1), 4 << 20)
    batches = uploaded_ahead(filling, 0, 2, torch.device("cuda"))
    for _ in itertools.islice(batches, taken):
        torch.cuda._sleep(cycles(1))
    batches.close()
    again = [torch.zeros(4 << 20, dtype=torch.uint8, device="cuda") for _ in range(batches_ahead(2))]
    torch.cuda.synchronize()
    assert not any(memory.any() for memory in again)
    assert not threads()


@pytest.mark.gpu
def test_an_error_leaves_the_ring_as_closing_does():
    def fill(k, out):
        if k == 5:
            raise OSError("batch 5 is unreadable")

    batches = uploaded_ahead(filling_of(fill, 10), 0, 3, torch.device("cuda"))
    for _ in range(5):
        next(batches)
    with pytest.raises(OSError, match="batch 5 is unreadable"):
        next(batches)
    assert not threads()


@pytest.mark.gpu
def test_batches_can_be_read_on_another_stream():
    """Use the stream that is current when batches are requested."""
    filling = filling_of(lambda k, out: np.copyto(out, k), 4 << 20)
    stream, sums = torch.cuda.Stream(), []
    with torch.cuda.stream(stream):
        for (batch,) in itertools.islice(uploaded_ahead(filling, 0, 1, torch.device("cuda")), 20):
            torch.cuda._sleep(cycles(1))
            sums.append(batch.sum())
    stream.synchronize()
    assert torch.stack(sums).tolist() == [k * (4 << 20) for k in range(20)]
