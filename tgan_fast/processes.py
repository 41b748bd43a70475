"""Processes that work together, one for each GPU, started by torchrun; usually only one."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist

from tgan_fast.devices import resolve_device
from tgan_fast.errors import InputError

if dist.is_available():
    # Its functions take the group of all processes at import as a default argument. Imported here, before there is a
    # group, they take None. If torch._dynamo imported it later, they would keep gloo's threads alive beyond Python.
    import torch.distributed.nn.functional


Item = TypeVar("Item")
Result = TypeVar("Result")


class Processes:
    """Current process and its peers.

    Args:
        group: Process group of torch.distributed; None: this process alone.

    Attributes:
        rank: Index of this process.
        size: Number of processes.
        group: Process group, or None.
        backend: Backend of the group, or None.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None):
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.backend = None if group is None else dist.get_backend(group)

    def average_(self, tensor: torch.Tensor) -> None:
        """Average a tensor over the processes, in place; the result has the same bits in all of them."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
            tensor.div_(self.size)

    def gather(self, number: int) -> list[int]:
        """Return one number of every process, in the order of ranks. Waits for all of them."""
        if self.size == 1:
            return [number]
        device = "cuda" if self.backend == "nccl" else "cpu"
        numbers = torch.zeros(self.size, dtype=torch.int64, device=device)
        numbers[self.rank] = number
        dist.all_reduce(numbers, group=self.group)
        return numbers.tolist()

    def any(self, condition: bool) -> bool:
        """Return whether a condition holds in any process. Waits for all of them."""
        return any(self.gather(int(condition)))

    def share(self, items: Iterable[Item], compute: Callable[[Item], Result]) -> Iterator[Result]:
        """Yield the results for all items in order. The processes take turns, and each gets all results.

        Args:
            items: The same items in every process.
            compute: Function of an item; its results must be picklable and hold no tensors of a GPU.
        """
        if self.size == 1:
            yield from map(compute, items)
            return
        remaining = iter(items)
        while turn := list(islice(remaining, self.size)):
            own = compute(turn[self.rank]) if self.rank < len(turn) else None
            results: list = [None] * self.size
            dist.all_gather_object(results, own, group=self.group)
            yield from results[: len(turn)]

    def different(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Return the ranks of the processes whose tensors differ from those of process 0. Waits for all of them."""
        checksum = int(sum(tensor.view(torch.int32).sum(dtype=torch.int64) for tensor in tensors))
        checksums = self.gather(checksum)
        return [rank for rank, number in enumerate(checksums) if number != checksums[0]]


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun has started, or stay alone, and yield the processes and this one's device.

    Args:
        device: Name of the device; with `auto` and `cuda` each of several processes gets its own GPU.

    Raises:
        InputError: There is no such device, or there are fewer GPUs than processes.
    """
    initialized = dist.is_available() and dist.is_initialized()
    alone = not initialized and int(os.environ.get("WORLD_SIZE", "1")) == 1
    resolved = resolve_device(device) if alone or initialized else _own_device(device)
    # Streams and events belong to the current GPU, which would otherwise be the first one.
    with torch.cuda.device(resolved) if resolved.type == "cuda" else nullcontext():
        if alone:
            yield Processes(), resolved
            return
        if not initialized:
            dist.init_process_group("nccl" if resolved.type == "cuda" else "gloo")
        processes = Processes(dist.group.WORLD)
        try:
            yield processes, resolved
        finally:
            if not initialized:
                dist.destroy_process_group()
                # Drop the last reference, so that gloo's threads end, which must not outlive Python.
                processes.group = None


def _own_device(name):
    device = resolve_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None:
        raise InputError(f"--device {name} is one GPU for all processes: choose auto, cuda or cpu")
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise InputError(f"there are more processes than GPUs on this machine: start torchrun with at most {count}")
    return torch.device("cuda", local)
