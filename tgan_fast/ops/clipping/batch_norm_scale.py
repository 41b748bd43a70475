"""The batch-norm half of TGAN's Lipschitz constraint.

    weight ← clamp(weight, lowest · s, s),   s = sqrt(running_var + eps)

A batch norm multiplies a channel by weight / s, so this keeps every factor in [lowest, 1]
(Saito et al., arXiv:1611.06624, section 3.3).
"""

from collections.abc import Iterable

import torch

from tgan_fast.ops.arguments import check_tensor, check_writable, number, tensor_list


@torch.no_grad()
def clamp_batch_norm_scale_(
    weights: torch.Tensor | Iterable[torch.Tensor],
    running_vars: torch.Tensor | Iterable[torch.Tensor],
    *,
    lowest: float = 0.01,
    eps: float = 0.0,
) -> None:
    """Clamp batch-norm scales in place.

    Args:
        weights, running_vars: Lists of the scale and the running variance of each batch norm, [C] each, dense, in
            float64, float32, float16 or bfloat16. A tensor stands for a list of one.
        lowest: Smallest factor a channel may keep, 0 to 1.
        eps: Number added to the variance, ≥ 0; 0 as the public implementations have it, the batch norm's own as the
            paper has it.

    Raises:
        TypeError: An argument is no list of tensors, or no number.
        ValueError: A tensor cannot be clamped, the two lists do not fit each other, or a number is out of range.
    """
    weights, running_vars, lowest, eps = checked_scales(weights, running_vars, lowest, eps)
    for weight, running_var in zip(weights, running_vars, strict=True):
        deviation = (running_var + eps).sqrt()
        weight.clamp_(min=lowest * deviation, max=deviation)


def checked_scales(weights, running_vars, lowest, eps) -> tuple[list[torch.Tensor], list[torch.Tensor], float, float]:
    """Return scales and running variances as lists of one length, and both numbers as floats.

    Raises:
        TypeError, ValueError: As `clamp_batch_norm_scale_`.
    """
    weights, running_vars = tensor_list("scales", weights), tensor_list("running_vars", running_vars)
    if len(weights) != len(running_vars):
        raise ValueError(f"{len(weights)} scales, but {len(running_vars)} running variances")
    for weight, running_var in zip(weights, running_vars, strict=True):
        check_tensor("a scale", weight)
        check_tensor("a running variance", running_var)
        check_writable("a scale", weight)
        if weight.shape != running_var.shape:
            raise ValueError(f"scale of {list(weight.shape)}, but running variance of {list(running_var.shape)}")
        if weight.device != running_var.device:
            raise ValueError(f"scale on {weight.device}, but running variance on {running_var.device}")
    return weights, running_vars, number("lowest", lowest, 0, 1), number("eps", eps)
