"""Triton kernel of `tanh_to_levels`: reads an element once (2 or 4 bytes), writes its level (1 byte)."""

import triton
import triton.language as tl

# Adding and subtracting it rounds a float32 below 2^22 to the nearest integer, halves to even.
_ROUNDING = tl.constexpr(1.5 * 2**23)


@triton.jit
def levels_kernel(x, levels, count, block: tl.constexpr):
    """levels [count] uint8 = round((tanh(x) + 1) · 127.5); x and levels are dense, and laid out alike."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = offsets < count
    values = tl.load(x + offsets, mask, other=0.0).to(tl.float32)
    # Of ±inf it is ±1: exp becomes inf or 0.
    tanh = 1.0 - 2.0 / (tl.exp(2.0 * values) + 1.0)
    level = (tanh + 1.0) * 127.5 + _ROUNDING - _ROUNDING
    # The comparison fails for NaN.
    tl.store(levels + offsets, tl.where(level > 0.0, level, 0.0).to(tl.uint8), mask)
