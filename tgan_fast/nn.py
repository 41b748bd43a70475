"""Batch norm and activation as one module, a drop-in for `nn.BatchNorm*` followed by (leaky) ReLU."""

import copy

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
        process_group: in training, take the statistics over all its processes, as `nn.SyncBatchNorm` does; None, unlike
            there, is this process alone (`torch.distributed.group.WORLD` are all).
        backend: passed on to `tgan_fast.ops.batch_norm_act`.
    """

    def __init__(self, num_features, negative_slope=0.0, *, process_group=None, backend="auto", **batch_norm_options):
        super().__init__(num_features, **batch_norm_options)
        self.negative_slope = negative_slope
        self.process_group = process_group
        self.backend = backend

    def forward(self, x: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """[N, C, *] → the same shape; `groups` as in `tgan_fast.ops.batch_norm_act`."""
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
            negative_slope=self.negative_slope,
            groups=groups,
            num_batches_tracked=self.num_batches_tracked if self.training and tracked else None,
            process_group=self.process_group if self.training else None,
            backend=self.backend,
        )

    def __deepcopy__(self, memo):
        """A copy works with the same processes: a process group cannot be copied."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        memo[id(self.process_group)] = self.process_group
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def extra_repr(self):
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}"


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """`nn.BatchNorm1d` and (leaky) ReLU: [N, C] or [N, C, L]."""


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """`nn.BatchNorm2d` and (leaky) ReLU: [N, C, H, W]."""


class BatchNormAct3d(_BatchNormAct, nn.BatchNorm3d):
    """`nn.BatchNorm3d` and (leaky) ReLU: [N, C, D, H, W]."""


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # the classes above are derived from them
_FUSED = dict(zip(BATCH_NORMS, (BatchNormAct1d, BatchNormAct2d, BatchNormAct3d), strict=True))


def convert_batch_norm(module: nn.Module, *, process_group=None, backend: str = "auto") -> nn.Module:
    """Replace every `nn.BatchNorm1d/2d/3d` of a network by `BatchNormAct1d/2d/3d`.

    In an `nn.Sequential`, an `nn.ReLU` or `nn.LeakyReLU` right behind a batch norm becomes part of it, and an
    `nn.Identity` takes its place; elsewhere the order of calls is not known and a batch norm stays without activation.
    Parameters and buffers remain the same objects, so that optimisers and the names in the state dict stay as they are.
    Other classes, subclasses of these and modules with hooks are left alone.

    Args:
        module: the network, changed in place.
        process_group, backend: for every new module, as in `BatchNormAct1d`.

    Returns:
        The network; a new module if it is itself a batch norm.
    """
    fused = {}

    def replacement(norm, negative_slope):
        # The same module in two places stays one, unless the two differ in what follows.
        if (norm, negative_slope) not in fused:
            fused[norm, negative_slope] = _fuse(norm, negative_slope, process_group=process_group, backend=backend)
        return fused[norm, negative_slope]

    if _is_plain(module, _FUSED):
        return replacement(module, 1.0)
    for parent in list(module.modules()):
        _convert_children(parent, replacement)
    return module


def _convert_children(parent, replacement):
    names = list(parent._modules)
    in_order = type(parent).forward is nn.Sequential.forward
    for position, name in enumerate(names):
        norm = parent._modules[name]
        if not _is_plain(norm, _FUSED):
            continue
        following = names[position + 1] if in_order and position + 1 < len(names) else None
        activation = parent._modules.get(following)
        if _is_plain(activation, (nn.ReLU, nn.LeakyReLU)):
            parent.add_module(name, replacement(norm, getattr(activation, "negative_slope", 0.0)))
            parent.add_module(following, nn.Identity().train(activation.training))
        else:
            parent.add_module(name, replacement(norm, 1.0))


def _is_plain(module, classes):
    return type(module) in classes and not is_watched(module)


def is_watched(module: nn.Module) -> bool:
    """Whether hooks of a module see its inputs, outputs or gradients."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def _fuse(norm, negative_slope, **options):
    """A module that shares parameters and buffers with `norm`."""
    fused = _FUSED[type(norm)](
        norm.num_features,
        negative_slope,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        device="meta",
        **options,
    )
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(fused, name, getattr(norm, name))
    return fused.train(norm.training)
