"""Prefetching: threads make batches, and copy them to a GPU, before they are needed."""

import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

Made = TypeVar("Made")
Tensors = tuple[torch.Tensor, ...]


class TensorSpec(NamedTuple):
    """Shape and dtype of one tensor of a batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Filling(NamedTuple):
    """Recipe for batches of tensors: `fill(k, *arrays)` writes batch `k` into an array for each of `specs`."""

    fill: Callable[..., None]
    specs: tuple[TensorSpec, ...]

    def empty(self, **options) -> Tensors:
        """Return the tensors of one batch, with the options of `torch.empty`."""
        return tuple(torch.empty(spec.shape, dtype=spec.dtype, **options) for spec in self.specs)

    def write(self, k: int, host: Tensors) -> None:
        """Write batch `k` into tensors in host memory."""
        self.fill(k, *(tensor.numpy() for tensor in host))


def made_ahead(make: Callable[[int], Made], start: int, workers: int) -> Generator[Made, None, None]:
    """Yield make(start), make(start + 1), … without end, each made by a thread before its turn.

    `make(k + batches_ahead(workers))` begins only when the caller asks for the item after `make(k)`. An error in `make`
    is raised when its item is due. Closing the generator ends the threads.
    """
    depth = batches_ahead(workers)
    with ThreadPoolExecutor(workers, thread_name_prefix="clips") as pool:
        ahead = deque(pool.submit(make, k) for k in range(start, start + depth))
        try:
            for k in itertools.count(start + depth):
                yield ahead.popleft().result()
                ahead.append(pool.submit(make, k))
        finally:
            pool.shutdown(cancel_futures=True)


def batches_ahead(workers: int) -> int:
    """Return how many batches are ready or in progress at any time."""
    return max(4, 2 * workers)


def filled_ahead(filling: Filling, start: int, workers: int) -> Generator[Tensors, None, None]:
    """Yield batches start, start + 1, … without end, each in its own memory."""

    def make(k):
        batch = filling.empty()
        filling.write(k, batch)
        return batch

    return made_ahead(make, start, workers)


def uploaded_ahead(filling: Filling, start: int, workers: int, device: torch.device) -> Generator[Tensors, None, None]:
    """Yield batches start, start + 1, … on a GPU without end, each valid until the next one is asked for.

    The caller must launch its work on a batch on the stream that is current when it asks for the next one. The caller
    waits for the GPU only when it is `batches_ahead` batches ahead of it.
    """
    slots = [_Slot(filling, device) for _ in range(batches_ahead(workers))]
    copies = torch.cuda.Stream(device)

    def make(k):
        slot = slots[k % len(slots)]
        slot.uploaded.synchronize()
        filling.write(k, slot.host)
        with torch.cuda.stream(copies):
            copies.wait_event(slot.consumed)
            for target, source in zip(slot.on_device, slot.host, strict=True):
                target.copy_(source, non_blocking=True)
            slot.uploaded.record(copies)
        return slot

    made = made_ahead(make, start, workers)
    try:
        for slot in made:
            torch.cuda.current_stream(device).wait_event(slot.uploaded)
            yield slot.on_device
            slot.consumed.record(torch.cuda.current_stream(device))
    finally:
        made.close()
        # The slots' memory returns to an allocator that does not track this stream.
        copies.synchronize()


class _Slot:
    """Memory for one batch on the host and the device, and events that mark the ends of its uses."""

    def __init__(self, filling, device):
        self.host = filling.empty(pin_memory=True)
        self.on_device = filling.empty(device=device)
        # Waiting for a blocking event puts a thread to sleep; for others it spins.
        self.uploaded = torch.cuda.Event(blocking=True)
        self.consumed = torch.cuda.Event()
        # Work queued on the current stream may still use this memory.
        self.consumed.record(torch.cuda.current_stream(device))
