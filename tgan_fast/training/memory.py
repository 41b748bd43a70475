"""How large a batch the memory holds: measured with small ones."""

import gc
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tgan_fast.errors import InputError
from tgan_fast.training.config import TrainingConfig
from tgan_fast.training.step import TrainingStep

# Batches on which the need is measured: it grows in proportion to the videos, on top of what the networks take.
_MEASURED = 16, 32
# Of what is free; libraries' own buffers, which are not counted, and gaps take the rest.
_USABLE = 0.7
# A CPU's system kills a process rather than refusing it memory, so there the need is foreseen. Smaller batches than
# this are not worth the second that it takes.
_FORESEEN = 64
_MEMINFO = Path("/proc/meminfo")

BuildStep = Callable[[TrainingConfig, torch.device], TrainingStep]


def refuse_too_large_a_batch(config: TrainingConfig, device: torch.device, build: BuildStep) -> None:
    """On a CPU, raise an InputError if the batch will not fit; a GPU says so itself, and soon."""
    if device.type == "cpu" and config.batch_size >= _FORESEEN:
        fitting = _largest_batch(config, device, build)
        if fitting < config.batch_size:
            raise InputError(_sentence(config, device, fitting))


def out_of_memory(config: TrainingConfig, device: torch.device, build: BuildStep, processes: int) -> str:
    """The sentence for a run whose memory has run out, and of which nothing is alive any more.

    Args:
        processes: that share the batch, on a device each.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    share = processes if device.type == "cuda" else 1
    return _sentence(config, device, share * _largest_batch(config, device, build))


def bytes_needed(step: TrainingStep, batch_size: int) -> int:
    """The most memory in use at a time during iterations on `batch_size` videos, the networks included."""
    model = step.discriminator
    shape = batch_size, model.channels, model.clip_frames, model.image_size, model.image_size
    videos = torch.zeros(shape, dtype=step.dtype, device=step.device)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=step.device) if model.classes else None
    if step.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(step.device)
        for _ in range(2):
            step(videos, labels)
        return torch.cuda.max_memory_allocated(step.device)
    fixed = sum(tensor.nbytes for network in (step.generator, step.discriminator) for tensor in network.parameters())
    with _LiveBytes() as live:
        step(videos, labels)
    # Weights, gradients and the optimisers' squares, all as large.
    return live.most + 3 * fixed


class _LiveBytes(TorchDispatchMode):
    """Counts the memory of the tensors that operations make while it is entered."""

    def __enter__(self):
        self.now = self.most = 0
        self._known = set()
        return super().__enter__()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return results

    def _note(self, storage):
        address, size = storage._cdata, storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address, size):
        self._known.discard(address)
        self.now -= size


def _largest_batch(config, device, build):
    few, many = _MEASURED
    # The constraint's need does not grow, and would hide how the rest does.
    plain = config.model_copy(update={"cuda_graph": "off", "clip_interval": 0, "critic_steps": 1})
    needs = [bytes_needed(build(plain, device), videos) for videos in _MEASURED]
    a_video = (needs[1] - needs[0]) / (many - few)
    fixed = needs[0] - few * a_video
    return max(0, int((_USABLE * _available(device) - fixed) / a_video))


def _available(device):
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not _MEMINFO.exists():
        # Not Linux: what is free is not told in any one way, but how much there is.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", _MEMINFO.read_text())[1])


def _sentence(config, device, fitting):
    memory = f"the memory of {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "this machine's memory"
    remedy = f"about {fitting} would: choose --batch-size {fitting} or less" if fitting > 1 else "not even 2 would"
    return f"a batch of {config.batch_size} videos does not fit into {memory}; {remedy}"
