"""One whole training iteration of TGAN: discriminator steps, generator step, constraint."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from tgan_fast.cuda_graph import CudaGraphMode, Replayed, use_cuda_graph
from tgan_fast.models import Discriminator, Generator
from tgan_fast.models.conditions import check_labels
from tgan_fast.precision import PrecisionOption, arithmetic, compute_dtype, resolve_precision
from tgan_fast.training.constraints import Constraint, SingularValueClipping
from tgan_fast.training.draws import Draws
from tgan_fast.training.network import TrainedNetwork, running_statistics
from tgan_fast.training.objectives import Objective, Wasserstein
from tgan_fast.training.optimizers import FlatOptimizer, RMSprop
from tgan_fast.training.processes import Processes

# What an iteration returns, in this order.
SCALARS = ("loss_discriminator", "loss_generator", "score_real", "score_fake")


class TrainingStep:
    """The state of a training run (both networks and optimizers, random numbers) and its one operation.

    An iteration is that of the PyTorch notebook with its wasted work left out: no gradients through the generator in
    the discriminator's step, none of the discriminator's weights in the generator's.

        1. discriminator: a step on the objective's loss of real videos and fakes, with batch statistics of both apart;
        2. generator: a step on the objective's loss of fresh fakes;
        3. every `clip_interval` iterations, from iteration 0 on: the constraint on the discriminator.

    Where the discriminator does several steps an iteration, the constraint comes after each of them, and is counted in
    them.

    On a GPU the first iterations run as they are; then 1 and 2 are captured as one CUDA graph, or as one each where 1
    comes several times, 3 as another one, and from then on replayed. What a graph holds is fixed: the shape of the
    batches, which weights are frozen, a learning rate that does not decay.

    Args:
        generator, discriminator: on one device. Both are put into training mode, their convolution weights into a
            channels-last memory format, and each one's parameters into one buffer.
        objective: the losses.
        constraint: of the discriminator. It must already have prepared it (`Constraint.prepare_`).
        optimizer: RMSprop or Adam, called with the flat parameters of a network and `lr`.
        learning_rate: of both optimizers.
        decay_steps: iterations in which the learning rate falls to 0, in equal steps; None: it stays.
        critic_steps: of the discriminator in an iteration, each on a part of the batch.
        clip_interval: steps of the discriminator between two applications of the constraint; 0 is never.
        input_noise: standard deviation of the noise that comes to all videos that the discriminator sees.
        shared_fakes: the order of the authors' own code instead: one batch of fakes and one pass of it through D serve
            both steps, and the generator is updated before the discriminator.
        ema_decay: keep `ema`, a running average of the generator's weights with this decay; None keeps none.
        seed: of the latents, and of noise.
        precision: of convolutions and matrix products; weights, statistics, losses and optimizers are float32 in all.
            auto is bf16 on a GPU that has it, and fp32 elsewhere, which means the networks' own type without TF32.
        cuda_graph: auto falls back, with a warning that says why, where none can be captured.
        read: makes videos [N, C, T, H, W] in [-1, 1] of what the step is called with; runs within the iteration.
            None: it is called with such videos.
        processes: that train together. Each calls its own step with an equal part of every batch; gradients, running
            statistics and what an iteration returns are means over all of them, so that the networks stay equal.
        sync_batch_norm: batch statistics over all processes, so that several train exactly as one does with the whole
            batch.

    Attributes:
        generator, discriminator, device: as given.
        dtype: of the activations, which `read` should return.
        iteration: iterations done.
        scalars: what the last iteration returned, as one tensor [4] in the order of `SCALARS`.
        ema: the averaged generator, in evaluation mode, or None.
        non_finite: int32 tensor, not 0 once singular value clipping met a weight that is not finite, and left it alone.
            On the device, so that only reading it waits.

    Raises:
        InputError: the device does not have this precision; cuda_graph is "on", but none can be captured.
        ValueError: `shared_fakes` with an objective whose two losses are not opposite, or with several critic steps.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        *,
        objective: Objective | None = None,
        constraint: Constraint | None = None,
        optimizer: Callable[..., FlatOptimizer] = RMSprop,
        learning_rate: float = 5e-5,
        decay_steps: int | None = None,
        critic_steps: int = 1,
        clip_interval: int = 5,
        input_noise: float = 0.0,
        shared_fakes: bool = False,
        ema_decay: float | None = None,
        seed: int = 0,
        precision: PrecisionOption = "auto",
        cuda_graph: CudaGraphMode = "auto",
        read: Callable[[torch.Tensor], torch.Tensor] | None = None,
        processes: Processes | None = None,
        sync_batch_norm: bool = False,
    ):
        self.generator, self.discriminator = generator, discriminator
        weight = next(generator.parameters())
        self.device = weight.device
        self.precision = resolve_precision(precision, self.device)
        self.dtype = compute_dtype(self.precision, weight.dtype)
        self.learning_rate, self.clip_interval = learning_rate, clip_interval
        self._decay_steps, self._critic_steps = decay_steps, critic_steps
        self._objective, self._constraint = objective or Wasserstein(), constraint or SingularValueClipping()
        if shared_fakes and not (self._objective.opposite and critic_steps == 1):
            raise ValueError("shared_fakes needs an objective with opposite losses and one critic step")
        self.iteration, self.scalars = 0, None
        self._read = read
        self._processes = processes or Processes()
        if sync_batch_norm:
            _synchronize(generator, self._processes.group)
            _synchronize(discriminator, self._processes.group)
        # Statistics that are taken over all processes are equal without being averaged.
        self._statistics = [[], []] if sync_batch_norm else [running_statistics(n) for n in (generator, discriminator)]
        allreduce_extra = [sum(tensor.numel() for tensor in tensors) for tensors in self._statistics]
        options = {
            "precision": self.precision,
            "optimizer": partial(optimizer, lr=learning_rate),
            "processes": self._processes,
        }
        self._generator = TrainedNetwork(generator, **options, allreduce_extra=sum(allreduce_extra) + len(SCALARS))
        self._discriminator = TrainedNetwork(discriminator, **options, allreduce_extra=allreduce_extra[1])
        self._random = torch.Generator(self.device).manual_seed(seed)
        self._batch = self._labels = None
        draws = partial(Draws, generator, noise=input_noise, processes=self._processes)
        self._for_discriminator = draws(fakes_alone=False, mixes=self._constraint.penalizes)
        self._for_generator = None if shared_fakes else draws(fakes_alone=True, mixes=False)
        self._seen = torch.zeros(3, dtype=weight.dtype, device=self.device)
        self.non_finite = torch.zeros((), dtype=torch.int32, device=self.device)
        self._ema_decay, self.ema = ema_decay, None
        if ema_decay is not None:
            self.ema = copy.deepcopy(generator).requires_grad_(False).eval()
            _synchronize(self.ema, None)
        self._shares_fakes = shared_fakes
        self._replays = use_cuda_graph(
            cuda_graph, self.device, (generator, discriminator), backend=self._processes.backend
        )
        self._run_iteration = self._run_critic = self._run_generator = self._run_constraint = _call
        if self._replays:
            replayed = partial(Replayed, self.device, required=cuda_graph == "on")
            self._run_iteration = self._run_critic = first = replayed()
            self._run_generator = replayed(shares=first)
            self._run_constraint = replayed(warm_up=1, shares=first)

    def __call__(self, batch: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Do one iteration.

        Args:
            batch: what `read` takes, or without one videos [N, C, T, H, W] in [-1, 1], N ≥ 2 for every critic step; on
                the networks' device.
            labels: of networks with classes, int64 [N] on that device, each less than `classes`. Fakes get them too.

        Returns:
            `loss_discriminator`, `loss_generator`, `score_real` and `score_fake` (means of D), float32 tensors on the
            device: reading them is what waits for it. Of several critic steps they tell the last one.

        Raises:
            ValueError: the batch does not fit the networks, or the CUDA graph.
        """
        self._check(batch, labels)
        self._decay()
        with arithmetic(self.precision):
            # A graph's own output is overwritten by the next iteration.
            self.scalars = self._whole(batch, labels).clone()
        self.iteration += 1
        return dict(zip(SCALARS, self.scalars.unbind(), strict=True))

    def _whole(self, batch, labels):
        count = len(batch) // self._critic_steps
        if self._critic_steps == 1:
            self._take(batch, labels)
            self._for_discriminator.draw(count, self._random)
            if self._for_generator is not None:
                self._for_generator.draw(count, self._random)
            scalars = self._run_iteration(self._shared if self._shares_fakes else self._alternating)
            self._constrain_if_due(self.iteration)
            return scalars
        for number, begin in enumerate(range(0, len(batch), count)):
            part = slice(begin, begin + count)
            self._take(batch[part], None if labels is None else labels[part])
            self._for_discriminator.draw(count, self._random)
            self._run_critic(self._criticise)
            self._constrain_if_due(self.iteration * self._critic_steps + number)
        self._for_generator.draw(count, self._random)
        return self._run_generator(self._generate)

    def _take(self, batch, labels):
        """The inputs of a step, for a graph in the same place every time."""
        if not self._replays:
            self._batch, self._labels = batch, labels
        elif self._batch is None:
            self._batch, self._labels = batch.clone(), None if labels is None else labels.clone()
        else:
            self._batch.copy_(batch)
            if labels is not None:
                self._labels.copy_(labels)

    def _decay(self):
        if self._decay_steps is not None:
            left = max(0.0, 1 - self.iteration / self._decay_steps)
            for network in (self._generator, self._discriminator):
                network.optimizer.set_learning_rate(self.learning_rate * left)

    def _constrain_if_due(self, number):
        if self.clip_interval and number % self.clip_interval == 0:
            self._run_constraint(self._constrain)

    def _alternating(self):
        self._criticise()
        return self._generate()

    def _criticise(self):
        """A step of the discriminator."""
        real = self._videos()
        with torch.no_grad():
            fake = self._generator.computing(self._for_discriminator.latents(self.dtype), self._labels)
        self._discriminator.zero_grad()
        of_real, of_fake = self._scores(real, fake)
        loss = self._objective.discriminator(of_real, of_fake)
        with self._penalty_arithmetic():
            total = loss + self._penalty(real, fake) if self._constraint.penalizes else loss
            total.backward()
        self._note(total, of_real, of_fake)
        self._discriminator.update(self._statistics[1])

    def _generate(self):
        """A step of the generator; returns what the iteration does."""
        self._generator.zero_grad()
        with self._discriminator.frozen():
            fake = self._generator.computing(self._for_generator.latents(self.dtype), self._labels)
            scores = self._discriminator.computing(self._for_generator.disturbed(fake), labels=self._labels)
            loss = self._objective.generator(scores)
        loss.backward()
        return self._finish(loss)

    def _shared(self):
        real = self._videos()
        fake = self._generator.computing(self._for_discriminator.latents(self.dtype), self._labels)
        cut = fake.detach().requires_grad_()
        self._discriminator.zero_grad()
        of_real, of_fake = self._scores(real, cut)
        loss = self._objective.discriminator(of_real, of_fake)
        loss.backward()
        # The two losses see the fakes with opposite signs, so one backward pass through D serves both.
        self._generator.zero_grad()
        fake.backward(-cut.grad)
        if self._constraint.penalizes:
            with self._penalty_arithmetic():
                penalty = self._penalty(real, fake)
                penalty.backward()
            loss = loss + penalty
        self._note(loss, of_real, of_fake)
        scalars = self._finish(self._objective.generator(of_fake))
        self._discriminator.update(self._statistics[1])
        return scalars

    def _note(self, loss, of_real, of_fake):
        # In the same memory, which the graph of the generator's step reads.
        self._seen.copy_(torch.stack([loss.detach(), of_real.detach().mean(), of_fake.detach().mean()]))

    def _finish(self, loss):
        """The generator's update, with all that the processes average; what the iteration returns."""
        of_discriminator, real, fake = self._seen.unbind()
        scalars = torch.stack([of_discriminator, loss.detach().to(self._seen.dtype), real, fake])
        self._generator.update([*self._statistics[0], *self._statistics[1], scalars])
        if self.ema is not None:
            self._average()
        return scalars

    def _scores(self, real, fake):
        """Of both, which pass through D as one batch in which batch norm keeps them apart, real first."""
        videos = self._for_discriminator.disturbed(torch.cat([real, fake]))
        labels = None if self._labels is None else self._labels.repeat(2)
        return self._discriminator.computing(videos, groups=2, labels=labels).chunk(2)

    def _penalty(self, real, fake):
        return self._constraint.penalty(
            self._discriminator.computing, real, fake, self._for_discriminator.mix(), self._labels
        )

    def _penalty_arithmetic(self):
        """Return the arithmetic of the penalty's float32 pass and its backward: TF32 where the rest is bfloat16."""
        coarse = self.precision == "bf16" and self._constraint.penalizes
        return arithmetic("tf32" if coarse else self.precision)

    @torch.no_grad()
    def _average(self):
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1 - self._ema_decay)
        torch._foreach_copy_(list(self.ema.buffers()), list(self.generator.buffers()))

    def _constrain(self):
        self._constraint.apply_(self._discriminator, self.non_finite)

    def _videos(self):
        videos = self._batch if self._read is None else self._read(self._batch)
        return videos.to(self.dtype)

    def _check(self, batch, labels):
        # Before anything runs: latents would be drawn, and running statistics moved.
        if batch.device != self.device:
            raise ValueError(f"the batch is on {batch.device}, but the networks on {self.device}")
        count, rest = divmod(batch.shape[0], self._critic_steps)
        if rest:
            raise ValueError(f"a batch of {batch.shape[0]} is not {self._critic_steps} equal parts, one a critic step")
        if count < 2 and self._processes.size == 1:
            raise ValueError(f"a batch of {count} is too small: batch norm needs at least 2 videos")
        check_labels(labels, len(batch), self.generator.classes, "training step")
        if self._read is None:
            if not batch.is_floating_point():
                raise ValueError(f"training takes floating-point videos in [-1, 1] and got {batch.dtype}")
            self.discriminator.check(batch)
        known = self._batch
        shape = torch.Size([count, *batch.shape[1:]])
        if self._replays and known is not None and (shape, batch.dtype) != (known.shape, known.dtype):
            raise ValueError(
                f"the CUDA graph holds batches of {list(known.shape)} {known.dtype} and got {list(shape)} "
                f'{batch.dtype}: use cuda_graph="off" for batches that differ'
            )

    @torch.no_grad()
    def largest_weight(self) -> torch.Tensor:
        """Return the largest absolute value of both networks' weights, [] on the device: reading it waits for it."""
        norms = [torch.linalg.vector_norm(net.flat.data, torch.inf) for net in (self._generator, self._discriminator)]
        return torch.stack(norms).max()

    def check_equality(self) -> None:
        """Make sure that all processes still have the same weights and running statistics. Waits for them.

        Raises:
            RuntimeError: some have not.
        """
        numbers = self._processes.gather(self._checksum(), self.device)
        different = [rank for rank, number in enumerate(numbers) if number != numbers[0]]
        if different:
            raise RuntimeError(
                f"after {self.iteration} iterations the networks of the processes {different} are no longer those of "
                "process 0: their batches differ in number, or their hardware or software does"
            )

    def _checksum(self):
        tensors = [self._generator.flat.data, self._discriminator.flat.data]
        tensors += [*running_statistics(self.generator), *running_statistics(self.discriminator)]
        return int(sum(tensor.view(torch.int32).sum(dtype=torch.int64) for tensor in tensors))

    def leave_processes(self) -> None:
        """Let go of the other processes. What it has trained stays; it trains no further."""
        for network in (self.generator, self.discriminator):
            _synchronize(network, None)

    def state_dict(self) -> dict:
        """All that the next iterations depend on, of tensors and plain values alone."""
        state = {
            "iteration": self.iteration,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self._generator.optimizer.state_dict(),
            "discriminator_optimizer": self._discriminator.optimizer.state_dict(),
            "random": self._random.get_state(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict) -> None:
        """Continue from what `state_dict` returned, at this object's own learning rate.

        A state without `random` begins the latents anew.
        """
        for name, network in (("generator", self._generator), ("discriminator", self._discriminator)):
            network.load_state_dict(state[name])
            network.optimizer.load_state_dict(state[f"{name}_optimizer"])
            for group in network.optimizer.param_groups:
                group["lr"] = self.learning_rate
        if "random" in state:
            self._random.set_state(state["random"].cpu())
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.iteration = state["iteration"]
        self.non_finite.zero_()


def _call(function):
    return function()


def _synchronize(network: nn.Module, group) -> None:
    for module in network.modules():
        if hasattr(module, "process_group"):
            module.process_group = group
