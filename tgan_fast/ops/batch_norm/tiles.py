"""Block sizes of the batch norm kernels, from a table, so that nothing is tuned during training.

The table, tiles.json, is written by `python -m benchmarks.tune_batch_norm_act` on a GPU.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("tiles.json")

# Columns of a tile: channels if channels-last (True), pixels if channels-first (False).
COLUMNS = {True: (4, 8, 16, 32, 64, 128), False: (16, 64, 256, 1024, 4096)}
# Values per channel and group that a tile of the small kernels can hold.
SMALL_ROWS = {True: (16, 64, 256, 1024), False: (16, 64, 256, 1024, 4096)}


class Key(NamedTuple):
    """Key of a table entry."""

    kernel: str
    itemsize: int
    channels_last: bool
    size: int  # columns of the tile; rows for the small kernels


class Tile(NamedTuple):
    """Launch configuration of a kernel."""

    rows: int
    columns: int
    warps: int
    programs: int  # per multiprocessor; the small kernels have one per block of channels


def columns_for(size: int, channels_last: bool) -> int:
    """Return the columns of a tile for `size` channels or pixels.

    Prefer the widest among the three largest choices that divides `size`; otherwise the widest choice with which at
    most a quarter of all columns is idle; otherwise the choice with the fewest idle columns.
    """
    choices = COLUMNS[channels_last]
    whole = [c for c in choices[-3:] if size % c == 0]
    if whole:
        return max(whole)
    padded = {c: -(-size // c) * c for c in choices}
    good = [c for c in choices if 3 * padded[c] <= 4 * size]
    return max(good) if good else min(choices, key=lambda c: (padded[c], -c))


def small_rows_for(count: int, channels_last: bool) -> int | None:
    """Return the rows of a small kernel's tile for `count` values per channel and group; None if they do not fit."""
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
