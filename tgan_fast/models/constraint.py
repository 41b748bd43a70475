"""TGAN's Lipschitz constraint of a whole discriminator."""

import torch
from torch import nn

from tgan_fast.ops import clamp_batch_norm_scale_, singular_value_clip_

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def constrain_(discriminator: nn.Module, max_singular_value: float = 1.0, *, backend: str = "auto") -> None:
    """Make every layer of a discriminator a contraction, in place.

    The singular values of every convolution's and linear layer's weight (as the matrix [out, everything else]) are
    clipped at `max_singular_value`; every batch norm's scale is clamped into [0.01·s, s], s = sqrt(running_var).
    Activations of slope ≤ 1 need nothing (Saito et al., arXiv:1611.06624, section 3.3).

    Args:
        discriminator: any module; other layers than those named stay as they are.
        max_singular_value: the threshold, > 0.
        backend: of `tgan_fast.ops.singular_value_clip_`.
    """
    modules = list(discriminator.modules())
    singular_value_clip_(
        [module.weight for module in modules if isinstance(module, (nn.Linear, *_CONVOLUTIONS))],
        max_singular_value,
        backend=backend,
    )
    batch_norms = [
        module
        for module in modules
        if isinstance(module, _BATCH_NORMS) and module.affine and module.track_running_stats
    ]
    clamp_batch_norm_scale_([module.weight for module in batch_norms], [module.running_var for module in batch_norms])
