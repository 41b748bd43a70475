"""A network in training: its float32 weights, its optimizer, and the copy that computes in lower precision."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tgan_fast.models.layout import to_channels_last_
from tgan_fast.models.spectral_norm import SpectralNorm
from tgan_fast.nn import BATCH_NORMS
from tgan_fast.precision import Precision
from tgan_fast.processes import Processes
from tgan_fast.training.flat_parameters import FlatParameters
from tgan_fast.training.optimizers import FlatOptimizer


class TrainedNetwork:
    """A network with its optimizer.

    Args:
        module: Network. It is put into training mode, its convolution weights become channels-last, and all its
            parameters move into one buffer.
        precision: Precision of the computation; bf16 needs a compute copy.
        optimizer: Function that makes an optimizer of flat parameters.
        processes: Processes that train the network together.
        allreduce_extra: Tensors that are averaged over the processes together with the gradients, in place.

    Attributes:
        module: Network whose state is saved.
        flat: Flat parameters of `module`.
        computing: Network to call: `module` itself, or in bf16 a compute copy, whose convolutions and linear layers
            have bfloat16 copies of the weights and whose batch norms are those of `module`. The optimizer keeps it up
            to date.
        optimizer: Optimizer of `module`.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        precision: Precision,
        optimizer: Callable[[FlatParameters], FlatOptimizer],
        processes: Processes,
        allreduce_extra: Sequence[torch.Tensor] = (),
    ):
        self.module = to_channels_last_(module).train()
        self.flat = FlatParameters(
            module.parameters(),
            copy_dtype=torch.bfloat16 if precision == "bf16" else None,
            allreduce_extra=sum(tensor.numel() for tensor in allreduce_extra),
        )
        self.optimizer = optimizer(self.flat)
        self.computing = module if self.flat.copy is None else _compute_copy(module, self.flat.views(self.flat.copy))
        self._sources = list(self.computing.parameters())
        self._processes = processes
        self._allreduce_extra = [tensor.view(-1) for tensor in allreduce_extra]
        # A CPU's optimizer is faster if it reads gradients where backward leaves them.
        self._gathers = self.flat.copy is not None or self.flat.data.is_cuda or processes.size > 1

    def zero_grad(self) -> None:
        """Delete the gradients, and freeze in the compute copy what is frozen in the module."""
        self.optimizer.zero_grad()
        for parameter, source in zip(self.flat.parameters, self._sources, strict=True):
            source.requires_grad_(parameter.requires_grad)

    def update(self) -> None:
        """Do a step of the optimizer with the gradients of the last backward pass, averaged over the processes."""
        if self._gathers:
            self.flat.gather(self._sources)
        if self._processes.size > 1:
            self._average()
        self.optimizer.step()

    def _average(self):
        extra = self._allreduce_extra
        places = self.flat.allreduce_extra.split([tensor.numel() for tensor in extra])
        if extra:
            torch._foreach_copy_(places, extra)
        self._processes.average_(self.flat.allreduce_buffer)
        if extra:
            torch._foreach_copy_(extra, places)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Compute no gradients for the weights inside the block."""
        trainable = [parameter for parameter in self._sources if parameter.requires_grad]
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)

    def load_state_dict(self, state: dict) -> None:
        """Load a state dict of the module, and update the compute copy."""
        self.module.load_state_dict(state)
        self.flat.refresh_copy()


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    """Return the running means and variances of all batch norms."""
    norms = [child for child in module.modules() if isinstance(child, BATCH_NORMS) and child.track_running_stats]
    return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var) if statistic is not None]


def _compute_copy(module, copies):
    """Return a copy of a network with other parameters, which shares the modules that have buffers."""
    computing = copy.deepcopy(module)
    for name, copied in zip(dict(module.named_parameters()), copies, strict=True):
        owner, _, attribute = name.rpartition(".")
        setattr(computing.get_submodule(owner), attribute, nn.Parameter(copied))
    for name, child in module.named_modules():
        if isinstance(child, (*BATCH_NORMS, SpectralNorm)):
            computing.set_submodule(name, child)
    return computing
