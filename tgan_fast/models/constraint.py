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

    The singular values of the weights of `nn.Linear` and `nn.Conv1d/2d/3d`, as matrices [out, everything else], are
    clipped at `max_singular_value`. The scales of `nn.BatchNorm1d/2d/3d` that have running statistics are clamped into
    [0.01·s, s], s = sqrt(running_var). Activations of slope ≤ 1 need nothing (Saito et al., arXiv:1611.06624,
    section 3.3). All other layers stay as they are, transposed convolutions too: clip their weights, [in, everything
    else], with `tgan_fast.ops.singular_value_clip_`.

    Args:
        discriminator: Module of any kind.
        max_singular_value: Threshold, as in `tgan_fast.ops.singular_value_clip`.
        twin: Network of the same layers, whose weights become copies of the clipped ones, in bfloat16 for instance.
        non_finite, backend: Arguments of `tgan_fast.ops.constrain_layers_`.
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
