"""One step of RMSprop and of Adam, in place, on one flat tensor of parameters.

    RMSprop   v ← α·v + (1 − α)·g²
              p ← p − lr·g / (√v + ε)

    Adam      m ← β₁·m + (1 − β₁)·g
              v ← β₂·v + (1 − β₂)·g²
              p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

These are torch.optim.RMSprop without momentum, centering and weight decay (Hinton, Coursera lecture 6e, 2012) and
torch.optim.Adam without AMSGrad and weight decay (Kingma and Ba, arXiv:1412.6980). A copy of p in a narrower dtype, as
matrix products read it, is written in the same pass.
"""

import torch

from tgan_fast.ops.registry import triton_or_torch

# Elements that the "torch" backend works on at a time on a CPU: what it touches, 4 MB in float32, stays in the cache
# between its operations. Smaller chunks are slower, since every operation has a fixed cost.
_CHUNK = 1 << 18


@torch.no_grad()
def rmsprop_(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    square_average: torch.Tensor,
    *,
    learning_rate: float | torch.Tensor,
    alpha: float = 0.99,
    eps: float = 1e-8,
    copy: torch.Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One step of RMSprop in place. Moves 20 bytes an element in float32, 22 with a copy in half precision.

    Args:
        parameter, square_average: p and v, [n] each, contiguous, of one floating-point dtype; "triton" takes float32.
        gradient: g, [n], contiguous; "triton" takes float32, bfloat16 and float16.
        learning_rate: lr, a number or one float32 on the same device, which the host never reads where that is a GPU.
        alpha, eps: α and ε.
        copy: [n], contiguous, of any floating-point dtype ("triton": bfloat16 and float16); becomes the new p, rounded.
        backend: "triton" or "torch"; "auto" picks the fastest that fits. On a CPU "torch" gives the very numbers of
            torch.optim.RMSprop.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run here, or not on these tensors.
    """
    _check(parameter, gradient, copy, square_average=square_average)
    _check_scalar("learning_rate", learning_rate, parameter)
    step = _implementation("rmsprop", backend, parameter, gradient, copy)
    step(parameter, gradient, square_average, copy, learning_rate, alpha, eps)


@torch.no_grad()
def adam_(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    average: torch.Tensor,
    square_average: torch.Tensor,
    step: torch.Tensor,
    *,
    learning_rate: float | torch.Tensor,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    copy: torch.Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One step of Adam in place. Moves 28 bytes an element in float32, 30 with a copy in half precision.

    Args:
        parameter, average, square_average: p, m and v, [n] each, contiguous, of one floating-point dtype.
        gradient, copy, backend: as for `rmsprop_`.
        step: t, [] float32 on the same device, the number of this step, 1 for the first. A GPU's is never read by the
            host, so that a CUDA graph can replay the step.
        learning_rate: as for `rmsprop_`.
        beta1, beta2, eps: β₁, β₂ and ε.

    Raises:
        ValueError, BackendError: as `rmsprop_`.
    """
    _check(parameter, gradient, copy, average=average, square_average=square_average)
    _check_scalar("step", step, parameter)
    _check_scalar("learning_rate", learning_rate, parameter)
    update = _implementation("adam", backend, parameter, gradient, copy)
    update(parameter, gradient, average, square_average, step, copy, learning_rate, beta1, beta2, eps)


def _implementation(operation, backend, parameter, gradient, copy):
    backend = triton_or_torch(operation, backend, parameter, lambda: _why_not_triton(parameter, gradient, copy))
    if backend == "torch":
        return {"rmsprop": _rmsprop_torch, "adam": _adam_torch}[operation]
    from tgan_fast.ops import optimizer_kernels

    return {"rmsprop": optimizer_kernels.rmsprop, "adam": optimizer_kernels.adam}[operation]


def _why_not_triton(parameter, gradient, copy):
    from tgan_fast.ops.optimizer_kernels import why_not

    return why_not(parameter, gradient, copy)


# PyTorch's optimisers do the same operations in the same order, so that a CPU rounds in the same places.


def _rmsprop_torch(parameter, gradient, square_average, copy, learning_rate, alpha, eps):
    for p, g, v, c, scratch in _chunks(parameter, gradient, square_average, copy):
        g = g.to(p.dtype)
        v.mul_(alpha).addcmul_(g, g, value=1 - alpha)
        _subtract_quotient_(p, learning_rate, g, torch.sqrt(v, out=scratch).add_(eps))
        if c is not None:
            c.copy_(p)


def _adam_torch(parameter, gradient, average, square_average, step, copy, learning_rate, beta1, beta2, eps):
    correction1, correction2 = (_one_minus_power(beta, step, parameter.dtype) for beta in (beta1, beta2))
    size, root = learning_rate / correction1, correction2**0.5
    for p, g, m, v, c, scratch in _chunks(parameter, gradient, average, square_average, copy):
        g = g.to(p.dtype)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = torch.sqrt(v, out=scratch).div_(root).add_(eps)
        _subtract_quotient_(p, size, m, denominator)
        if c is not None:
            c.copy_(p)


def _subtract_quotient_(p, size, numerator, denominator):
    """p −= size · numerator / denominator, of a size that is a number or a tensor; overwrites the denominator."""
    if isinstance(size, torch.Tensor):
        p.addcdiv_(numerator, denominator.div_(size), value=-1)
    else:
        p.addcdiv_(numerator, denominator, value=-size)


def _one_minus_power(beta, step, dtype):
    """1 − βᵗ: a number where the host can read t without waiting, a tensor otherwise."""
    if step.is_cpu:
        return 1 - beta ** step.item()
    # The difference has all its digits in float64 alone.
    return (1 - torch.pow(beta, step.double())).to(dtype)


def _chunks(parameter, *others):
    """Parts of all tensors (of None, None), and uninitialised memory of that size."""
    size = _CHUNK if parameter.is_cpu else max(1, parameter.numel())
    scratch = parameter.new_empty(min(size, parameter.numel()))
    for start in range(0, parameter.numel(), size):
        parts = [None if t is None else t[start : start + size] for t in (parameter, *others)]
        yield *parts, scratch[: parts[0].numel()]


def _check_scalar(name, value, parameter):
    if not isinstance(value, torch.Tensor):
        return
    if value.dim() != 0 or value.dtype != torch.float32 or value.device != parameter.device:
        raise ValueError(
            f"{name} must be one float32 on {parameter.device}, and is {list(value.shape)} {value.dtype} "
            f"on {value.device}"
        )


def _check(parameter, gradient, copy, **state):
    if parameter.dim() != 1 or not parameter.is_floating_point():
        raise ValueError(
            f"an optimiser's step needs a flat floating-point parameter and got {list(parameter.shape)} of "
            f"{parameter.dtype}"
        )
    for name, tensor in {"parameter": parameter, "gradient": gradient, **state, "copy": copy}.items():
        if tensor is None:
            continue
        if tensor.shape != parameter.shape or tensor.device != parameter.device:
            raise ValueError(
                f"{name} is {list(tensor.shape)} on {tensor.device}, but the parameter is {list(parameter.shape)} on "
                f"{parameter.device}"
            )
        if not tensor.is_contiguous() or not tensor.is_floating_point():
            raise ValueError(f"{name} must be contiguous and floating-point: see .contiguous() and .float()")
        if name in state and tensor.dtype != parameter.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, but the parameter {parameter.dtype}")
