"""Batch norm and activation as one module, a drop-in for `nn.BatchNorm*` followed by (leaky) ReLU."""

import torch
from torch import nn

from tgan_fast.ops import batch_norm_act


class _BatchNormAct(nn.modules.batchnorm._BatchNorm):
    """`nn.BatchNorm*` and a leaky ReLU in one operation.

    Parameters, buffers and therefore the state dict are those of `nn.BatchNorm*`.

    Args:
        num_features: C of the input [N, C, *].
        negative_slope: slope of the activation below zero; 0 is ReLU, 1 is no activation.
        eps, momentum, affine, track_running_stats, device, dtype: as in `nn.BatchNorm*`.
        backend: passed on to `tgan_fast.ops.batch_norm_act`.
    """

    def __init__(self, num_features, negative_slope=0.0, *, backend="auto", **batch_norm_options):
        super().__init__(num_features, **batch_norm_options)
        self.negative_slope = negative_slope
        self.backend = backend

    def forward(self, x: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """[N, C, *] → the same shape; `groups` as in `tgan_fast.ops.batch_norm_act`."""
        self._check_input_dim(x)
        batch_statistics = self.training or self.running_mean is None
        return batch_norm_act(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=batch_statistics,
            momentum=self._average_factor(groups),
            eps=self.eps,
            negative_slope=self.negative_slope,
            groups=groups,
            backend=self.backend,
        )

    def _average_factor(self, groups):
        if not (self.training and self.track_running_stats):
            return 0.0
        self.num_batches_tracked.add_(groups)
        if self.momentum is not None:
            return self.momentum
        if groups > 1:
            raise ValueError(f"cumulative statistics (momentum=None) take one part a call, and groups is {groups}")
        return 1.0 / float(self.num_batches_tracked)

    def extra_repr(self):
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """`nn.BatchNorm1d` and (leaky) ReLU: [N, C] or [N, C, L]."""


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """`nn.BatchNorm2d` and (leaky) ReLU: [N, C, H, W]."""


class BatchNormAct3d(_BatchNormAct, nn.BatchNorm3d):
    """`nn.BatchNorm3d` and (leaky) ReLU: [N, C, D, H, W]."""
