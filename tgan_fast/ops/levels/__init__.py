"""Conversion of a generator's output to pixels: tanh and rounding to 256 levels, as one operation.

    level = round((tanh(x) + 1) · 127.5)

Ties are rounded to even, as in `torch.round`.
"""

import torch

from tgan_fast.choices import TritonBackend
from tgan_fast.ops.arguments import check_tensor
from tgan_fast.ops.dispatch import choose


def tanh_to_levels(x: torch.Tensor, backend: TritonBackend = "auto") -> torch.Tensor:
    """Return the levels of tanh(x), computed in float32 whatever the dtype of `x`.

    Args:
        x: Dense floating-point tensor of any shape and memory format.
        backend: Name of an implementation: "triton" (float32, float16 and bfloat16 on a GPU) or "torch"; "auto" picks
            the fastest that fits.

    Returns:
        A uint8 tensor of the shape and memory format of `x`: 0 for -inf and for NaN, 255 for inf. "torch" gives exactly
        the result of `tgan_fast.pixels.to_clips` for the float32 tanh; "triton" computes tanh differently, so that a
        value within 1e-4 of the middle between two levels may become either.

    Raises:
        TypeError: `x` is not a tensor.
        ValueError: `x` is not floating point or not dense, or there is no backend of that name.
        BackendError: "triton" was requested and cannot run here, or cannot take this tensor.
    """
    check_tensor("x", x, float8=True)
    if choose("tanh_to_levels", backend, x, {"triton": lambda: _why_not_triton(x)}) == "triton":
        from tgan_fast.ops.levels import triton as levels_kernels

        return levels_kernels.tanh_to_levels(x)
    # NaN is replaced by 0, because the result of converting it to an integer depends on the processor.
    return x.float().tanh().add_(1).mul_(127.5).round_().nan_to_num_(0).to(torch.uint8)


def _why_not_triton(x):
    from tgan_fast.ops.levels.triton import why_not

    return why_not(x)
