"""Batch norm and an activation as one module."""

import copy

import torch
import torch.nn.functional as F
from torch import fx, nn

from tgan_fast.ops import batch_norm_act


class _BatchNormAct(nn.modules.batchnorm._BatchNorm):
    """`nn.BatchNorm*` and a leaky ReLU in one operation.

    Parameters, buffers and therefore the state dict are those of `nn.BatchNorm*`.

    Args:
        num_features: Number of channels C of the input [N, C, *].
        negative_slope: Finite slope of the activation below zero; 0 is ReLU, 1 is no activation.
        eps, momentum, affine, track_running_stats, device, dtype: Arguments of `nn.BatchNorm*`.
        process_group: Processes whose statistics are combined in training, as in `nn.SyncBatchNorm`, except that None
            means this process alone, and `torch.distributed.group.WORLD` all processes.
        backend: Backend of `tgan_fast.ops.batch_norm_act`.
    """

    def __init__(self, num_features, negative_slope=0.0, *, process_group=None, backend="auto", **batch_norm_options):
        super().__init__(num_features, **batch_norm_options)
        self.negative_slope = negative_slope
        self.process_group = process_group
        self.backend = backend

    def forward(self, input: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """Return act(batch_norm(input)) for input [N, C, *]; `tgan_fast.ops.batch_norm_act` explains `groups`."""
        if torch.jit.is_scripting():
            y = self._forward_in_torchscript(input, groups)
        elif isinstance(input, fx.Proxy):
            # torch.fx traces into every module that is not PyTorch's own, and would fail at the shape checks.
            arguments = (input,) if groups == 1 else (input, groups)
            y = input.tracer.create_proxy("call_module", input.tracer.path_of_module(self), arguments, {})
        else:
            y = self._normalize(input, groups, self.negative_slope)
        return y

    def _normalize(self, x, groups, negative_slope):
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
            negative_slope=negative_slope,
            groups=groups,
            num_batches_tracked=self.num_batches_tracked if self.training and tracked else None,
            process_group=self.process_group if self.training else None,
            backend=self.backend,
        )

    def _forward_in_torchscript(self, x: torch.Tensor, groups: int) -> torch.Tensor:
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
        return F.relu(y) if self.negative_slope == 0 else F.leaky_relu(y, float(self.negative_slope))

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
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """`nn.BatchNorm1d` and a leaky ReLU of slope `negative_slope` (0: ReLU, 1: none), on [N, C] or [N, C, L]."""


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """`nn.BatchNorm2d` and a leaky ReLU of slope `negative_slope` (0: ReLU, 1: none), on [N, C, H, W]."""


class BatchNormAct3d(_BatchNormAct, nn.BatchNorm3d):
    """`nn.BatchNorm3d` and a leaky ReLU of slope `negative_slope` (0: ReLU, 1: none), on [N, C, D, H, W]."""


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # the classes above are derived from them
FUSED = dict(zip(BATCH_NORMS, (BatchNormAct1d, BatchNormAct2d, BatchNormAct3d), strict=True))
