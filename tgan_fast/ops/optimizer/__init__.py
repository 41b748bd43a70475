"""One step of RMSprop and of Adam, in place, on one flat tensor of parameters.

    RMSprop   v ← α·v + (1 − α)·g²
              p ← p − lr·g / (√v + ε)

    Adam      m ← β₁·m + (1 − β₁)·g
              v ← β₂·v + (1 − β₂)·g²
              p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

These are torch.optim.RMSprop without momentum, centering and weight decay (Hinton, Coursera lecture 6e, 2012) and
torch.optim.Adam without AMSGrad and weight decay (Kingma and Ba, arXiv:1412.6980). The same pass can write a copy of p
in a narrower dtype for matrix products.
"""

import torch

from tgan_fast.choices import Backend
from tgan_fast.ops.arguments import check_tensor, check_writable, number
from tgan_fast.ops.dispatch import choose
from tgan_fast.ops.optimizer import cpu

# Number of elements that the "torch" backend processes at a time on a CPU: their memory, 4 MB in float32, stays in the
# cache between operations. Smaller chunks are slower, because every operation has a fixed cost.
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
    backend: Backend = "auto",
) -> None:
    """Take one step of RMSprop in place. Moves 20 bytes per element in float32, 22 with a copy in half precision.

    Args:
        parameter, square_average: Flat tensors p and v, [n] each, contiguous, both float64, float32, float16 or
            bfloat16; the kernels ("triton", "cpu") take float32.
        gradient: Flat tensor g, [n], contiguous, floating point; the kernels take float32, bfloat16 and float16.
        learning_rate: Number lr ≥ 0, or a float32 tensor [] on the same device, which the host never reads from a GPU.
        alpha, eps: Numbers α, 0 to 1, and ε ≥ 0.
        copy: Flat tensor, [n], contiguous, of any floating-point dtype (the kernels: bfloat16 and float16), that
            receives the new p, rounded; None for no copy.
        backend: Name of an implementation: "triton" (GPUs), "cpu" (C++ kernels) or "torch"; "auto" picks the fastest
            that fits. On a CPU "torch" gives the same bits as torch.optim.RMSprop.

    Raises:
        TypeError: An argument is not a tensor, or not a number.
        ValueError: Shapes, dtypes or devices do not fit, or a number is out of range.
        BackendError: The requested backend cannot run here, or cannot take these tensors.
    """
    _check(parameter, gradient, copy, square_average=square_average)
    learning_rate = _number_or_scalar("learning_rate", learning_rate, parameter)
    alpha, eps = number("alpha", alpha, 0, 1), number("eps", eps)
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
    backend: Backend = "auto",
) -> None:
    """Take one step of Adam in place. Moves 28 bytes per element in float32, 30 with a copy in half precision.

    Args:
        parameter, average, square_average: Flat tensors p, m and v, with the shape and dtypes that `rmsprop_` takes.
        gradient, learning_rate, copy, backend: Arguments as for `rmsprop_`.
        step: Number t of this step, 1 for the first, as a float32 tensor [] on the same device. The host never reads it
            from a GPU, so that a CUDA graph can replay the step.
        beta1, beta2, eps: Numbers β₁ and β₂, 0 to 1, and ε ≥ 0.

    Raises:
        TypeError, ValueError, BackendError: As for `rmsprop_`.
    """
    _check(parameter, gradient, copy, average=average, square_average=square_average)
    _check_scalar("step", step, parameter)
    if step.is_cpu and not step.item() >= 1:
        raise ValueError(f"step is {step.item():g}: pass 1 for the first step")
    learning_rate = _number_or_scalar("learning_rate", learning_rate, parameter)
    beta1, beta2, eps = number("beta1", beta1, 0, 1), number("beta2", beta2, 0, 1), number("eps", eps)
    update = _implementation("adam", backend, parameter, gradient, copy)
    update(parameter, gradient, average, square_average, step, copy, learning_rate, beta1, beta2, eps)


def _implementation(operation, backend, parameter, gradient, copy):
    """Return the function of a backend that takes the step."""
    tensors = parameter, gradient, copy
    why_not = {"triton": lambda: _why_not_triton(*tensors), "cpu": lambda: cpu.why_not(*tensors)}
    backend = choose(operation, backend, parameter, why_not)
    if backend == "torch":
        return {"rmsprop": _rmsprop_torch, "adam": _adam_torch}[operation]
    if backend == "cpu":
        return {"rmsprop": cpu.rmsprop, "adam": cpu.adam}[operation]
    from tgan_fast.ops.optimizer import triton as optimizer_kernels

    return {"rmsprop": optimizer_kernels.rmsprop, "adam": optimizer_kernels.adam}[operation]


def _why_not_triton(parameter, gradient, copy):
    from tgan_fast.ops.optimizer.triton import why_not

    return why_not(parameter, gradient, copy)


# These functions do the operations of PyTorch's optimizers in the same order, so that a CPU rounds in the same places.


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
    """Subtract size · numerator / denominator from p and overwrite the denominator; size is a number or a tensor."""
    if isinstance(size, torch.Tensor):
        p.addcdiv_(numerator, denominator.div_(size), value=-1)
    else:
        p.addcdiv_(numerator, denominator, value=-size)


def _one_minus_power(beta, step, dtype):
    """Return 1 − βᵗ: a number where the host can read t without waiting, a tensor otherwise."""
    if step.is_cpu:
        return 1 - beta ** step.item()
    # Only in float64 does the difference keep all its digits.
    return (1 - torch.pow(beta, step.double())).to(dtype)


def _chunks(parameter, *others):
    """Yield chunks of all tensors (None for None), and uninitialized memory of one chunk's size."""
    size = _CHUNK if parameter.is_cpu else max(1, parameter.numel())
    scratch = parameter.new_empty(min(size, parameter.numel()))
    for start in range(0, parameter.numel(), size):
        chunks = [None if t is None else t[start : start + size] for t in (parameter, *others)]
        yield *chunks, scratch[: chunks[0].numel()]


def _number_or_scalar(name, value, parameter):
    if not isinstance(value, torch.Tensor):
        return number(name, value)
    _check_scalar(name, value, parameter)
    return value


def _check_scalar(name, value, parameter):
    check_tensor(name, value, float8=True)
    if value.dim() != 0 or value.dtype != torch.float32 or value.device != parameter.device:
        raise ValueError(
            f"{name} must be one float32 on {parameter.device}, and is {list(value.shape)} {value.dtype} "
            f"on {value.device}"
        )


def _check(parameter, gradient, copy, **state):
    check_tensor("parameter", parameter)
    if parameter.dim() != 1:
        raise ValueError(f"an optimizer's step needs a flat parameter and got the shape {list(parameter.shape)}")
    for name, tensor in {"parameter": parameter, "gradient": gradient, **state, "copy": copy}.items():
        if name == "copy" and copy is None:
            continue
        check_tensor(name, tensor, float8=name in ("gradient", "copy"))
        if tensor.shape != parameter.shape or tensor.device != parameter.device:
            raise ValueError(
                f"{name} is {list(tensor.shape)} on {tensor.device}, but the parameter is {list(parameter.shape)} on "
                f"{parameter.device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous: pass a .contiguous() tensor")
        if name != "gradient":
            check_writable(name, tensor)
        if name in state and tensor.dtype != parameter.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, but the parameter is {parameter.dtype}")
