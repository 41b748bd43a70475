"""The order of clips: epochs are permutations, and processes share batches."""

import numpy as np
import pytest

from tgan_fast.data.order import BatchOrder
from tgan_fast.errors import InputError


def test_an_epoch_takes_every_clip_once_and_the_next_one_has_another_order():
    order = BatchOrder(12, 4)
    epochs = [np.concatenate([order.indices(3 * epoch + k) for k in range(3)]).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_what_does_not_fill_a_batch_is_left_out_of_an_epoch():
    order = BatchOrder(11, 4, seed=3)
    for epoch in range(20):
        taken = np.concatenate([order.indices(2 * epoch), order.indices(2 * epoch + 1)])
        assert len(set(taken.tolist())) == 8


@pytest.mark.parametrize("k", [0, 5, 6, 10**7])
def test_a_batch_is_a_function_of_seed_and_number(k):
    orders = [BatchOrder(11, 2, seed=seed) for seed in (0, 0, 1)]
    orders[0].indices(3)
    same, again, other = ((order.indices(k).tolist(), order.choices(k).random(4).tolist()) for order in orders)
    assert same == again
    assert same[1] != other[1]
    assert same[1] != orders[0].choices(k + 1).random(4).tolist()


def test_choices_are_not_those_that_shuffle():
    order = BatchOrder(1000, 1000)
    for k in range(3):
        assert not np.array_equal(order.choices(k).permutation(1000), order.indices(k))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_processes_share_every_batch_in_consecutive_equal_parts(world_size):
    whole = BatchOrder(20, 6, seed=1)
    orders = [BatchOrder(20, 6, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(order.rank_rows) for order in orders} == {6 // world_size}
    for k in (0, 2, 7):
        together = np.concatenate([order.indices(k)[order.rank_rows] for order in orders])
        assert np.array_equal(together, whole.indices(k))
        assert len({tuple(order.choices(k).random(3)) for order in orders}) == 1


def test_what_does_not_fit_is_named():
    with pytest.raises(InputError, match="3 clips, fewer than a batch of 4"):
        BatchOrder(3, 4)
    with pytest.raises(InputError, match=r"a batch of 6 cannot be shared equally by 4 processes: .* that 4 divides"):
        BatchOrder(10, 6, world_size=4)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_several_batches_as_one_are_each_shared_by_the_processes(world_size):
    whole = BatchOrder(100, 8, batches_per_step=3, seed=1)
    orders = [
        BatchOrder(100, 8, batches_per_step=3, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert {(len(order.rank_rows), order.batches_per_step) for order in orders} == {(24 // world_size, 3)}
    for k in range(9):
        shares = [order.indices(k)[order.rank_rows].reshape(3, -1) for order in orders]
        assert np.array_equal(np.concatenate(shares, 1).ravel(), whole.indices(k)[whole.rank_rows])
    epoch = np.concatenate([whole.indices(k) for k in range(4)])
    assert len(set(epoch)) == 96


def test_fewer_clips_than_several_batches_are_refused():
    with pytest.raises(InputError, match="the data set has 23 clips, fewer than 3 batches of 8"):
        BatchOrder(23, 8, batches_per_step=3)
