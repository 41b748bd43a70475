"""Conversion of a generator's output to pixels: tanh and rounding to 256 levels, as one operation.

    level = round((tanh(x) + 1) · 127.5)

Halves are rounded to even, as `torch.round` does.
"""

import torch

from tgan_fast.choices import TritonBackend
from tgan_fast.ops.arguments import check_tensor
from tgan_fast.ops.dispatch import choose


def tanh_to_levels(x: torch.Tensor, backend: TritonBackend = "auto") -> torch.Tensor:
    """Return the levels of tanh(x), computed in float32 whatever the dtype of `x`.

    Args:
        x: Dense floating-point tensor of any shape and memory format.
        backend: Name of an implementation: "triton" for float32, float16 and bfloat16 on a GPU, "torch", or "auto", the
            fastest that fits.

    Returns:
        uint8 of the shape and memory format of `x`: 0 for -inf and for NaN, 255 for inf. "torch" gives exactly what
        `tgan_fast.pixels.to_clips` gives for the float32 tanh; "triton" has a tanh of its own, so that a value within
        1e-4 of the middle between two levels may become either.

    Raises:
        TypeError: `x` is not a tensor.
        ValueError: `x` is not floating point or not dense, or there is no backend of that name.
        BackendError: "triton" was asked for and cannot run here, or not on this tensor.
    """
    check_tensor("x", x, float8=True)
    if choose("tanh_to_levels", backend, x, {"triton": lambda: _why_not_triton(x)}) == "triton":
        from tgan_fast.ops.levels import triton as levels_kernels

        return levels_kernels.tanh_to_levels(x)
    # A NaN has no level, and what a conversion makes of it depends on the processor.
    return x.float().tanh().add_(1).mul_(127.5).round_().nan_to_num_(0).to(torch.uint8)


def _why_not_triton(x):
    from tgan_fast.ops.levels.triton import why_not

    return why_not(x)
