"""Constraints of the singular values of a network's weights."""

from typing import Any

import torch
from torch import nn

from tgan_fast.choices import ClippingAccuracy, ClippingBackend
from tgan_fast.nn.batch_norm_act import BATCH_NORMS
from tgan_fast.ops import constrain_layers_, singular_value_clip, singular_value_clip_
from tgan_fast.ops.clipping import check_options
from tgan_fast.ops.clipping.operands import check_weight

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class SingularValueClipping:
    """Clipping of a module's weights after the steps of an optimizer, which calls it as a hook.

        optimizer.register_step_post_hook(SingularValueClipping(model, 1.0, every=5))

    It clips the weights of `nn.Linear`, `nn.Conv1d/2d/3d` and `nn.ConvTranspose1d/2d/3d` as matrices [shape[0],
    everything else], and every projection of an `nn.MultiheadAttention` as a matrix of its own. Parameters, state dict
    and forward pass of the module stay as they are. Weights that are not finite are left alone.

    Before the first clipping, and between two of them, weights may exceed the threshold; after one, by rounding.

    Args:
        module: Network whose weights are clipped; layers that are added later are clipped too.
        max_singular_value: Threshold, as in `tgan_fast.ops.singular_value_clip`.
        every: Number of steps from one clipping to the next.
        accuracy, backend: Arguments of `tgan_fast.ops.singular_value_clip`.

    Attributes:
        steps: Number of steps taken. Save it beside the optimizer's state, and set it when training is resumed.

    Raises:
        TypeError: `module` is not an `nn.Module`.
        ValueError: `every` is not a positive whole number, the module has no weight to clip, a parametrization computes
            one of the weights, or another argument is refused by `tgan_fast.ops.singular_value_clip`.
    """

    def __init__(
        self,
        module: nn.Module,
        max_singular_value: float = 1.0,
        *,
        every: int = 1,
        accuracy: ClippingAccuracy = "exact",
        backend: ClippingBackend = "auto",
    ):
        if not isinstance(module, nn.Module):
            raise TypeError(f"SingularValueClipping takes an nn.Module, not an object of type {type(module).__name__}")
        if type(every) is not int or every < 1:
            raise ValueError(f"every must be a whole number of steps, 1 or more, not {every!r}")
        self.module, self.max_singular_value, self.every = module, max_singular_value, every
        self.accuracy, self.backend = accuracy, backend
        self.steps = 0
        # Report errors here rather than after `every` steps.
        check_options(max_singular_value, accuracy, backend)
        if not _matrices_of(module):
            raise ValueError(f"{type(module).__name__} has no linear layer, convolution or attention to clip")

    def __call__(self, *_hook_arguments: Any) -> None:
        """Count a step, and clip after every `every`-th; the arguments of the hook are not used."""
        self.steps += 1
        if self.steps % self.every == 0:
            weights = _matrices_of(self.module)
            singular_value_clip_(weights, self.max_singular_value, accuracy=self.accuracy, backend=self.backend)


def _matrices_of(module) -> list[torch.Tensor]:
    """Return the weights that `SingularValueClipping` clips."""
    weights: list[torch.Tensor] = []
    for name, child in module.named_modules():
        names = [key for key in _clipped_parameters(child) if getattr(child, key, None) is not None]
        # A parametrization, pruning or FSDP computes the attribute, and keeps its parameters elsewhere.
        parameters = dict(child.named_parameters(recurse=False))
        if computed := [key for key in names if key not in parameters]:
            raise ValueError(
                f"{computed[0]} of {name or type(child).__name__} is computed by a parametrization, so clipping it "
                "would change nothing: remove the parametrization, or leave the layer out of the module"
            )
        for key in names:
            weight = parameters[key]
            if key == "in_proj_weight":  # [3·E, E], of query, key and value
                check_weight(weight)  # its parts would not show that it is sharded
                weights += weight.detach().chunk(3)
            else:
                weights.append(weight)
    return weights


def _clipped_parameters(module):
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    return ("weight",) if isinstance(module, (*WEIGHTED, *TRANSPOSED)) else ()


class ClippedSingularValues(nn.Module):
    """Parametrization that clips the singular values of a weight in every forward pass, with gradients through it.

        torch.nn.utils.parametrize.register_parametrization(layer, "weight", ClippedSingularValues(1.0))

    The optimizer moves the unclipped weight, so it costs a clipping per forward pass and an eigendecomposition per
    backward pass; `SingularValueClipping` costs less.

    Args:
        max_singular_value, batch_dims, out_dim, accuracy, backend: Arguments of
            `tgan_fast.ops.singular_value_clip`.
    """

    def __init__(
        self,
        max_singular_value: float = 1.0,
        *,
        batch_dims: int = 0,
        out_dim: int = 0,
        accuracy: ClippingAccuracy = "exact",
        backend: ClippingBackend = "auto",
    ):
        super().__init__()
        check_options(max_singular_value, accuracy, backend)
        self.max_singular_value = max_singular_value
        self.options: dict[str, Any] = {
            "batch_dims": batch_dims,
            "out_dim": out_dim,
            "accuracy": accuracy,
            "backend": backend,
        }

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the clipped weight."""
        return singular_value_clip(weight, self.max_singular_value, **self.options)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight`, which becomes the unclipped weight when a user assigns it."""
        return weight

    def extra_repr(self):
        return f"max_singular_value={self.max_singular_value}"


def constrain_(network: nn.Module, max_singular_value: float = 1.0, *, backend: ClippingBackend = "auto") -> None:
    """Constrain the weights and batch-norm scales of a network, in place, as TGAN does its discriminator.

    The singular values of the weights of `nn.Linear` and `nn.Conv1d/2d/3d`, as matrices [out, everything else], are
    clipped at `max_singular_value`. The scales of `nn.BatchNorm1d/2d/3d` that have running statistics are clamped into
    [0.01·s, s] with s = sqrt(running_var). Activations of slope ≤ 1 need no change (Saito et al., arXiv:1611.06624,
    section 3.3). All other layers stay as they are, including transposed convolutions, whose weights
    `tgan_fast.ops.singular_value_clip_` and `SingularValueClipping` clip. With a threshold of 1, linear layers do
    not amplify; a convolution still can where its windows overlap.

    Args:
        network: Discriminator, or any other module.
        max_singular_value: Threshold, as in `tgan_fast.ops.singular_value_clip`.
        backend: Backend of `tgan_fast.ops.constrain_layers_`.
    """
    constrain_layers_(weights_of(network), *scales_of(network), max_singular_value, backend=backend)


def weights_of(network: nn.Module) -> list[torch.Tensor]:
    """Return the weights of all linear layers and convolutions."""
    return [module.weight for module in network.modules() if isinstance(module, WEIGHTED)]


def scales_of(network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the scales and the running variances of all batch norms that have both."""
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    norms = [norm for norm in norms if norm.affine and norm.track_running_stats]
    return [norm.weight for norm in norms], [norm.running_var for norm in norms if norm.running_var is not None]
