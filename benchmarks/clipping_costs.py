"""Predicted cost of the CUDA kernels of singular value clipping for TGAN's five weights, in both kinds of arithmetic.

    python -m benchmarks.clipping_costs

A kernel takes as long as its operations at the GPU's peak rates, or as its bytes at the bandwidth of the L2 cache or of
the memory, whichever is longest. Peak rates are those of data sheets for dense operands. On an H100, `mma.sync` reaches
63 % of them (arXiv:2402.13499); for other GPUs 95 % is assumed. Nothing here was measured.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks.bench_singular_value_clip import DISCRIMINATOR
from benchmarks.spectra import trained
from tgan_fast.ops.clipping.cuda import POLYNOMIALS

# As in csrc/cuda.
BLOCK, SPLIT_COLUMNS, TILE_ROWS, DIGITS_PRODUCTS, RESOLUTION = 64, 1024, 32, 13, 2.5e-6
BARRIER = 2e-6  # seconds for a grid barrier, and to fill and empty the pipeline between two of them: an assumption


class Gpu(NamedTuple):
    """Rates of a GPU per second; `int8` and `float64` are those of `mma.sync`, `vector` is float64 without it."""

    name: str
    int8: float
    float64: float
    vector: float
    memory: float
    l2: float
    strip: int  # columns of a strip of the apply kernel for 512 rows, by the shared memory


GPUS = (
    Gpu("H100 SXM", 0.63 * 1979e12, 0.9 * 67e12, 34e12, 3.35e12, 5.5e12, 64),
    Gpu("RTX 4090", 0.95 * 661e12, 1.29e12, 1.29e12, 1.01e12, 5e12, 32),
    # Data sheets of systems with B300 give 0.165 POPS of int8 per GPU. The L2 bandwidth is an assumption.
    Gpu("B300", 0.95 * 165e12, 1.25e12, 1.25e12, 8e12, 10e12, 64),
)


class Cost(NamedTuple):
    """Operations on tensor cores, float64 operations elsewhere, and bytes from and to the L2 cache and the memory."""

    operations: float
    vector: float
    l2: float
    memory: float

    def seconds(self, gpu: Gpu, rate: float) -> float:
        """Return the time on a GPU whose tensor cores have this rate."""
        return max(self.operations / rate + self.vector / gpu.vector, self.l2 / gpu.l2, self.memory / gpu.memory)


def padded(size: int) -> int:
    """Return a size, rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def lower_blocks(rows: int) -> int:
    """Return the number of blocks in the lower triangle of a Gram matrix."""
    side = padded(rows) // BLOCK
    return side * (side + 1) // 2


def operations_of_program(weight: torch.Tensor) -> tuple[int, int]:
    """Return the numbers of products and of grid barriers in csrc/cuda/program.cuh for a weight at t = 1."""
    if len(weight) == 1:
        return 0, 2
    eigenvalues = torch.linalg.eigvalsh(weight.double() @ weight.double().mT) - 1
    norm = float((eigenvalues**8).sum() ** 0.125)
    excess = float(eigenvalues.clamp(min=0).norm())

    def remaining(smallest, largest):
        first = max((i for i, p in enumerate(POLYNOMIALS) if p.lower * largest <= p.upper * smallest), default=0)
        return len(POLYNOMIALS) - first

    root = remaining(1, (1 + min(excess, norm)) ** 0.5)
    # Norm, sign and excess, which is one operation of two products; then the root.
    products = 2 + 3 * remaining(RESOLUTION, norm) + 2 + (1 if root == 1 else 4 * root - 3)
    return products, products - 1 + 3  # A, and A scaled twice


def cost_of_quantize() -> Cost:
    """Return the cost of writing all five weights in fixed point."""
    elements = sum(rows * columns for rows, columns in DISCRIMINATOR)
    return Cost(0, 0, 12 * elements, 8 * elements)


