"""Launchers of the C++ kernels of RMSprop and Adam, csrc/cpu/optimizer.h."""

import torch

from tgan_fast.ops.cpu_extension import extension, why_not_tensor

_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not(parameter: torch.Tensor, gradient: torch.Tensor, copy: torch.Tensor | None) -> str | None:
    """Return why the kernels cannot take these tensors, or None if they can."""
    if parameter.dtype != torch.float32:
        return f"it takes float32 parameters, and these are {parameter.dtype}"
    for name, tensor in (("gradients", gradient), ("copies", copy)):
        if tensor is not None and tensor.dtype not in _TYPES:
            return f"it takes {name} in {', '.join(_TYPES.values())}, and these are {tensor.dtype}"
    return why_not_tensor(parameter)


def rmsprop(parameter, gradient, square_average, copy, learning_rate, alpha, eps):
    """Take a step as the public `rmsprop_` does."""
    extension().rmsprop(
        parameter.numel(),
        parameter.data_ptr(),
        *_address_and_type(gradient),
        square_average.data_ptr(),
        *_address_and_type(copy),
        float(learning_rate),
        alpha,
        eps,
        torch.get_num_threads(),
    )
    torch.autograd.graph.increment_version([t for t in (parameter, square_average, copy) if t is not None])


def adam(parameter, gradient, average, square_average, step, copy, learning_rate, beta1, beta2, eps):
    """Take a step as the public `adam_` does."""
    t = step.item()
    extension().adam(
        parameter.numel(),
        parameter.data_ptr(),
        *_address_and_type(gradient),
        average.data_ptr(),
        square_average.data_ptr(),
        *_address_and_type(copy),
        float(learning_rate) / (1 - beta1**t),
        (1 - beta2**t) ** 0.5,
        beta1,
        beta2,
        eps,
        torch.get_num_threads(),
    )
    torch.autograd.graph.increment_version([t for t in (parameter, average, square_average, copy) if t is not None])


def _address_and_type(tensor):
    types = extension().Type
    return (0, types.float32) if tensor is None else (tensor.data_ptr(), getattr(types, _TYPES[tensor.dtype]))
