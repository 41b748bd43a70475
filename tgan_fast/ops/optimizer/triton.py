"""Triton kernels of RMSprop and Adam (formulas in __init__.py): one launch per step reads and writes each value once.

Bytes per element in float32, with a float32 gradient and without a copy:

    rmsprop   reads p, g, v       writes p, v       20
    adam      reads p, g, m, v    writes p, m, v    28

A gradient in half precision saves 2, a copy in half precision adds 2. If 16 divides the addresses and the length, every
thread accesses four adjacent float32 elements, 16 bytes, at once; otherwise the kernels are slower.
Divisions and roots are correctly rounded, as in PyTorch. Offsets have 64 bits.
"""

import math

import torch
import triton
import triton.language as tl

BLOCK = tl.constexpr(1024)
_WARPS = BLOCK.value // (4 * 32)
_HALF = (torch.bfloat16, torch.float16)


@triton.jit
def rmsprop_kernel(
    parameter, gradient, square_average, copy, count, learning_rate, alpha, one_minus_alpha, eps,
    RATE_IN_MEMORY: tl.constexpr,
):  # fmt: skip
    """Take a step on `count` elements; all tensors but the gradient and the copy are float32.

    The copy may be None. `learning_rate` is a number, or with RATE_IN_MEMORY a pointer to a float32.
    """
    rate = tl.load(learning_rate) if RATE_IN_MEMORY else learning_rate
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    p = tl.load(parameter + offsets, inside)
    g = tl.load(gradient + offsets, inside).to(tl.float32)
    v = alpha * tl.load(square_average + offsets, inside) + one_minus_alpha * g * g
    p -= tl.div_rn(rate * g, tl.sqrt_rn(v) + eps)
    tl.store(square_average + offsets, v, inside)
    tl.store(parameter + offsets, p, inside)
    if copy is not None:
        tl.store(copy + offsets, p.to(copy.dtype.element_ty), inside)


@triton.jit
def adam_kernel(
    parameter, gradient, average, square_average, step, copy, count,
    learning_rate, beta1, one_minus_beta1, beta2, one_minus_beta2, log_beta1, log_beta2, eps,
    RATE_IN_MEMORY: tl.constexpr,
):  # fmt: skip
    """Take a step with the arguments of `rmsprop_kernel`; `step` points to a float32."""
    t = tl.load(step)
    rate = tl.load(learning_rate) if RATE_IN_MEMORY else learning_rate
    size = tl.div_rn(rate, _one_minus_power(log_beta1, t))
    root = tl.sqrt_rn(_one_minus_power(log_beta2, t))
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    p = tl.load(parameter + offsets, inside)
    g = tl.load(gradient + offsets, inside).to(tl.float32)
    m = beta1 * tl.load(average + offsets, inside) + one_minus_beta1 * g
    v = beta2 * tl.load(square_average + offsets, inside) + one_minus_beta2 * g * g
    p -= tl.div_rn(size * m, tl.div_rn(tl.sqrt_rn(v), root) + eps)
    tl.store(average + offsets, m, inside)
    tl.store(square_average + offsets, v, inside)
    tl.store(parameter + offsets, p, inside)
    if copy is not None:
        tl.store(copy + offsets, p.to(copy.dtype.element_ty), inside)


@triton.jit
def _one_minus_power(log_beta, step):
    """Return 1 − βᵗ = 1 − exp(t·log β), near 0 by the power series, because the difference would lose digits there."""
    x = step * log_beta
    near = tl.maximum(x, -0.5)
    series = 1.0
    for n in tl.static_range(8, 1, -1):
        series = 1 + near / n * series
    return tl.where(x > -0.5, -near * series, 1 - tl.exp(x))


# When Triton decorates a kernel, it decides whether its interpreter runs it on a CPU, which is slow and for tests.
INTERPRETED = not isinstance(rmsprop_kernel, triton.JITFunction)


def why_not(parameter: torch.Tensor, gradient: torch.Tensor, copy: torch.Tensor | None) -> str | None:
    """Return why the kernels cannot take these tensors, or None if they can."""
    if parameter.dtype != torch.float32:
        return f"it takes float32 parameters, and these are {parameter.dtype}"
    if gradient.dtype not in (torch.float32, *_HALF):
        return f"it takes gradients in float32, bfloat16 and float16, and these are {gradient.dtype}"
    if copy is not None and copy.dtype not in _HALF:
        return f"it writes copies in bfloat16 and float16, and this one is {copy.dtype}"
    if not (parameter.is_cuda or INTERPRETED):
        return f"it runs on a GPU, and the parameters are on {parameter.device}"
    return None


# Differences of nearly equal numbers, such as 1 − α, are computed on the host in float64.


def rmsprop(parameter, gradient, square_average, copy, learning_rate, alpha, eps):
    """Take a step as the public `rmsprop_` does."""
    tensors = parameter, gradient, square_average, copy
    _launch(rmsprop_kernel, parameter, tensors, learning_rate, alpha, 1 - alpha, eps)
    torch.autograd.graph.increment_version([t for t in (parameter, square_average, copy) if t is not None])


def adam(parameter, gradient, average, square_average, step, copy, learning_rate, beta1, beta2, eps):
    """Take a step as the public `adam_` does."""
    tensors = parameter, gradient, average, square_average, step, copy
    logarithms = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    _launch(adam_kernel, parameter, tensors, learning_rate, beta1, 1 - beta1, beta2, 1 - beta2, *logarithms, eps)
    torch.autograd.graph.increment_version([t for t in (parameter, average, square_average, copy) if t is not None])


def _launch(kernel, parameter, tensors, learning_rate, *numbers):
    if parameter.numel() == 0:
        return
    with torch.cuda.device_of(parameter):
        kernel[(triton.cdiv(parameter.numel(), BLOCK.value),)](
            *tensors, parameter.numel(), learning_rate, *numbers,
            RATE_IN_MEMORY=isinstance(learning_rate, torch.Tensor), num_warps=_WARPS,
        )  # fmt: skip
