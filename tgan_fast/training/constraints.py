"""Constraints that keep a discriminator Lipschitz."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call

from tgan_fast.models.spectral_norm import normalize_spectra_
from tgan_fast.nn import BATCH_NORMS, scales_of, weights_of
from tgan_fast.ops import clamp_batch_norm_scale_, constrain_layers_, native_ops
from tgan_fast.precision import Precision
from tgan_fast.training.network import TrainedNetwork


class Constraint:
    """Constraint that does nothing; subclasses override what they need.

    Attributes:
        penalizes: Whether `penalty` is added to the discriminator's loss.
    """

    penalizes = False

    def prepare_(self, discriminator: nn.Module) -> None:
        """Change a new discriminator, before it is trained or a saved state is loaded into it."""

    def apply_(self, network: TrainedNetwork, non_finite: torch.Tensor) -> None:
        """Change the weights of a discriminator after its steps.

        Args:
            network: Discriminator in training.
            non_finite: int32 tensor [], set to 1 where a weight is not finite.
        """

    def float32_precision(self, precision: Precision) -> Precision:
        """Return the arithmetic of float32 operations in an iteration of this precision."""
        return precision

    def penalty(
        self, discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor, mix: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the penalty that is added to the discriminator's loss, a tensor [].

        Args:
            discriminator: Network to call.
            real, fake: Videos [N, C, T, H, W] as the discriminator sees them, but without noise, in the dtype of its
                activations.
            mix: Shares of the real videos, uniform in [0, 1), float32 [N, 1, 1, 1, 1].
            labels: Labels, int64 [N], or None.
        """
        raise NotImplementedError


class SpectralClipping(Constraint):
    """Clipping of all weights' singular values to 1 and clamping of batch-norm scales, as in
    `tgan_fast.nn.constrain_`.
    """

    def apply_(self, network, non_finite):
        copies = None if network.flat.copy is None else weights_of(network.computing)
        constrain_layers_(weights_of(network.module), *scales_of(network.module), copies=copies, non_finite=non_finite)


class WeightClipping(Constraint):
    """Clipping of all parameters to ±0.01 (Arjovsky et al., arXiv:1701.07875)."""

    bound = 0.01

    def apply_(self, network, non_finite):
        network.flat.data.clamp_(-self.bound, self.bound)
        network.flat.refresh_copy()


class SpectralNormalization(Constraint):
    """Weights divided by their largest singular values in every use, and clamped batch-norm scales."""

    def prepare_(self, discriminator):
        normalize_spectra_(discriminator)

    def apply_(self, network, non_finite):
        clamp_batch_norm_scale_(*scales_of(network.module))


class GradientPenalty(Constraint):
    """λ·mean((‖∇D(x)‖ − 1)²) over videos x between real and fake ones (Gulrajani et al., arXiv:1704.00028).

    The norm is over the gradient of a whole video. The penalty is differentiated once more, which the fast operations
    do not support, so this pass uses PyTorch's own (`tgan_fast.ops.native_ops`). In a bfloat16 iteration it computes in
    float32 (TF32 where supported), because cuDNN may lack the second derivative's convolutions in bfloat16, which are
    dilated with kernels as large as the gradients; other float32 operations of the iteration may then use TF32, too.
    These videos do not change the running statistics of batch norms.

    Args:
        weight: Weight λ of the penalty, > 0.
    """

    penalizes = True

    def __init__(self, weight: float = 10.0):
        self.weight = weight

    def float32_precision(self, precision):
        return "tf32" if precision == "bf16" else precision

    def penalty(self, discriminator, real, fake, mix, labels):
        dtype = torch.promote_types(real.dtype, torch.float32)
        between = torch.lerp(fake.detach().to(dtype), real.detach().to(dtype), mix.to(dtype))
        # Channels last, like the discriminator's other inputs.
        between = between.movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
        weights = {name: weight.to(dtype) for name, weight in discriminator.named_parameters()}
        with native_ops(), _untracked(discriminator):
            scores = functional_call(discriminator, weights, between, {"labels": labels})
            (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
        # The small number avoids 0, where a square root has no derivative.
        norms = (gradient.square().sum((1, 2, 3, 4)) + 1e-12).sqrt()
        return self.weight * (norms - 1).square().mean()


@contextmanager
def _untracked(network: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged inside the block."""
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, before, strict=True):
            norm.track_running_stats = tracked
