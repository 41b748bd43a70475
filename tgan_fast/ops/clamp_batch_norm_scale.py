"""The batch-norm half of TGAN's Lipschitz constraint.

    weight ← clamp(weight, lowest · s, s),   s = sqrt(running_var + eps)

A batch norm multiplies a channel by weight / s, so this keeps every factor in [lowest, 1]
(Saito et al., arXiv:1611.06624, section 3.3).
"""

from collections.abc import Sequence

import torch


@torch.no_grad()
def clamp_batch_norm_scale_(
    weights: Sequence[torch.Tensor], running_vars: Sequence[torch.Tensor], *, lowest: float = 0.01, eps: float = 0.0
) -> None:
    """Clamp batch-norm scales in place.

    Args:
        weights, running_vars: scale and running variance of each batch norm, [C] each.
        lowest: smallest factor a channel may keep.
        eps: added to the variance; 0 as the public implementations have it, the batch norm's own as the paper has it.

    Raises:
        ValueError: the two lists do not fit each other.
    """
    check_scales(weights, running_vars)
    for weight, running_var in zip(weights, running_vars, strict=True):
        deviation = (running_var + eps).sqrt()
        weight.clamp_(min=lowest * deviation, max=deviation)


def check_scales(weights: Sequence[torch.Tensor], running_vars: Sequence[torch.Tensor]) -> None:
    """Raise a ValueError where scales and running variances do not fit each other."""
    if len(weights) != len(running_vars):
        raise ValueError(f"{len(weights)} scales, but {len(running_vars)} running variances")
    for weight, running_var in zip(weights, running_vars, strict=True):
        if weight.shape != running_var.shape:
            raise ValueError(f"scale of {list(weight.shape)}, but running variance of {list(running_var.shape)}")
