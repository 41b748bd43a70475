"""Which clips make up a batch: a function of the seed and of the batch's number alone, so that any run can go on."""

import functools

import numpy as np

from tgan_fast.errors import InputError

# Apart from the streams that shuffle.
_CHOICES = (1,)


class BatchOrder:
    """Endless batches of a data set, shuffled anew in every epoch; what does not fill a batch is left out of it.

    Args:
        count: clips in the data set.
        batch_size: of the whole batch, which the processes share.
        parts: batches that come one after another as one, each shared by the processes.
        seed: at least 0.
        rank, world_size: this process, and how many there are.

    Attributes:
        parts: as given.
        rows: how many of a batch's are this process's, in all parts.
        part: which ones they are: int64 [rows], consecutive in each part.

    Raises:
        InputError: fewer clips than the parts have, or a batch that the processes cannot share equally.
    """

    def __init__(
        self, count: int, batch_size: int, *, parts: int = 1, seed: int = 0, rank: int = 0, world_size: int = 1
    ):
        if count < parts * batch_size:
            batches = f"{parts} batches" if parts > 1 else "a batch"
            raise InputError(f"the data set has {count} clips, fewer than {batches} of {batch_size}")
        if batch_size % world_size:
            raise InputError(
                f"a batch of {batch_size} cannot be shared equally by {world_size} processes: "
                f"choose a batch_size that {world_size} divides"
            )
        self.part = np.arange(parts * batch_size).reshape(parts, world_size, -1)[:, rank].ravel()
        self.parts, self.rows = parts, len(self.part)
        self._count, self._batch_size, self._seed = count, parts * batch_size, seed

    def indices(self, k: int) -> np.ndarray:
        """The clips of batch `k`, of all processes: int64 [parts·batch_size]."""
        epoch, position = divmod(k, self._count // self._batch_size)
        order = _permutation(self._seed, epoch, self._count)
        return order[position * self._batch_size : (position + 1) * self._batch_size]

    def choices(self, k: int) -> np.random.Generator:
        """Random numbers for whatever else is to be chosen in batch `k`; every process gets the same."""
        return np.random.default_rng(np.random.SeedSequence((self._seed, k), spawn_key=_CHOICES))


@functools.lru_cache(maxsize=2)
def _permutation(seed, epoch, count):
    return np.random.default_rng((seed, epoch)).permutation(count)
