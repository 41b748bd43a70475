"""One training iteration of TGAN: discriminator step, generator step, constraint."""

from collections.abc import Callable, Collection
from functools import partial

import torch

from tgan_fast.choices import Transform
from tgan_fast.cuda_graph import CudaGraphMode, GraphRunner, run_eagerly, use_cuda_graph
from tgan_fast.models import Discriminator, Generator
from tgan_fast.precision import PrecisionOption, arithmetic
from tgan_fast.processes import Processes
from tgan_fast.training.constraints import Constraint, SpectralClipping
from tgan_fast.training.inputs import Draws, Inputs
from tgan_fast.training.objectives import Objective, Wasserstein
from tgan_fast.training.optimizers import FlatOptimizer, RMSprop
from tgan_fast.training.state import SCALARS, TrainingState
from tgan_fast.training.variants import variant_of


class TrainingStep(TrainingState):
    """State of a training run, and the iteration that advances it.

    An iteration is that of the PyTorch notebook without its wasted work: the discriminator's step computes no gradients
    of the generator, and the generator's step computes none of the discriminator's weights.

        1. discriminator: a step on real videos and fakes, with separate batch statistics;
        2. generator: a step on fresh fakes;
        3. constraint: applied to the discriminator every `clip_interval` iterations, from iteration 0 on.

    On a GPU the first iterations run eagerly. Then 1 and 2 are captured as one CUDA graph, and 3 as another, which
    later iterations replay. A graph fixes the shape of the batches, which weights are frozen, and a learning rate that
    does not decay.

    Args:
        generator, discriminator: Networks on one device. They are put into training mode, their convolution weights
            become channels-last, and the parameters of each move into one buffer.
        objective: Losses of both networks; None: Wasserstein's.
        constraint: Constraint of the discriminator, which it must have prepared (`Constraint.prepare_`); None: singular
            value clipping.
        optimizer: RMSprop or Adam, called with the flat parameters of a network and `lr`.
        learning_rate: Learning rate of both optimizers.
        discriminator_learning_rate: Learning rate of the discriminator's optimizer; None: `learning_rate`.
        decay_steps: Iterations in which the learning rate falls linearly to 0; None: it is constant.
        critic_steps: Discriminator steps in an iteration, each on an equal part of the batch. If there are several, the
            constraint follows each of them and `clip_interval` counts them.
        clip_interval: Iterations from one application of the constraint to the next; 0: it is never applied.
        input_noise: Standard deviation of the noise added to all videos that the discriminator sees.
        augment: Names of the transforms of all videos that the discriminator sees, from
            `tgan_fast.ops.augmentation.TRANSFORMS`; the noise is added afterwards.
        shared_fakes: Whether to train in the order of the authors' own code: one batch of fakes and one pass of it
            through D serve both steps, and the generator is updated before the discriminator.
        ema_decay: Decay of the running average of the generator's weights; None: there is no average.
        seed: Seed of the latents and the noise.
        precision: Precision of convolutions and matrix products; weights, statistics, losses and optimizers are always
            float32. "auto" is bf16 on a GPU that has it, otherwise fp32: the networks' own dtype without TF32.
        cuda_graph: Use of CUDA graphs: "on", "off", or "auto": where possible, with a warning where not.
        read: Function that turns a batch into videos [N, C, T, H, W] in [-1, 1], as part of the iteration; None:
            batches are such videos.
        processes: Processes that train together, each calling its own step with an equal part of every batch.
            Gradients, running statistics and scalars are averaged, so that their networks stay equal; None: this
            process alone.
        sync_batch_norm: Whether to take batch statistics over all processes, so that they train exactly as one process
            does with the whole batch.

    Attributes:
        generator, discriminator: The networks that are trained.
        device: Device of the networks.
        dtype: Dtype of activations, which `read` should return.
        precision: Precision, resolved where it was auto.
        iteration: Number of finished iterations.
        scalars: Scalars of the last iteration, a tensor [4] in the order of `SCALARS`.
        decay_steps: Iterations over which the learning rates fall to 0; None: they stay.
        ema: Averaged generator in evaluation mode, or None. The first access after an iteration takes as long as
            generating 256 videos; a reference that was kept has the running statistics of the last access.
        non_finite: int32 tensor [] on the device, not 0 once singular value clipping has met a weight that is not
            finite, which it leaves unchanged.

    Raises:
        InputError: The device lacks the precision; cuda_graph is "on", but no graph can be captured.
        ValueError: `shared_fakes` with an objective whose losses are not opposite, or with several critic steps.
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
        discriminator_learning_rate: float | None = None,
        decay_steps: int | None = None,
        critic_steps: int = 1,
        clip_interval: int = 5,
        input_noise: float = 0.0,
        augment: Collection[Transform] = (),
        shared_fakes: bool = False,
        ema_decay: float | None = None,
        seed: int = 0,
        precision: PrecisionOption = "auto",
        cuda_graph: CudaGraphMode = "auto",
        read: Callable[[torch.Tensor], torch.Tensor] | None = None,
        processes: Processes | None = None,
        sync_batch_norm: bool = False,
    ):
        self._objective, self._constraint = objective or Wasserstein(), constraint or SpectralClipping()
        # A function, since a bound method would be a reference cycle, which keeps CUDA graphs alive.
        self._iterate = variant_of(self._objective, critic_steps, shared_fakes) or TrainingStep._run_iteration
        super().__init__(
            generator,
            discriminator,
            optimizer=optimizer,
            learning_rate=learning_rate,
            discriminator_learning_rate=discriminator_learning_rate,
            decay_steps=decay_steps,
            ema_decay=ema_decay,
            seed=seed,
            precision=precision,
            processes=processes,
            sync_batch_norm=sync_batch_norm,
        )
        self.clip_interval, self._sync_batch_norm = clip_interval, sync_batch_norm
        replays = use_cuda_graph(cuda_graph, self.device, (generator, discriminator), backend=self._processes.backend)
        self._runner = GraphRunner(self.device, required=cuda_graph == "on") if replays else run_eagerly
        self._inputs = Inputs(
            generator,
            discriminator,
            read=read,
            critic_steps=critic_steps,
            processes=self._processes,
            static=replays,
        )
        draws = partial(
            Draws,
            generator,
            self._random,
            augmentation_random=self._augmentation_random,
            transforms=augment,
            noise=input_noise,
            processes=self._processes,
        )
        self._discriminator_draws = draws(real=True, mixes=self._constraint.penalizes)
        self._generator_draws = draws(real=False, mixes=False)

    def __call__(self, batch: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Run one iteration.

        Args:
            batch: Argument of `read`, or without it videos [N, C, T, H, W] in [-1, 1], with N ≥ 2 for every critic
                step; on the networks' device.
            labels: Labels of the videos and of the fakes, int64 [N] on that device, each less than `classes`; None for
                networks without classes.

        Returns:
            `loss_discriminator`, `loss_generator`, `score_real` and `score_fake` (means of D), float32 tensors [] on
            the device, so that only reading them waits for it. With several critic steps they describe the last one.

        Raises:
            ValueError: The batch does not fit the networks, or the CUDA graph.
        """
        count = self._inputs.check(batch, labels)
        self._batch_size = count * self._processes.size if self._sync_batch_norm else count
        self._decay_learning_rate()
        with arithmetic(self._constraint.float32_precision(self.precision)):
            self._iterate(self, batch, labels)
            # The next iteration overwrites them.
            scalars = self.scalars = self._scalars.clone()
        self.iteration += 1
        return dict(zip(SCALARS, scalars.unbind(), strict=True))

    def _run_iteration(self, batch, labels):
        """Run the iteration in the usual order; `variants.py` has the others."""
        self._load_inputs(batch, labels)
        # On a GPU the runner replays a function as a CUDA graph.
        self._runner(self._update_networks)
        self._constrain_if_due(self.iteration)

    def _load_inputs(self, batch, labels):
        self._inputs.load(batch, labels)
        # Random numbers are drawn before the steps, because a CUDA graph only reads them from memory.
        self._discriminator_draws.draw(len(batch))
        self._generator_draws.draw(len(batch))

    def _update_networks(self):
        self._discriminator_step()
        self._generator_step()

    def _discriminator_step(self):
        """Update the discriminator on real videos and fakes."""
        real = self._inputs.videos(self.dtype)
        with torch.no_grad():
            fake = self._fakes(self._discriminator_draws)
        self._discriminator.zero_grad()
        videos = self._discriminator_draws.augment(torch.cat([real, fake]))
        score_real, score_fake = self._score(videos, self._discriminator_draws, groups=2).chunk(2)
        loss = self._objective.discriminator(score_real, score_fake)
        if self._constraint.penalizes:
            loss = loss + self._penalty(*videos.chunk(2))
        loss.backward()
        self._record_discriminator(loss, score_real, score_fake)
        self._discriminator.update()

    def _generator_step(self):
        """Update the generator on fresh fakes, which the updated discriminator scores."""
        self._generator.zero_grad()
        with self._discriminator.frozen():
            fake = self._generator_draws.augment(self._fakes(self._generator_draws))
            loss = self._objective.generator(self._score(fake, self._generator_draws))
        loss.backward()
        self._update_generator(loss)

    def _constrain_if_due(self, discriminator_steps):
        """Apply the constraint to the discriminator if an interval has passed."""
        if self.clip_interval and discriminator_steps % self.clip_interval == 0:
            self._runner(self._constrain, warm_up=1)

    def _constrain(self):
        self._constraint.apply_(self._discriminator, self.non_finite)

    def _fakes(self, draws):
        """Generate a batch of videos from latents."""
        return self._generator.computing(draws.latents(self.dtype), self._inputs.labels)

    def _score(self, videos, draws, groups=1):
        """Score `groups` batches of videos in one pass, with separate batch-norm statistics."""
        labels = self._inputs.labels
        labels = None if labels is None else labels.repeat(groups)
        return self._discriminator.computing(draws.add_noise(videos), groups=groups, labels=labels)

    def _penalty(self, real, fake):
        mix, labels = self._discriminator_draws.mix(), self._inputs.labels
        return self._constraint.penalty(self._discriminator.computing, real, fake, mix, labels)

    def _record_discriminator(self, loss, score_real, score_fake):
        scalars = [loss.detach(), score_real.detach().mean(), score_fake.detach().mean()]
        torch._foreach_copy_(self._discriminator_scalars, scalars)

    def _update_generator(self, loss):
        self._generator_loss.copy_(loss.detach())
        self._generator.update()
        self._update_ema()
