"""The table of tiles, and the lookup in it."""

import pytest

from tgan_fast.ops.batch_norm.tiles import COLUMNS, SMALL_ROWS, columns_for, small_rows_for, table, tile_for

KERNELS = "statistics", "normalize", "gradient_sums", "input_gradient"


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("channels_last", [True, False])
def test_whatever_is_looked_up_is_there(channels_last, itemsize):
    for size in (*range(1, 300), 1000, 4096, 12345, 10**6, 2**40):
        for kernel in KERNELS:
            tile = tile_for(kernel, itemsize, channels_last, columns_for(size, channels_last))
            assert tile.columns == columns_for(size, channels_last)
    for count in range(1, SMALL_ROWS[channels_last][-1] + 1, 7):
        for kernel in ("small_forward", "small_backward"):
            assert tile_for(kernel, itemsize, channels_last, small_rows_for(count, channels_last)).rows >= count


def test_tiles_are_powers_of_two():
    for key, tile in table().items():
        for number in (tile.rows, tile.columns, tile.warps, tile.programs):
            assert number >= 1, key
            assert number & (number - 1) == 0, key


def test_columns_fit_the_size():
    for size, channels_last, columns in (
        (32, True, 32),
        (256, True, 128),
        (96, True, 32),
        (48, True, 64),
        (100, True, 128),
        (3, True, 4),
        (1, True, 4),
        (4096, False, 4096),
        (2304, False, 256),
        (784, False, 1024),
        (49, False, 64),
        (1, False, 16),
    ):
        assert columns_for(size, channels_last) == columns, (size, channels_last)


@pytest.mark.parametrize("channels_last", [True, False])
def test_from_the_narrowest_tile_on_no_more_than_a_half_is_idle(channels_last):
    for size in range(COLUMNS[channels_last][0], 5000):
        columns = columns_for(size, channels_last)
        assert -(-size // columns) * columns <= 2 * size, (size, columns)


def test_more_values_than_fit_a_tile_take_the_kernels_for_any_size():
    assert small_rows_for(1024, True) == 1024
    assert small_rows_for(1025, True) is None
    assert small_rows_for(4096, False) == 4096
    assert small_rows_for(4097, False) is None
