"""Estimate of the largest batch that fits into memory, from iterations on small ones."""

import gc
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tgan_fast.cuda_graph import empty_cache
from tgan_fast.errors import InputError, is_out_of_memory
from tgan_fast.training.config import TrainingConfig
from tgan_fast.training.step import TrainingStep

# Batch sizes to measure: memory grows linearly with the batch, on top of what the networks take.
_MEASURED = 16, 32
# On a GPU some operations refuse tensors with more elements.
_LARGEST_TENSOR = 2**31 - 1
# Usable share of free memory; gaps and buffers of libraries, which are not counted, take the rest.
_USABLE = 0.7
# Smallest batch to check on a CPU, whose system kills a process instead of refusing memory. A check takes a second.
_CHECKED_FROM = 64
_MEMINFO = Path("/proc/meminfo")

BuildStep = Callable[[TrainingConfig, torch.device], TrainingStep]


def refuse_too_large_a_batch(config: TrainingConfig, device: torch.device, build: BuildStep) -> None:
    """Raise an InputError if the batch will not fit into a CPU's memory. On a GPU the first iteration raises it."""
    if device.type == "cpu" and config.batch_size >= _CHECKED_FROM:
        fitting = largest_batch(config, device, build)
        if fitting < config.batch_size:
            raise InputError(too_large(config, device, fitting))


def largest_batch(config: TrainingConfig, device: torch.device, build: BuildStep, processes: int = 1) -> int:
    """Return how many videos fit into the free memory, by measuring small batches; 0 if not even these fit.

    Args:
        config: Settings of the run.
        device: Device of the run.
        build: Function that builds the step of a config on a device.
        processes: Number of processes that share the batch, each on a GPU of its own.
    """
    gc.collect()
    if device.type == "cuda":
        empty_cache()
    few, many = _MEASURED
    # The constraint's memory does not grow with the batch, and would hide how the rest grows.
    reduced = config.model_copy(update={"cuda_graph": "off", "clip_interval": 0, "critic_steps": 1})
    try:
        needs = [need_of(build(reduced, device), videos) for videos in _MEASURED]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 0
    a_video = (needs[1].bytes - needs[0].bytes) / (many - few)
    if a_video <= 0:  # cuDNN chose an algorithm with a larger workspace for the smaller batch
        a_video = needs[1].bytes / many
    fixed = needs[0].bytes - few * a_video
    fitting = max(0, int((_USABLE * _available_bytes(device) - fixed) / a_video))
    if device.type != "cuda":
        return fitting
    return processes * min(fitting, _LARGEST_TENSOR * many // needs[1].elements)


def too_large(config: TrainingConfig, device: torch.device, fitting: int, *, memory: bool = True) -> str:
    """Return the error message for a batch of which only `fitting` videos fit.

    Args:
        config: Settings of the run.
        device: Device of the run.
        fitting: Number of videos that fit.
        memory: Whether memory is the limit; otherwise it is the number of elements.
    """
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    problem = f"does not fit into the memory of {place}" if memory else f"is too large for some operations on {place}"
    remedy = f"about {fitting} would fit: choose --batch-size {fitting} or less"
    if fitting < 2:
        remedy = "too little is free even for small batches: end other programs, or choose a smaller --width"
    return f"a batch of {config.batch_size} videos {problem}; {remedy}"


class Need(NamedTuple):
    """Memory that an iteration needs.

    Attributes:
        bytes: Peak memory in bytes, including the networks.
        elements: Number of elements of the largest tensor.
    """

    bytes: int
    elements: int


def need_of(step: TrainingStep, batch_size: int) -> Need:
    """Measure iterations on `batch_size` videos."""
    model = step.discriminator
    shape = batch_size, model.channels, model.clip_frames, model.image_size, model.image_size
    videos = torch.zeros(shape, dtype=step.dtype, device=step.device)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=step.device) if model.classes else None
    with _LiveBytes() as live:
        step(videos, labels)
    if step.device.type == "cuda":
        # In the first iteration cuDNN tries algorithms, some of which take memory that later iterations do not need.
        torch.cuda.reset_peak_memory_stats(step.device)
        step(videos, labels)
        return Need(torch.cuda.max_memory_allocated(step.device), live.largest)
    fixed = sum(tensor.nbytes for network in (step.generator, step.discriminator) for tensor in network.parameters())
    # Weights, gradients and the optimizers' squares are of equal size.
    return Need(live.most + 3 * fixed, live.largest)


class _LiveBytes(TorchDispatchMode):
    """Dispatch mode that records the peak memory and the largest tensor."""

    def __enter__(self):
        self.now = self.most = self.largest = 0
        self._known = set()
        return super().__enter__()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self.largest = max(self.largest, tensor.numel())
                self._track(tensor.untyped_storage())
        return results

    def _track(self, storage):
        address, size = storage._cdata, storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._release, address, size)

    def _release(self, address, size):
        self._known.discard(address)
        self.now -= size


def _available_bytes(device):
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not _MEMINFO.exists():
        # Other systems report the total memory in a standard way, but not the free memory.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", _MEMINFO.read_text())[1])
