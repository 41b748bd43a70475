"""One whole training iteration of TGAN: discriminator step, generator step, constraint."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from tgan_fast.cuda_graph import CudaGraphMode, Replayed, use_cuda_graph
from tgan_fast.models import VideoDiscriminator, VideoGenerator, constrain_
from tgan_fast.precision import PrecisionOption, arithmetic, compute_dtype, resolve_precision
from tgan_fast.training.network import OptimizerName, TrainedNetwork, running_statistics
from tgan_fast.training.processes import Processes

# What an iteration returns, in this order.
SCALARS = ("loss_discriminator", "loss_generator", "score_real", "score_fake")


class TrainingStep:
    """The state of a training run (both networks and optimisers, latents' random numbers) and its one operation.

    An iteration is that of the PyTorch notebook with its wasted work left out: no gradients through the generator in
    the discriminator's step, none of the discriminator's weights in the generator's.

        1. discriminator: a step on mean(D(fake)) - mean(D(real)), with batch statistics of real and fake apart;
        2. generator: a step on -mean(D(fake)) of fresh fakes;
        3. every `clip_interval` iterations, from iteration 0 on: `constrain_` on the discriminator.

    On a GPU the first iterations run as they are; then 1 and 2 are recorded as one CUDA graph, 3 as a second one, and
    from then on replayed. What a graph holds is fixed: the shape of the batches, the learning rate, which weights are
    frozen.

    Args:
        generator, discriminator: on one device. Both are put into training mode, their convolution weights into a
            channels-last memory format, and each one's parameters into one buffer.
        learning_rate: of both optimisers.
        clip_interval: iterations between two applications of the constraint; 0 is never.
        shared_fakes: the order of the authors' own code instead: one batch of fakes and one pass of it through D serve
            both steps, and the generator is updated before the discriminator.
        ema_decay: keep `ema`, a running average of the generator's weights with this decay; None keeps none.
        seed: of the latents.
        precision: of convolutions and matrix products; weights, statistics, losses and optimisers are float32 in all.
            auto is bf16 on a GPU that has it, and fp32 elsewhere, which means the networks' own type without TF32.
        optimizer: RMSprop or Adam, with PyTorch's defaults but for the learning rate.
        cuda_graph: auto falls back, with a warning that says why, where none can be recorded.
        read: makes videos [N, C, 16, 64, 64] in [-1, 1] of what the step is called with; runs within the iteration.
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
        non_finite: int32 tensor, not 0 once the constraint met a weight that is not finite, and left it alone. On the
            device, so that only reading it waits.

    Raises:
        InputError: the device does not have this precision; cuda_graph is "on", but none can be recorded.
    """

    def __init__(
        self,
        generator: VideoGenerator,
        discriminator: VideoDiscriminator,
        *,
        learning_rate: float = 5e-5,
        clip_interval: int = 5,
        shared_fakes: bool = False,
        ema_decay: float | None = None,
        seed: int = 0,
        precision: PrecisionOption = "auto",
        optimizer: OptimizerName = "rmsprop",
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
        self.iteration, self.scalars = 0, None
        self._read = read
        self._processes = processes or Processes()
        if sync_batch_norm:
            _synchronize(generator, self._processes.group)
            _synchronize(discriminator, self._processes.group)
        # Statistics that are taken over all processes are equal without being averaged.
        self._statistics = [[], []] if sync_batch_norm else [running_statistics(n) for n in (generator, discriminator)]
        carried = [sum(tensor.numel() for tensor in tensors) for tensors in self._statistics]
        options = {
            "precision": self.precision,
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "processes": self._processes,
        }
        self._generator = TrainedNetwork(generator, **options, carried=sum(carried) + len(SCALARS))
        self._discriminator = TrainedNetwork(discriminator, **options, carried=carried[1])
        self._random = torch.Generator(self.device).manual_seed(seed)
        self._batch, self._latents, self._draws = None, [], 1 if shared_fakes else 2
        self.non_finite = torch.zeros((), dtype=torch.int32, device=self.device)
        self._ema_decay, self.ema = ema_decay, None
        if ema_decay is not None:
            self.ema = copy.deepcopy(generator).requires_grad_(False).eval()
            _synchronize(self.ema, None)
        self._iterate = self._shared if shared_fakes else self._alternating
        self._replays = use_cuda_graph(
            cuda_graph, self.device, (generator, discriminator), backend=self._processes.backend
        )
        if self._replays:
            required = cuda_graph == "on"
            self._iterate = Replayed(self._iterate, self.device, required=required)
            self._constrain = Replayed(self._constrain, self.device, warm_up=1, required=required, pool=self._iterate)

    def __call__(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Do one iteration.

        Args:
            batch: what `read` takes, or without one videos [N, C, 16, 64, 64] in [-1, 1], N ≥ 2; on the networks'
                device.

        Returns:
            `loss_discriminator`, `loss_generator`, `score_real` and `score_fake` (means of D), float32 tensors on the
            device: reading them is what waits for it.

        Raises:
            ValueError: the batch does not fit the networks, or the CUDA graph.
        """
        self._check(batch)
        self._take(batch)
        with arithmetic(self.precision):
            # A graph's own output is overwritten by the next iteration.
            self.scalars = self._iterate().clone()
            if self.clip_interval and self.iteration % self.clip_interval == 0:
                self._constrain()
        self.iteration += 1
        return dict(zip(SCALARS, self.scalars.unbind(), strict=True))

    def _take(self, batch):
        """The inputs of an iteration, for a graph in the same place every time: the batch and the latents."""
        if not self._replays:
            self._batch = batch
        elif self._batch is None:
            self._batch = batch.clone()
        else:
            self._batch.copy_(batch)
        if not self._latents or self._latents[0].shape[0] != batch.shape[0] * self._processes.size:
            shape = batch.shape[0] * self._processes.size, self.generator.latent_dim
            # In float32 whatever the networks' precision, so that all of them see the same latents.
            self._latents = [torch.empty(shape, device=self.device) for _ in range(self._draws)]
        for latents in self._latents:
            latents.uniform_(-1, 1, generator=self._random)

    def _draw(self, number):
        latents = self._latents[number].chunk(self._processes.size)[self._processes.rank]
        return latents.to(self.dtype)

    def _alternating(self):
        real = self._videos()
        with torch.no_grad():
            fake = self._generator.computing(self._draw(0))
        self._discriminator.zero_grad()
        score_real, score_fake = self._scores(real, fake)
        loss_discriminator = score_fake - score_real
        loss_discriminator.backward()
        self._discriminator.update(self._statistics[1])

        self._generator.zero_grad()
        with self._discriminator.frozen():
            loss_generator = -self._discriminator.computing(self._generator.computing(self._draw(1))).mean()
        loss_generator.backward()
        return self._finish(loss_discriminator, loss_generator, score_real, score_fake)

    def _shared(self):
        real, fake = self._videos(), self._generator.computing(self._draw(0))
        cut = fake.detach().requires_grad_()
        self._discriminator.zero_grad()
        score_real, score_fake = self._scores(real, cut)
        loss_discriminator, loss_generator = score_fake - score_real, -score_fake
        loss_discriminator.backward()
        # The two losses see the fakes with opposite signs, so one backward pass through D serves both.
        self._generator.zero_grad()
        fake.backward(-cut.grad)
        scalars = self._finish(loss_discriminator, loss_generator, score_real, score_fake)
        self._discriminator.update(self._statistics[1])
        return scalars

    def _finish(self, *losses_and_scores):
        """The generator's update, with all that the processes average; what the iteration returns."""
        scalars = torch.stack(losses_and_scores).detach()
        self._generator.update([*self._statistics[0], *self._statistics[1], scalars])
        if self.ema is not None:
            self._average()
        return scalars

    def _scores(self, real, fake):
        """Mean scores; both pass through D as one batch in which batch norm keeps them apart, real first."""
        real, fake = self._discriminator.computing(torch.cat([real, fake]), groups=2).chunk(2)
        return real.mean(), fake.mean()

    @torch.no_grad()
    def _average(self):
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1 - self._ema_decay)
        torch._foreach_copy_(list(self.ema.buffers()), list(self.generator.buffers()))

    def _constrain(self):
        twin = self._discriminator.computing if self._discriminator.flat.copy is not None else None
        constrain_(self.discriminator, twin=twin, non_finite=self.non_finite)

    def _videos(self):
        videos = self._batch if self._read is None else self._read(self._batch)
        return videos.to(self.dtype)

    def _check(self, batch):
        # Before anything runs: latents would be drawn, and running statistics moved.
        if batch.device != self.device:
            raise ValueError(f"the batch is on {batch.device}, but the networks on {self.device}")
        if batch.shape[0] < 2 and self._processes.size == 1:
            raise ValueError(f"a batch of {batch.shape[0]} is too small: batch norm needs at least 2 videos")
        if self._read is None:
            if not batch.is_floating_point():
                raise ValueError(f"training takes floating-point videos in [-1, 1] and got {batch.dtype}")
            self.discriminator.check(batch)
        known = self._batch
        if self._replays and known is not None and (batch.shape, batch.dtype) != (known.shape, known.dtype):
            raise ValueError(
                f"the CUDA graph holds batches of {list(known.shape)} {known.dtype} and got {list(batch.shape)} "
                f'{batch.dtype}: use cuda_graph="off" for batches that differ'
            )

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


def _synchronize(network: nn.Module, group) -> None:
    for module in network.modules():
        if hasattr(module, "process_group"):
            module.process_group = group
