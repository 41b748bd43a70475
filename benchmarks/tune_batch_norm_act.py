"""Measure the block sizes of the batch norm kernels on this GPU and write their table.

    python -m benchmarks.tune_batch_norm_act

For each entry of the table, tiles of several sizes with several numbers of warps take turns in the kernel's launcher,
on tensors of the kind that the entry is for; then the best of them at several numbers of programs. An entry changes
only for a gain of more than 1 %, so that the table does not change by chance. Only speed on this GPU counts here;
tests/ops/batch_norm/test_kernels.py tells whether the new tiles spill registers on another one.
"""

import functools
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from triton.errors import TritonError

from benchmarks import harness
from benchmarks.results import device_name
from tgan_fast.files import write_atomically
from tgan_fast.ops.batch_norm import launch
from tgan_fast.ops.batch_norm.tiles import TABLE, Key, Tile, table

ELEMENTS = (1024, 2048, 4096, 8192, 16384)  # of a tile
SMALL_COLUMNS = {True: (4, 8, 16, 32, 64), False: (1, 2, 4, 8)}
WARPS = (1, 2, 4, 8, 16)
PROGRAMS = (1, 2, 4, 8, 16, 32)
# Elements of a tile for each thread: fewer leave no work in flight, more do not fit its registers.
PER_THREAD, SMALL_PER_THREAD = (8, 64), (2, 32)
SMALL = ("small_forward", "small_backward")
GAIN = 1.01
DTYPES = {2: torch.bfloat16, 4: torch.float32}
# Largest difference between two tiles' results, relative to their norm: they add up in another order.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
EPS, NEGATIVE_SLOPE, MOMENTUM = 1e-5, 0.2, 0.1


class Scale(NamedTuple):
    """How large the tensors are and how much is tried."""

    elements: int
    channels: int  # of tensors with their channels first
    stride: int  # every so many entries are tuned
    candidates: int | None
    input_sets: int | None
    rounds: int


FULL = Scale(elements=1 << 25, channels=64, stride=1, candidates=None, input_sets=None, rounds=20)
SMOKE = Scale(elements=1 << 12, channels=4, stride=20, candidates=2, input_sets=1, rounds=2)


class Inputs(NamedTuple):
    """What the launchers take."""

    x: torch.Tensor
    dy: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor  # 1 / sqrt(var + eps)
    weight: torch.Tensor
    bias: torch.Tensor
    sums: torch.Tensor

    @property
    def backward(self):
        """The arguments that all of the backward pass takes."""
        return self.dy, self.x, self.mean, self.spread, self.weight, self.bias, NEGATIVE_SLOPE

    @property
    def count(self):
        """Values a channel."""
        return self.x.numel() // self.x.shape[1]


def _small_forward(inputs):
    return launch._train(inputs.x, inputs.weight, inputs.bias, None, None, None, MOMENTUM, EPS, NEGATIVE_SLOPE, 1)


LAUNCHERS: dict[str, Callable] = {
    "statistics": lambda inputs: launch.statistics(inputs.x, 1, EPS),
    "normalize": lambda inputs: launch.normalize(*inputs.backward[1:]),
    "gradient_sums": lambda inputs: launch.gradient_sums(*inputs.backward, True, True),
    "input_gradient": lambda inputs: launch.input_gradient(*inputs.backward, inputs.sums, inputs.count),
    "small_forward": _small_forward,
    "small_backward": lambda inputs: launch._backward(*inputs.backward, None, True, True, True),
}


