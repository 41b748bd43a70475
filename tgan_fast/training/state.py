"""State of a training run: networks with their optimizers, averaged generator, random numbers."""

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from tgan_fast.models import Discriminator, Generator
from tgan_fast.models.batch_statistics import estimate_statistics_
from tgan_fast.precision import PrecisionOption, arithmetic, compute_dtype, resolve_precision
from tgan_fast.processes import Processes
from tgan_fast.training.network import TrainedNetwork, running_statistics
from tgan_fast.training.optimizers import FlatOptimizer

# Names of the scalars that an iteration returns, in this order.
SCALARS = ("loss_discriminator", "loss_generator", "score_real", "score_fake")


class TrainingState:
    """Everything that the next iterations depend on; `TrainingStep` describes arguments and attributes."""

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        *,
        optimizer: Callable[..., FlatOptimizer],
        learning_rate: float,
        discriminator_learning_rate: float | None,
        decay_steps: int | None,
        ema_decay: float | None,
        seed: int,
        precision: PrecisionOption,
        processes: Processes | None,
        sync_batch_norm: bool,
    ):
        self.generator, self.discriminator = generator, discriminator
        weight = next(generator.parameters())
        self.device = weight.device
        self.precision = resolve_precision(precision, self.device)
        self.dtype = compute_dtype(self.precision, weight.dtype)
        self.decay_steps = decay_steps
        self.iteration = 0
        self.scalars: torch.Tensor | None = None
        self.non_finite = torch.zeros((), dtype=torch.int32, device=self.device)
        self._processes = processes or Processes()
        if sync_batch_norm:
            _set_process_group(generator, self._processes.group)
            _set_process_group(discriminator, self._processes.group)
        # Statistics over all processes are equal without being averaged.
        statistics = [[] if sync_batch_norm else running_statistics(network) for network in (generator, discriminator)]
        # All stages of an iteration, and their CUDA graphs, write into this memory.
        self._scalars = torch.zeros(len(SCALARS), dtype=weight.dtype, device=self.device)
        loss_discriminator, self._generator_loss, score_real, score_fake = self._scalars.unbind()
        self._discriminator_scalars = [loss_discriminator, score_real, score_fake]
        trained = partial(
            TrainedNetwork,
            precision=self.precision,
            processes=self._processes,
        )
        # The generator's step changes the discriminator's statistics, too.
        rates = learning_rate, discriminator_learning_rate or learning_rate
        of_generator, of_discriminator = (partial(optimizer, lr=rate) for rate in rates)
        extra = [*statistics[0], *statistics[1], self._scalars]
        self._generator = trained(generator, optimizer=of_generator, allreduce_extra=extra)
        self._discriminator = trained(discriminator, optimizer=of_discriminator, allreduce_extra=statistics[1])
        self._learning_rates = [(self._generator.optimizer, rates[0]), (self._discriminator.optimizer, rates[1])]
        self._random = torch.Generator(self.device).manual_seed(seed)
        # A generator of its own, so that augmented and other runs draw the same latents. A CPU reads 32 bits of a seed.
        self._augmentation_random = torch.Generator(self.device).manual_seed(seed + (1 << 31))
        self._ema_decay = ema_decay
        self._ema: Generator | None = None
        # Iteration after which the running statistics of `_ema` were estimated; at first they are the generator's.
        self._ema_estimated = 0
        # Number of videos over which batch norm took statistics in the last iteration.
        self._batch_size = 0
        if ema_decay is not None:
            self._ema = copy.deepcopy(generator).requires_grad_(False).eval()
            _set_process_group(self._ema, None)

    @property
    def ema(self) -> Generator | None:
        """Generator with averaged weights, in evaluation mode; None without `ema_decay`.

        Its running statistics are those of its own videos, in batches as large as in training. The first access after
        an iteration estimates them, which takes as long as generating 256 videos; a reference that was kept has the
        statistics of the last access.
        """
        if self._ema is not None and self._ema_estimated != self.iteration:
            with arithmetic(self.precision):
                estimate_statistics_(self._ema, self._batch_size)
            self._ema_estimated = self.iteration
        return self._ema

    def _decay_learning_rate(self):
        if self.decay_steps is not None:
            left = max(0.0, 1 - self.iteration / self.decay_steps)
            for optimizer, rate in self._learning_rates:
                optimizer.set_learning_rate(rate * left)

    @torch.no_grad()
    def _update_ema(self):
        if self._ema is not None:
            torch._foreach_lerp_(list(self._ema.parameters()), list(self.generator.parameters()), 1 - self._ema_decay)

    @torch.no_grad()
    def largest_weight(self) -> torch.Tensor:
        """Return the largest absolute value of both networks' weights, a tensor [] on the device."""
        norms = [torch.linalg.vector_norm(net.flat.data, torch.inf) for net in (self._generator, self._discriminator)]
        return torch.stack(norms).max()

    def check_equality(self) -> None:
        """Check that the networks of all processes are still equal, bit for bit. Waits for the processes.

        Raises:
            RuntimeError: Weights or running statistics differ.
        """
        tensors = [self._generator.flat.data, self._discriminator.flat.data]
        tensors += [*running_statistics(self.generator), *running_statistics(self.discriminator)]
        different = self._processes.different(tensors)
        if different:
            raise RuntimeError(
                f"after {self.iteration} iterations the networks of the processes {different} are no longer equal to "
                "those of process 0: the processes differ in their number of batches, their hardware or their software"
            )

    def leave_processes(self) -> None:
        """Drop the references to the other processes after the last iteration."""
        for network in (self.generator, self.discriminator):
            _set_process_group(network, None)

    def state_dict(self) -> dict:
        """Return the state as a dict of tensors and plain values."""
        state = {
            "iteration": self.iteration,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self._generator.optimizer.state_dict(),
            "discriminator_optimizer": self._discriminator.optimizer.state_dict(),
            "random": self._random.get_state(),
            "augmentation_random": self._augmentation_random.get_state(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_networks(self, states: Mapping[str, dict[str, torch.Tensor]]) -> None:
        """Load the state dicts of networks by name: `generator`, `discriminator` and, with `ema_decay`, `ema`."""
        self._generator.load_state_dict(states["generator"])
        self._discriminator.load_state_dict(states["discriminator"])
        if self._ema is not None:
            self._ema.load_state_dict(states["ema"])

    def load_optimizers(self, states: Mapping[str, dict], *, own_options: bool = False) -> None:
        """Load the state dicts of `generator_optimizer` and `discriminator_optimizer`, but no learning rates.

        Args:
            states: State dicts by name.
            own_options: Whether other options, such as Adam's betas, stay as they are, too.

        Raises:
            ValueError: A state does not fit; the message says why.
        """
        self._generator.optimizer.load_state_dict(states["generator_optimizer"])
        self._discriminator.optimizer.load_state_dict(states["discriminator_optimizer"])
        for optimizer, rate in self._learning_rates:
            (group,) = optimizer.param_groups
            group.update({**(optimizer.defaults if own_options else {}), "lr": rate})

    def load_state_dict(self, state: dict) -> None:
        """Continue from what `state_dict` returned, at this object's own learning rate.

        Args:
            state: State; without `random` or `augmentation_random`, this object keeps its own random states.
        """
        self.load_networks(state)
        self.load_optimizers(state)
        for name, random in (("random", self._random), ("augmentation_random", self._augmentation_random)):
            if name in state:
                random.set_state(state[name].cpu())
        self.iteration = self._ema_estimated = state["iteration"]
        self.non_finite.zero_()


def _set_process_group(network: nn.Module, group) -> None:
    for module in network.modules():
        if hasattr(module, "process_group"):
            module.process_group = group
