"""TGAN's Lipschitz constraint of a whole discriminator."""

import torch
from torch import nn

from tgan_fast.nn import BATCH_NORMS
from tgan_fast.ops import constrain_layers_

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def constrain_(
    discriminator: nn.Module,
    max_singular_value: float = 1.0,
    *,
    twin: nn.Module | None = None,
    non_finite: torch.Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Make every layer of a discriminator a contraction, in place.

    The singular values of every convolution's and linear layer's weight (as the matrix [out, everything else]) are
    clipped at `max_singular_value`; every batch norm's scale is clamped into [0.01·s, s], s = sqrt(running_var).
    Activations of slope ≤ 1 need nothing (Saito et al., arXiv:1611.06624, section 3.3).

    Args:
        discriminator: any module; other layers than those named stay as they are.
        max_singular_value: the threshold, > 0.
        twin: the same network with copies of these weights, in bfloat16 for instance, which get the clipped values.
        non_finite, backend: of `tgan_fast.ops.constrain_layers_`.
    """
    batch_norms = [
        module
        for module in discriminator.modules()
        if isinstance(module, BATCH_NORMS) and module.affine and module.track_running_stats
    ]
    constrain_layers_(
        _weights(discriminator),
        [module.weight for module in batch_norms],
        [module.running_var for module in batch_norms],
        max_singular_value,
        copies=None if twin is None else _weights(twin),
        non_finite=non_finite,
        backend=backend,
    )


def _weights(network):
    return [module.weight for module in network.modules() if isinstance(module, WEIGHTED)]
