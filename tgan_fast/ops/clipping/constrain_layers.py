"""TGAN's Lipschitz constraint of a list of layers, both halves in one call.

    W ← U·diag(min(σ, t))·Vᵀ                              weights (clipping)
    γ ← clamp(γ, lowest·s, s),  s = sqrt(running_var + ε)  batch norms (batch_norm_scale.py)

Saito et al., arXiv:1611.06624, section 3.3. On a GPU the second half is done by the last kernel of the first.
"""

from collections.abc import Iterable

import torch

from tgan_fast.ops.clipping import checked_weights, choose, singular_value_clip_
from tgan_fast.ops.clipping import cuda as cuda
from tgan_fast.ops.clipping.batch_norm_scale import checked_scales, clamp_batch_norm_scale_


@torch.no_grad()
def constrain_layers_(
    weights: torch.Tensor | Iterable[torch.Tensor],
    scales: torch.Tensor | Iterable[torch.Tensor],
    running_vars: torch.Tensor | Iterable[torch.Tensor],
    max_singular_value: float = 1.0,
    *,
    lowest: float = 0.01,
    eps: float = 0.0,
    copies: torch.Tensor | Iterable[torch.Tensor | None] | None = None,
    non_finite: torch.Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Clip weights and clamp batch-norm scales in place.

    Args:
        weights, max_singular_value, copies, non_finite, backend: Arguments of `singular_value_clip_`.
        scales, running_vars, lowest, eps: Arguments of `clamp_batch_norm_scale_`; `scales` are its `weights`.

    Raises:
        TypeError, ValueError, BackendError: As these two; nothing has changed then.
    """
    weights, copies, max_singular_value = checked_weights(weights, max_singular_value, copies, non_finite)
    scales, running_vars, lowest, eps = checked_scales(scales, running_vars, lowest, eps)
    if set(choose(weights, backend)) == {"cuda"} and _one_call_takes(weights, scales, running_vars):
        cuda.launch(
            weights,
            max_singular_value,
            copies=copies,
            non_finite=non_finite,
            scales=scales,
            running_vars=running_vars,
            lowest=lowest,
            eps=eps,
        )
        return
    singular_value_clip_(weights, max_singular_value, copies=copies, non_finite=non_finite, backend=backend)
    clamp_batch_norm_scale_(scales, running_vars, lowest=lowest, eps=eps)


def _one_call_takes(weights, scales, running_vars):
    return len({tensor.device for tensor in (*weights, *scales, *running_vars)}) == 1 and all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in (*scales, *running_vars)
    )
