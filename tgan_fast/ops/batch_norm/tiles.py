"""Block sizes of the batch norm kernels, from a table, so that nothing is tuned during training.

The table, tiles.json, is written by `python -m benchmarks.tune_batch_norm_act` on a GPU.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("tiles.json")

# Columns of a tile: channels when they are last, pixels when the channels are first.
COLUMNS = {True: (4, 8, 16, 32, 64, 128), False: (16, 64, 256, 1024, 4096)}
# Values a channel and group that a tile of the small kernels can hold.
SMALL_ROWS = {True: (16, 64, 256, 1024), False: (16, 64, 256, 1024, 4096)}


class Key(NamedTuple):
    """Key of a table entry."""

    kernel: str
    itemsize: int
    channels_last: bool
    size: int  # columns of the tile; for the small kernels its rows


class Tile(NamedTuple):
    """Launch configuration of a kernel."""

    rows: int
    columns: int
    warps: int
    programs: int  # for each multiprocessor; the small kernels have one for each block of channels


def columns_for(size: int, channels_last: bool) -> int:
    """Return the columns of a tile for `size` channels or pixels.

    One of the three widest if it divides `size`, else the widest that leaves no more than a quarter of itself idle,
    else the one that leaves the least idle.
    """
    choices = COLUMNS[channels_last]
    whole = [c for c in choices[-3:] if size % c == 0]
    if whole:
        return max(whole)
    padded = {c: -(-size // c) * c for c in choices}
    good = [c for c in choices if 3 * padded[c] <= 4 * size]
    return max(good) if good else min(choices, key=lambda c: (padded[c], -c))


def small_rows_for(count: int, channels_last: bool) -> int | None:
    """Return the rows of a small kernel's tile for `count` values a channel and group; None if they do not fit."""
    return next((rows for rows in SMALL_ROWS[channels_last] if count <= rows), None)


def tile_for(kernel: str, itemsize: int, channels_last: bool, size: int) -> Tile:
    """Return the table's entry; `size` comes from `columns_for` or `small_rows_for`."""
    return table()[Key(kernel, itemsize, channels_last, size)]


@functools.cache
def table() -> dict[Key, Tile]:
    """Return all entries; the tuner changes this dictionary in place."""
    entries = json.loads(TABLE.read_text())["tiles"]
    return {
        Key(*(entry[field] for field in Key._fields)): Tile(*(entry[field] for field in Tile._fields))
        for entry in entries
    }