def shape_for(key: Key, scale: Scale) -> tuple[int, ...]:
    """A tensor whose kernel takes its tile from this entry; a contiguous [N, C] has its channels last."""
    if key.kernel not in SMALL:
        if key.channels_last:
            return scale.elements // key.size, key.size
        return max(2, scale.elements // (scale.channels * key.size)), scale.channels, key.size
    if key.channels_last:
        return key.size, 64 * scale.channels
    pixels = max(2, key.size // 32)
    return key.size // pixels, 4 * scale.channels, pixels


def inputs_for(key: Key, scale: Scale, device: str) -> Inputs:
    """Random tensors for one call."""
    shape = shape_for(key, scale)
    x, dy = (torch.randn(shape, device=device).to(DTYPES[key.itemsize]) for _ in range(2))
    mean, spread = torch.randn(1, shape[1], device=device), torch.rand(1, shape[1], device=device) + 0.5
    weight, bias = torch.randn(2, shape[1], device=device)
    return Inputs(x, dy, mean, spread, weight, bias, torch.randn(1, 2, shape[1], device=device))


def candidates_for(key: Key, scale: Scale) -> list[Tile]:
    """The present entry, then others."""
    present = table()[key]
    if key.kernel in SMALL:
        blocks = [(key.size, columns) for columns in SMALL_COLUMNS[key.channels_last]]
        fewest, most = SMALL_PER_THREAD
    else:
        blocks = [(elements // key.size, key.size) for elements in ELEMENTS if elements >= key.size]
        fewest, most = PER_THREAD
    tiles = [
        Tile(rows, columns, warps, present.programs)
        for rows, columns in blocks
        for warps in WARPS
        if fewest <= rows * columns / (32 * warps) <= most
    ]
    return _distinct(present, tiles, scale)


def _distinct(present, tiles, scale):
    return list(dict.fromkeys([present, *tiles]))[: scale.candidates]


@contextmanager
def entry(key: Key, tile: Tile) -> Iterator[None]:
    """The launchers find `tile` in the table."""
    present = table()[key]
    try:
        _put(key, tile)
        yield
    finally:
        _put(key, present)


def _put(key, tile):
    table()[key] = tile
    launch.forget_launches()


def run(key: Key, tile: Tile, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """One call of the launcher with this tile."""
    with entry(key, tile):
        results = LAUNCHERS[key.kernel](inputs)
    return results if isinstance(results, tuple) else (results,)


def usable(key: Key, tiles: list[Tile], inputs: Inputs) -> list[Tile]:
    """The first tile, and those of the others that compile, fit the GPU and compute the same."""
    expected = run(key, tiles[0], inputs)
    return [tiles[0], *(tile for tile in tiles[1:] if _agrees(key, tile, inputs, expected))]


def _agrees(key, tile, inputs, expected):
    try:
        results = run(key, tile, inputs)
    except (RuntimeError, TritonError):
        return False
    return all(
        (got.float() - wanted.float()).norm() <= TOLERANCES[wanted.dtype] * wanted.float().norm()
        for got, wanted in zip(results, expected, strict=True)
    )


def compile_ahead(scale: Scale, device: str) -> None:
    """Fill Triton's cache, a process for each core: compiling takes longer than measuring."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile_candidates, table(), *([value] * len(table()) for value in (scale, device))))


def _compile_candidates(key, scale, device):
    usable(key, candidates_for(key, scale), inputs_for(key, scale, device))


def tune(key: Key, scale: Scale, device: str) -> tuple[Tile, float]:
    """The tile for an entry, and its gain: the present one's time over its own."""
    with harness.side_stream(device):
        first = inputs_for(key, scale, device)
        count = scale.input_sets or harness.input_set_count(first.x.nbytes, device)
        input_sets = [first, *(inputs_for(key, scale, device) for _ in range(count - 1))]
        tiles = candidates_for(key, scale)
        best, gain = _fastest(key, tiles, input_sets, scale, device)
        if key.kernel not in SMALL:
            others = [best, *(best._replace(programs=programs) for programs in PROGRAMS)]
            best, gain = _fastest(key, _distinct(tiles[0], others, scale), input_sets, scale, device)
    return best, gain


def _fastest(key, tiles, input_sets, scale, device):
    """The fastest tile and its gain over the first one, which wins all but clear cases."""
    present, *others = usable(key, tiles, input_sets[0])
    calls = {tile: functools.partial(run, key, tile) for tile in (present, *others)}
    timings = harness.measure(calls, input_sets, device, scale.rounds)
    best = min(calls, key=lambda tile: timings[tile].median)
    gain = timings[present].median / timings[best].median
    return (best, gain) if gain > GAIN else (present, 1.0)


def write_table(out: Path, device: str, tiles: dict[Key, Tile]) -> None:
    """In the order of `tiles`, an entry a line."""
    lines = ",\n  ".join(json.dumps({**key._asdict(), **tile._asdict()}) for key, tile in tiles.items())
    name = json.dumps(device_name(device))
    text = f'{{\n "device": {name},\n "tiles": [\n  {lines}\n ]\n}}\n'
    write_atomically(out, text.encode())


def print_entry(key: Key, tile: Tile, gain: float) -> None:
    """A line for what was found."""
    layout = "channels-last" if key.channels_last else "channels-first"
    change = f"{gain:.2f} times as fast as before" if gain > 1 else "as before"
    print(
        f"{key.kernel:16}{key.itemsize} B  {layout:16}{key.size:4}:{tile.rows:6} x {tile.columns:<5}"
        f"{tile.warps:2} warps  {tile.programs:2} programs  {change}"
    )


def main(out: Path = TABLE, smoke: bool = False) -> None:
    """Print every entry and write the table.

    Args:
        out: where to; the table that the kernels use by default.
        smoke: only show that everything runs, with tiny tensors and two candidates; with TRITON_INTERPRET=1 on a CPU
            too. It needs an `out` of its own.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not (smoke and launch.INTERPRETED):
        raise SystemExit("error: this needs a GPU; without one, set TRITON_INTERPRET=1 and give --smoke")
    if smoke and out == TABLE:
        raise SystemExit("error: --smoke measures nothing: give an --out other than the table in use")
    scale = SMOKE if smoke else FULL
    if not launch.INTERPRETED:
        compile_ahead(scale, device)
    tiles = dict(table())
    for key in list(tiles)[:: scale.stride]:
        tiles[key], gain = tune(key, scale, device)
        print_entry(key, tiles[key], gain)
    write_table(out, device, tiles)
    print(f"written to {out}")


if __name__ == "__main__":
    tyro.cli(main)
