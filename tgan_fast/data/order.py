"""Order of clips in training: each batch depends only on the seed and its number, so that any run can resume."""

import functools

import numpy as np

from tgan_fast.errors import InputError

# This key keeps the stream of choices apart from the streams that shuffle.
_CHOICES = (1,)


class BatchOrder:
    """Endless batches of a data set, shuffled anew in every epoch; clips that do not fill a last step are left out.

    Args:
        count: Number of clips in the data set.
        batch_size: Number of clips of a whole batch, which the processes share.
        batches_per_step: Number of batches that a step takes, each shared by the processes.
        seed: Seed of the order, at least 0.
        rank: Rank of this process.
        world_size: Number of processes.

    Attributes:
        batches_per_step: Number of batches that a step takes.
        rank_rows: Rows of this process, int64 [batches_per_step·batch_size / world_size], consecutive in each batch.

    Raises:
        InputError: There are fewer clips than one step takes, or the processes cannot share a batch equally.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        batches_per_step: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        together = batches_per_step * batch_size
        if count < together:
            batches = f"{batches_per_step} batches" if batches_per_step > 1 else "a batch"
            raise InputError(f"the data set has {count} clips, fewer than {batches} of {batch_size}")
        if batch_size % world_size:
            raise InputError(
                f"a batch of {batch_size} cannot be shared equally by {world_size} processes: "
                f"choose a batch_size that {world_size} divides"
            )
        self.rank_rows = np.arange(together).reshape(batches_per_step, world_size, -1)[:, rank].ravel()
        self.batches_per_step = batches_per_step
        self._count, self._together, self._seed = count, together, seed

    def indices(self, k: int) -> np.ndarray:
        """Return the clips of step `k` for all processes: int64 [batches_per_step·batch_size]."""
        epoch, position = divmod(k, self._count // self._together)
        order = _permutation(self._seed, epoch, self._count)
        return order[position * self._together : (position + 1) * self._together]

    def choices(self, k: int) -> np.random.Generator:
        """Return the random generator for all other choices in step `k`; it is the same in every process."""
        return np.random.default_rng(np.random.SeedSequence((self._seed, k), spawn_key=_CHOICES))


@functools.lru_cache(maxsize=2)
def _permutation(seed, epoch, count):
    return np.random.default_rng((seed, epoch)).permutation(count)
