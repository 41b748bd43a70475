"""Batches of clips, made in background threads, in an order that is a function of the seed alone."""

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from tgan_fast.errors import InputError


class ClipDataset(Protocol):
    """What training takes as data: anything with a length and with clips by index.

    `dataset[i]` is a pair (clip, label): a uint8 array [T, H, W, C] of frames, and a class number (0 where there are no
    classes). The same `i` must always give the same pair, whichever thread asks: that is what makes an interrupted run
    resume exactly.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, int]: ...


class ClipLoader:
    """Endless shuffled batches of a data set; batch k is the same in every run with the same seed.

    Args:
        dataset: see `ClipDataset`.
        batch_size: clips in a batch; the rest of an epoch that does not fill one is left out.
        seed: of the order, which is new in every epoch.
        workers: threads that make batches ahead of time.

    Raises:
        InputError: the data set has fewer clips than a batch.
    """

    def __init__(self, dataset: ClipDataset, batch_size: int, *, seed: int = 0, workers: int = 1):
        if len(dataset) < batch_size:
            raise InputError(f"the data set has {len(dataset)} clips, fewer than a batch of {batch_size}")
        self._dataset, self._batch_size, self._seed, self._workers = dataset, batch_size, seed, workers
        self._batches_an_epoch = len(dataset) // batch_size

    def batches(self, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches start, start + 1, … without end: clips uint8 [N, T, H, W, C] and labels int64 [N]."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="clips") as pool:
            ahead = deque(pool.submit(self._batch, k) for k in range(start, start + 2 * self._workers))
            try:
                while True:
                    ahead.append(pool.submit(self._batch, start + len(ahead)))
                    start += 1
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _batch(self, k):
        clips, labels = zip(*(self._dataset[int(i)] for i in self._indices(k)), strict=True)
        return torch.from_numpy(np.stack(clips)), torch.tensor(labels)

    def _indices(self, k):
        epoch, position = divmod(k, self._batches_an_epoch)
        order = _order(self._seed, epoch, len(self._dataset))
        return order[position * self._batch_size : (position + 1) * self._batch_size]


@functools.lru_cache(maxsize=2)
def _order(seed, epoch, count):
    return np.random.default_rng((seed, epoch)).permutation(count)


def to_videos(clips: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Clips uint8 [N, T, H, W, C] → videos float32 [N, C, T, H, W] in [-1, 1] on `device`, channels last in memory."""
    return clips.to(device).float().div_(127.5).sub_(1).permute(0, 4, 1, 2, 3)


def to_clips(videos: torch.Tensor) -> torch.Tensor:
    """Videos [N, C, T, H, W] in [-1, 1] → clips uint8 [N, T, H, W, C], the inverse of `to_videos`."""
    levels = videos.permute(0, 2, 3, 4, 1).float().add(1).mul(127.5)
    return levels.round_().clamp_(0, 255).to(torch.uint8)