def cost_of_gram(fixed: bool) -> Cost:
    """Return the cost of the Gram matrices."""
    operations = vector = l2 = 0
    for rows, columns in DISCRIMINATOR:
        width, blocks, diagonal = padded(columns), lower_blocks(rows), padded(rows) // BLOCK
        sums = blocks * -(-columns // SPLIT_COLUMNS) * BLOCK**2
        operations += 2 * blocks * BLOCK**2 * width
        vector += 2 * sums
        l2 += (2 * blocks - diagonal) * BLOCK * width * 4 + 8 * sums
    return Cost((DIGITS_PRODUCTS if fixed else 1) * operations, vector, l2, 0)


def cost_of_product(fixed: bool) -> Cost:
    """Return the cost of a product in the iteration, for all five weights."""
    operations = vector = l2 = 0
    for rows, _ in DISCRIMINATOR:
        tiles, number = 2 * lower_blocks(rows), 4 if fixed else 8
        elements = tiles * TILE_ROWS * BLOCK
        operations += 2 * elements * padded(rows)
        vector += 10 * elements
        l2 += (tiles * (TILE_ROWS + BLOCK) * padded(rows) + 2 * elements) * number
    return Cost((DIGITS_PRODUCTS if fixed else 1) * operations, vector, l2, 0)


def cost_of_apply(fixed: bool, strip: int) -> Cost:
    """Return the cost of W − R·W in strips of `strip` columns, without rounded copies."""
    operations = l2 = 0
    elements = sum(rows * columns for rows, columns in DISCRIMINATOR)
    for rows, columns in DISCRIMINATOR:
        strips = -(-columns // strip)
        operations += 2 * strips * strip * padded(rows) ** 2
        l2 += strips * padded(rows) ** 2 * (4 if fixed else 8)
    return Cost((DIGITS_PRODUCTS if fixed else 1) * operations, 4 * elements, l2 + 12 * elements, 8 * elements)


def rows_of_table(fixed: bool, products: int, barriers: int) -> Iterator[str]:
    """Yield the rows for one kind of arithmetic."""
    arithmetic = "fixed point" if fixed else "float64"
    totals = [0.0] * len(GPUS)
    for name, repeats, waits, cost_on in (
        ("quantize", 1, 0, lambda gpu: cost_of_quantize()),
        ("gram", 1, 0, lambda gpu: cost_of_gram(fixed)),
        ("shrinkage", products, barriers, lambda gpu: cost_of_product(fixed)),
        ("apply", 1, 0, lambda gpu: cost_of_apply(fixed, gpu.strip)),
    ):
        seconds = [
            repeats * cost_on(gpu).seconds(gpu, gpu.int8 if fixed else gpu.float64) + waits * BARRIER for gpu in GPUS
        ]
        totals = [total + each for total, each in zip(totals, seconds, strict=True)]
        cost = cost_on(GPUS[0])
        figures = [f"{repeats * figure / 1e6:,.0f}" for figure in (cost.operations / 1e3, cost.l2, cost.memory)]
        yield _row(name, arithmetic, *figures, *(f"{1e3 * each:.2f}" for each in seconds))
    yield _row("**all**", arithmetic, "", "", "", *(f"**{1e3 * total:.1f}**" for total in totals))


def _row(*cells):
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table in Markdown."""
    torch.manual_seed(0)
    products, barriers = max(operations_of_program(trained(*shape)) for shape in DISCRIMINATOR)
    headings = ("kernel", "arithmetic", "10⁹ operations", "MB, L2", "MB, memory", *(f"{g.name}, ms" for g in GPUS))
    print(_row(*headings))
    print("|---|---" + "|---:" * (len(headings) - 2) + "|")
    for fixed in (True, False):
        for row in rows_of_table(fixed, products, barriers):
            print(row)
    print(f"\n{products} products and {barriers} grid barriers in the iteration.")


if __name__ == "__main__":
    main()
