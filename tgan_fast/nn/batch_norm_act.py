"""Batch norm and an activation as one module."""

import copy

import torch
import torch.nn.functional as F
from torch import fx, nn

from tgan_fast.choices import ActivationName, Backend
from tgan_fast.ops import batch_norm_act
from tgan_fast.ops.batch_norm import check_activation
from tgan_fast.ops.batch_norm.activation import IDENTITY, Activation
from tgan_fast.ops.batch_norm.torch_impl import activate


class _BatchNormAct(nn.modules.batchnorm._BatchNorm):
    """`nn.BatchNorm*` and an activation in one operation.

    Parameters, buffers and therefore the state dict are those of `nn.BatchNorm*`.

    Args:
        num_features: Number of channels C of the input [N, C, *].
        negative_slope: Finite slope of the leaky ReLU below zero; 0 is ReLU, 1 is no activation.
        activation: Name of the activation, as in `tgan_fast.ops.batch_norm_act`.
        eps, momentum, affine, track_running_stats, device, dtype: Arguments of `nn.BatchNorm*`.
        process_group: Processes whose statistics are combined in training, as in `nn.SyncBatchNorm`, except that None
            means this process alone, and `torch.distributed.group.WORLD` all processes.
        backend: Backend of `tgan_fast.ops.batch_norm_act`.
    """

    def __init__(
        self,
        num_features: int,
        negative_slope: float = 0.0,
        *,
        activation: ActivationName = "leaky_relu",
        process_group=None,
        backend: Backend = "auto",
        **batch_norm_options,
    ):
        super().__init__(num_features, **batch_norm_options)
        check_activation(activation, negative_slope)
        self.negative_slope = negative_slope
        self.activation = activation
        self.process_group = process_group
        self.backend = backend

    def forward(self, input: torch.Tensor, groups: int = 1, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return act(batch_norm(input) + residual) for input [N, C, *].

        `tgan_fast.ops.batch_norm_act` explains `groups` and `residual`.
        """
        if torch.jit.is_scripting():
            y = self._forward_in_torchscript(input, groups, residual)
        elif isinstance(input, fx.Proxy):
            y = self._trace(input, groups, residual)
        else:
            y = self.normalize(input, Activation(self.activation, self.negative_slope), residual, groups)
        return y

    def normalize(self, x, activation, residual=None, groups=1):
        """Compute `forward` with another activation."""
        self._check_input_dim(x)
        tracked = not self.training or self.track_running_stats
        running_mean, running_var = (self.running_mean, self.running_var) if tracked else (None, None)
        return batch_norm_act(
            x,
            self.weight,
            self.bias,
            running_mean,
            running_var,
            training=self.training or running_mean is None,
            momentum=self.momentum,
            eps=self.eps,
            negative_slope=activation.negative_slope,
            activation=activation.name,
            residual=residual,
            groups=groups,
            num_batches_tracked=self.num_batches_tracked if self.training and tracked else None,
            process_group=self.process_group if self.training else None,
            backend=self.backend,
        )

    def _trace(self, x, groups, residual):
        # torch.fx traces into every module that is not PyTorch's own, and would fail at the shape checks.
        options = {"groups": groups} if groups != 1 else {}
        if residual is not None:
            options["residual"] = residual
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), options)

    def _forward_in_torchscript(self, x: torch.Tensor, groups: int, residual: torch.Tensor | None) -> torch.Tensor:
        assert groups == 1, "groups must be 1 in torch.jit.script"
        self._check_input_dim(x)
        tracked = not self.training or self.track_running_stats
        mean = self.running_mean if tracked else None
        var = self.running_var if tracked else None
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and tracked and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, self.training or mean is None, momentum, self.eps)
        if residual is not None:
            y = y + residual
        return activate(y, self.activation, float(self.negative_slope))

    def has_activation(self):
        """Return whether the module computes more than batch norm."""
        return (self.activation, self.negative_slope) != IDENTITY

    def __prepare_scriptable__(self):
        if self.process_group is not None:
            raise ValueError("torch.jit.script cannot combine statistics of processes: set process_group to None")
        return self

    def __deepcopy__(self, memo):
        """Return a copy that shares the process group, which cannot be copied."""
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        memo[id(self.process_group)] = self.process_group
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone

    def extra_repr(self):
        shown = "negative_slope={negative_slope}" if self.activation == "leaky_relu" else "activation={activation}"
        return f"{super().extra_repr()}, {shown.format(**vars(self))}"


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """`nn.BatchNorm1d` and an activation, by default ReLU, on [N, C] or [N, C, L]."""


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """`nn.BatchNorm2d` and an activation, by default ReLU, on [N, C, H, W]."""


class BatchNormAct3d(_BatchNormAct, nn.BatchNorm3d):
    """`nn.BatchNorm3d` and an activation, by default ReLU, on [N, C, D, H, W]."""


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # the classes above are derived from them
FUSED = dict(zip(BATCH_NORMS, (BatchNormAct1d, BatchNormAct2d, BatchNormAct3d), strict=True))
