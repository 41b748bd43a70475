"""One whole training iteration of TGAN: discriminator step, generator step, constraint."""

import copy
from contextlib import contextmanager

import torch
from torch import nn

from tgan_fast.models import VideoDiscriminator, VideoGenerator, constrain_
from tgan_fast.models.layout import to_channels_last_


class TrainingStep:
    """The state of a training run (both networks and optimisers, latents' random numbers) and its one operation.

    An iteration is that of the PyTorch notebook with its wasted work left out: no gradients through the generator in
    the discriminator's step, none of the discriminator's weights in the generator's.

        1. discriminator: RMSprop on mean(D(fake)) - mean(D(real)), with batch statistics of real and fake apart;
        2. generator: RMSprop on -mean(D(fake)) of fresh fakes;
        3. every `clip_interval` iterations, from iteration 0 on: `constrain_` on the discriminator.

    Args:
        generator, discriminator: on one device. Both are put into training mode and their convolution weights into a
            channels-last memory format.
        learning_rate: of both RMSprop optimisers (PyTorch's defaults otherwise).
        clip_interval: iterations between two applications of the constraint; 0 is never.
        shared_fakes: the order of the authors' own code instead: one batch of fakes and one pass of it through D serve
            both steps, and the generator is updated before the discriminator.
        ema_decay: keep `ema`, a running average of the generator's weights with this decay; None keeps none.
        seed: of the latents.

    Attributes:
        device: where the networks are.
        iteration: iterations done.
        ema: the averaged generator, in evaluation mode, or None.
        non_finite: int32 tensor, not 0 once the constraint met a weight that is not finite, and left it alone. On the
            device, so that only reading it waits.
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
    ):
        self.generator = to_channels_last_(generator).train()
        self.discriminator = to_channels_last_(discriminator).train()
        self.learning_rate = learning_rate
        self.clip_interval = clip_interval
        self.iteration = 0
        self._run = self._shared if shared_fakes else self._alternating
        self.device = next(generator.parameters()).device
        self._random = torch.Generator(self.device).manual_seed(seed)
        self._generator_optimizer = torch.optim.RMSprop(generator.parameters(), lr=learning_rate)
        self._discriminator_optimizer = torch.optim.RMSprop(discriminator.parameters(), lr=learning_rate)
        self._ema_decay = ema_decay
        self.non_finite = torch.zeros((), dtype=torch.int32, device=self.device)
        self.ema = None if ema_decay is None else copy.deepcopy(generator).requires_grad_(False).eval()

    def __call__(self, real: torch.Tensor) -> dict[str, torch.Tensor]:
        """Do one iteration.

        Args:
            real: videos [N, C, 16, 64, 64] in [-1, 1], N ≥ 2, on the networks' device.

        Returns:
            `loss_discriminator`, `loss_generator`, `score_real` and `score_fake` (means of D), as tensors on the
            device: reading them is what waits for it.

        Raises:
            ValueError: the batch does not fit the networks.
        """
        self._check(real)
        scalars = self._run(real)
        if self.clip_interval and self.iteration % self.clip_interval == 0:
            constrain_(self.discriminator, non_finite=self.non_finite)
        if self.ema is not None:
            self._average()
        self.iteration += 1
        return scalars

    def _alternating(self, real):
        with torch.no_grad():
            fake = self.generator(self._latents(real))
        score_real, score_fake = self._scores(real, fake)
        loss_discriminator = score_fake - score_real
        _descend(loss_discriminator, self._discriminator_optimizer)

        with _frozen(self.discriminator):
            loss_generator = -self.discriminator(self.generator(self._latents(real))).mean()
        _descend(loss_generator, self._generator_optimizer)
        return _scalars(loss_discriminator, loss_generator, score_real, score_fake)

    def _shared(self, real):
        fake = self.generator(self._latents(real))
        cut = fake.detach().requires_grad_()
        score_real, score_fake = self._scores(real, cut)
        loss_discriminator, loss_generator = score_fake - score_real, -score_fake
        self._discriminator_optimizer.zero_grad()
        loss_discriminator.backward()
        # The two losses see the fakes with opposite signs, so one backward pass through D serves both.
        self._generator_optimizer.zero_grad()
        fake.backward(-cut.grad)
        self._generator_optimizer.step()
        self._discriminator_optimizer.step()
        return _scalars(loss_discriminator, loss_generator, score_real, score_fake)

    def _scores(self, real, fake):
        """Mean scores; both pass through D as one batch in which batch norm keeps them apart, real first."""
        real, fake = self.discriminator(torch.cat([real, fake]), groups=2).chunk(2)
        return real.mean(), fake.mean()

    @torch.no_grad()
    def _average(self):
        weights = list(self.generator.parameters())
        torch._foreach_lerp_(list(self.ema.parameters()), weights, 1 - self._ema_decay)
        for average, buffer in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            average.copy_(buffer)

    def _latents(self, real):
        shape = (real.shape[0], self.generator.latent_dim)
        # Drawn in float32 whatever the networks' precision, so that all precisions see the same latents.
        return torch.rand(shape, generator=self._random, device=self.device).mul_(2).sub_(1).to(real.dtype)

    def _check(self, real):
        if not real.is_floating_point():
            raise ValueError(f"training takes floating-point videos in [-1, 1] and got {real.dtype}")
        # Before the generator runs, which would already have moved its running statistics.
        self.discriminator.check(real)
        if real.device != self.device:
            raise ValueError(f"the videos are on {real.device}, but the networks on {self.device}")
        if real.shape[0] < 2:
            raise ValueError(f"a batch of {real.shape[0]} is too small: batch norm needs at least 2 videos")

    def state_dict(self) -> dict:
        """All that the next iterations depend on, of tensors and plain values alone."""
        state = {
            "iteration": self.iteration,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            **{name: optimizer.state_dict() for name, optimizer in self._optimizers().items()},
            "random": self._random.get_state(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def _optimizers(self):
        return {
            "generator_optimizer": self._generator_optimizer,
            "discriminator_optimizer": self._discriminator_optimizer,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from what `state_dict` returned, at this object's own learning rate."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state[name])
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate
        self._random.set_state(state["random"].cpu())
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.iteration = state["iteration"]
        self.non_finite.zero_()


def _descend(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@contextmanager
def _frozen(module: nn.Module):
    """No gradients for the module's parameters in what is computed inside."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _scalars(loss_discriminator, loss_generator, score_real, score_fake):
    return {
        "loss_discriminator": loss_discriminator.detach(),
        "loss_generator": loss_generator.detach(),
        "score_real": score_real.detach(),
        "score_fake": score_fake.detach(),
    }
