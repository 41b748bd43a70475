"""Measure the block sizes of the batch norm kernels on this GPU and write their table.

    python -m benchmarks.tune_batch_norm_act

For each entry of the table, tiles of several sizes with several numbers of warps take turns in the kernel's launcher,
on tensors of the kind that the entry is for; then the best of them at several numbers of programs. Only speed on this
GPU counts here; tests/ops/batch_norm/test_triton_kernels.py checks whether the new tiles spill registers on others.
"""

import json
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
import tyro
from triton.errors import TritonError

from benchmarks import harness
from benchmarks.result_files import device_name
from tgan_fast.files import write_atomically
from tgan_fast.ops.batch_norm import triton as launch
from tgan_fast.ops.batch_norm.activation import Activation
from tgan_fast.ops.batch_norm.tiles import TABLE, Key, Tile, table

TENSOR, CHANNELS, ROUNDS = 1 << 25, 64, 20  # elements of a tensor, channels of a contiguous one, rounds
ELEMENTS = (1024, 2048, 4096, 8192, 16384)  # of a tile
SMALL_COLUMNS = {True: (4, 8, 16, 32, 64), False: (1, 2, 4, 8)}
WARPS = (1, 2, 4, 8, 16)
PROGRAMS = (1, 2, 4, 8, 16, 32)
# Elements of a tile per thread: with fewer, too little work is in flight; more do not fit its registers.
PER_THREAD, SMALL_PER_THREAD = (8, 64), (2, 32)
SMALL = ("small_forward", "small_backward")
GAIN = 1.01  # a smaller gain keeps an entry, so that the table does not change by chance
DTYPES = {2: torch.bfloat16, 4: torch.float32}
# Largest difference between two tiles' results, relative to their norm, since tiles sum in different orders.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
EPS, MOMENTUM, ACTIVATION = 1e-5, 0.1, Activation("leaky_relu", 0.2)


def _shape_for(key: Key) -> tuple[int, ...]:
    # A kernel uses this entry for such a tensor; [N, C] counts as channels-last.
    if key.kernel in SMALL:
        pixels = max(2, key.size // 32)
        return (key.size, 64 * CHANNELS) if key.channels_last else (key.size // pixels, 4 * CHANNELS, pixels)
    if key.channels_last:
        return TENSOR // key.size, key.size
    return max(2, TENSOR // (CHANNELS * key.size)), CHANNELS, key.size


def inputs_for(key: Key, device: str) -> list[torch.Tensor]:
    """Return random x, dy, mean, 1 / √(var + ε), weight, bias, and sums of gradients."""
    shape = _shape_for(key)
    x, dy = torch.randn(2, *shape, device=device).to(DTYPES[key.itemsize])
    mean, rstd = torch.randn(1, shape[1], device=device), torch.rand(1, shape[1], device=device) + 0.5
    return [x, dy, mean, rstd, *torch.randn(2, shape[1], device=device), torch.randn(1, 2, shape[1], device=device)]


def run_launcher(key: Key, tile: Tile, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Call the kernel's launcher with this tile in the table."""
    x, dy, mean, rstd, weight, bias, sums = inputs
    tensors, running = (x, mean, rstd, weight, bias), (None, None, None)
    launchers = {
        "statistics": lambda: launch.statistics(x, 1),
        "normalize": lambda: [launch.normalize(*tensors, None, ACTIVATION)],
        "gradient_sums": lambda: launch.gradient_sums(dy, *tensors, None, ACTIVATION, True, True)[:3],
        "input_gradient": lambda: [launch.input_gradient(dy, *tensors, ACTIVATION, sums, x.numel() // x.shape[1])],
        "small_forward": lambda: launch.train(x, weight, bias, *running, MOMENTUM, EPS, None, ACTIVATION, 1),
        "small_backward": lambda: launch.backward(
            dy, x, mean, rstd, None, weight, bias, None, ACTIVATION, EPS, True, True, True
        ),
    }
    present = table()[key]
    try:
        _put(key, tile)
        return list(launchers[key.kernel]())
    finally:
        _put(key, present)


def _put(key: Key, tile: Tile) -> None:
    table()[key] = tile
    launch.forget_launches()


def candidates_for(key: Key) -> list[Tile]:
    """Return the tiles to try: the table's entry first, then others."""
    present = table()[key]
    blocks, (fewest, most) = [(elements // key.size, key.size) for elements in ELEMENTS], PER_THREAD
    if key.kernel in SMALL:
        blocks, (fewest, most) = [(key.size, columns) for columns in SMALL_COLUMNS[key.channels_last]], SMALL_PER_THREAD
    choices = [(rows, columns, warps) for rows, columns in blocks for warps in WARPS]
    fit = [choice for choice in choices if fewest <= math.prod(choice[:2]) / (32 * choice[2]) <= most]
    return [present, *(Tile(*choice, present.programs) for choice in fit)]


def usable(key: Key, tiles: list[Tile], inputs: list[torch.Tensor]) -> list[Tile]:
    """Return the first tile, and the others that compile, fit the GPU and give the same results."""
    expected = run_launcher(key, tiles[0], inputs)

    def agrees(tile):
        try:
            pairs = list(zip(run_launcher(key, tile, inputs), expected, strict=True))
        except (RuntimeError, TritonError):
            return False
        return all((a.float() - b.float()).norm() <= TOLERANCES[b.dtype] * b.float().norm() for a, b in pairs)

    return [tiles[0], *filter(agrees, tiles[1:])]


def _compile_candidates(key: Key) -> None:
    usable(key, candidates_for(key), inputs_for(key, "cuda"))


def tune(key: Key, device: str) -> tuple[Tile, float]:
    """Return the tile for an entry, and its speedup over the present tile, which stays unless it clearly loses."""
    present = table()[key]

    def fastest(tiles):
        calls = {
            tile: partial(run_launcher, key, tile) for tile in usable(key, list(dict.fromkeys(tiles)), input_sets[0])
        }
        timings = harness.measure(calls, input_sets, device, ROUNDS)
        best = min(calls, key=lambda tile: timings[tile].median)
        gain = timings[present].median / timings[best].median
        return (best, gain) if gain > GAIN else (present, 1.0)

    with harness.side_stream(device):
        first = inputs_for(key, device)
        count = harness.input_set_count(first[0].nbytes, device)
        input_sets = [first, *(inputs_for(key, device) for _ in range(count - 1))]
        best, gain = fastest(candidates_for(key))
        if key.kernel not in SMALL:
            best, gain = fastest([present, best, *(best._replace(programs=programs) for programs in PROGRAMS)])
    return best, gain


def main(out: Path = TABLE) -> None:
    """Print every entry and write the table.

    Args:
        out: File for the table; by default the one that the kernels use.
    """
    if not torch.cuda.is_available():
        raise SystemExit("error: this needs a GPU")
    tiles = dict(table())
    # Each core gets a compiling process, since compiling takes longer than measuring.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile_candidates, tiles))
    for key in tiles:
        tiles[key], gain = tune(key, "cuda")
        print(key, tiles[key], f"{gain:.2f} times as fast as before" if gain > 1 else "as before")
    write_tiles(out, tiles, device_name("cuda"))
    print(f"written to {out}")


def write_tiles(out: Path, tiles: dict[Key, Tile], device: str) -> None:
    """Write a table."""
    lines = ",\n  ".join(json.dumps({**key._asdict(), **tile._asdict()}) for key, tile in tiles.items())
    text = f'{{\n "device": {json.dumps(device)},\n "tiles": [\n  {lines}\n ]\n}}\n'
    write_atomically(out, text.encode())


if __name__ == "__main__":
    tyro.cli(main)
