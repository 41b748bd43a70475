"""Triton kernel of `tanh_to_levels`: reads an element once (2 or 4 bytes), writes its level (1 byte)."""

import torch
import triton
import triton.language as tl

# Elements per program, 8 per thread: with 16, lengths that 16 does not divide would leave too few registers.
_BLOCK = 2048
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Adding and then subtracting this rounds a float32 below 2^22 to the nearest integer, ties to even.
_ROUNDING = tl.constexpr(1.5 * 2**23)


@triton.jit
def levels_kernel(x, levels, count, block: tl.constexpr):
    """Write levels [count] uint8 = round((tanh(x) + 1) · 127.5); x and levels are dense, in the same layout."""
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = offsets < count
    values = tl.load(x + offsets, mask, other=0.0).to(tl.float32)
    # For ±inf, exp is inf or 0, so this gives ±1.
    tanh = 1.0 - 2.0 / (tl.exp(2.0 * values) + 1.0)
    level = (tanh + 1.0) * 127.5 + _ROUNDING - _ROUNDING
    # The comparison is false for NaN.
    tl.store(levels + offsets, tl.where(level > 0.0, level, 0.0).to(tl.uint8), mask)


# When Triton decorates a kernel, it decides whether its interpreter runs it on a CPU, which is slow and for tests.
INTERPRETED = not isinstance(levels_kernel, triton.JITFunction)


def why_not(x: torch.Tensor) -> str | None:
    """Return why the kernel cannot take `x`, or None if it can."""
    if x.dtype not in _DTYPES:
        return f"it takes float32, float16 and bfloat16, and x is {x.dtype}"
    if not (x.is_cuda or INTERPRETED):
        return f"it runs on a GPU, and x is on {x.device}"
    return None


def tanh_to_levels(x: torch.Tensor) -> torch.Tensor:
    """Return the levels of tanh(x), as the public `tanh_to_levels` does."""
    levels = torch.empty_like(x, dtype=torch.uint8)
    if x.stride() != levels.stride():
        # `x` skips or repeats elements; its clone is dense, with the strides of `levels`.
        x = x.clone()
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            levels_kernel[(triton.cdiv(x.numel(), _BLOCK),)](x, levels, x.numel(), block=_BLOCK, num_warps=8)
    return levels
