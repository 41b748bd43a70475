"""TGAN's Lipschitz constraint of a list of layers, and its part for batch norms alone.

    W ← U·diag(min(σ, t))·Vᵀ                              weights
    γ ← clamp(γ, lowest·s, s),  s = sqrt(running_var + ε)  batch-norm scales

A batch norm multiplies a channel by γ / s, so the second line keeps every factor in [lowest, 1] (Saito et al.,
arXiv:1611.06624, section 3.3). On a GPU the last kernel of the clipping clamps the scales as well.
"""

from collections.abc import Iterable, Sequence

import torch

from tgan_fast.choices import ClippingBackend
from tgan_fast.ops.arguments import check_tensor, check_writable, number, tensor_list
from tgan_fast.ops.clipping import choose_backends, clip_operands, cuda
from tgan_fast.ops.clipping.operands import checked_operands


@torch.no_grad()
def constrain_layers_(
    weights: torch.Tensor | Iterable[torch.Tensor],
    scales: torch.Tensor | Iterable[torch.Tensor],
    running_vars: torch.Tensor | Iterable[torch.Tensor],
    max_singular_value: float | Sequence[float] = 1.0,
    *,
    lowest: float = 0.01,
    eps: float = 0.0,
    copies: torch.Tensor | Iterable[torch.Tensor | None] | None = None,
    non_finite: torch.Tensor | None = None,
    backend: ClippingBackend = "auto",
) -> None:
    """Clip weights and clamp batch-norm scales in place.

    Args:
        weights, max_singular_value, copies, non_finite, backend: Arguments of `singular_value_clip_`.
        scales, running_vars, lowest, eps: Arguments of `clamp_batch_norm_scale_`; `scales` are its `weights`.

    Raises:
        TypeError, ValueError, BackendError: As for these two functions; nothing is changed then.
    """
    operands = checked_operands(weights, max_singular_value, copies, non_finite)
    scales, running_vars, lowest, eps = _checked_scales(scales, running_vars, lowest, eps)
    weights = [operand.weight for operand in operands]
    chosen = set(choose_backends(weights, backend))
    if chosen in ({"cuda"}, {"cuda-float64"}) and _one_launch_takes(weights, scales, running_vars):
        cuda.launch(
            weights,
            [operand.threshold for operand in operands],
            copies=[operand.copy for operand in operands],
            non_finite=non_finite,
            scales=scales,
            running_vars=running_vars,
            lowest=lowest,
            eps=eps,
            float64_only=chosen == {"cuda-float64"},
        )
        return
    clip_operands(operands, non_finite, "exact", backend)
    _clamp_scales_(scales, running_vars, lowest, eps)


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
        eps: Number added to the variance, ≥ 0; 0 as in the public implementations, whereas the paper uses the batch
            norm's own.

    Raises:
        TypeError: An argument is not a list of tensors, or not a number.
        ValueError: A tensor cannot be clamped, the two lists do not fit each other, or a number is out of range.
    """
    _clamp_scales_(*_checked_scales(weights, running_vars, lowest, eps))


def _clamp_scales_(scales, running_vars, lowest, eps):
    for scale, running_var in zip(scales, running_vars, strict=True):
        deviation = (running_var + eps).sqrt()
        scale.clamp_(min=lowest * deviation, max=deviation)


def _checked_scales(scales, running_vars, lowest, eps) -> tuple[list[torch.Tensor], list[torch.Tensor], float, float]:
    """Return scales and running variances as lists of equal length, and both numbers as floats."""
    scales, running_vars = tensor_list("scales", scales), tensor_list("running_vars", running_vars)
    if len(scales) != len(running_vars):
        raise ValueError(f"{len(scales)} scales, but {len(running_vars)} running variances: pass one for each scale")
    for scale, running_var in zip(scales, running_vars, strict=True):
        check_tensor("a scale", scale)
        check_tensor("a running variance", running_var)
        check_writable("a scale", scale)
        if scale.shape != running_var.shape:
            raise ValueError(
                f"a scale of {list(scale.shape)} needs a running variance of the same shape, not "
                f"{list(running_var.shape)}"
            )
        if scale.device != running_var.device:
            raise ValueError(
                f"a scale on {scale.device} needs a running variance on the same device, not on {running_var.device}"
            )
    return scales, running_vars, number("lowest", lowest, 0, 1), number("eps", eps)


def _one_launch_takes(weights, scales, running_vars):
    return len({tensor.device for tensor in (*weights, *scales, *running_vars)}) == 1 and all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in (*scales, *running_vars)
    )
