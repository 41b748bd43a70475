"""Construction of the networks and the training step from a config."""

from collections.abc import Callable
from functools import partial

import torch

from tgan_fast.models import Discriminator, Generator
from tgan_fast.processes import Processes
from tgan_fast.training.config import TrainingConfig
from tgan_fast.training.constraints import Constraint
from tgan_fast.training.registry import lookup
from tgan_fast.training.step import TrainingStep

# Settings that `build_generator` needs.
GENERATOR_SETTINGS = {
    "width",
    "latent_dim",
    "channels",
    "frames",
    "image_size",
    "temporal_generator",
    "image_generator",
    "latent",
    "conditional",
    "classes",
}


def build_generator(config: TrainingConfig) -> Generator:
    """Return a generator with new weights, on the CPU."""
    return lookup("image_generator", config.image_generator)(
        config.width,
        config.latent_dim,
        config.channels,
        clip_frames=config.frames,
        image_size=config.image_size,
        temporal=lookup("temporal_generator", config.temporal_generator),
        classes=config.classes or 0,
        latent=config.latent,
    )


def build_discriminator(config: TrainingConfig) -> Discriminator:
    """Return a discriminator with new weights, prepared for its constraint, on the CPU."""
    discriminator = lookup("discriminator", config.discriminator)(
        config.width,
        config.channels,
        clip_frames=config.frames,
        image_size=config.image_size,
        classes=config.classes or 0,
    )
    _constraint(config).prepare_(discriminator)
    return discriminator


def build_step(
    config: TrainingConfig,
    device: torch.device,
    *,
    read: Callable[[torch.Tensor], torch.Tensor] | None = None,
    processes: Processes | None = None,
) -> TrainingStep:
    """Return the step of a run at iteration 0, with new networks; the global random state stays as it is.

    Args:
        config: Settings of the run.
        device: Device of the networks.
        read, processes: Arguments of `TrainingStep`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator, discriminator = build_generator(config), build_discriminator(config)
    discriminator.freeze_(config.freeze_discriminator)
    if config.initial_level is not None:
        generator.set_initial_level_(config.initial_level)
    return TrainingStep(
        generator.to(device),
        discriminator.to(device),
        objective=lookup("objective", config.objective)(),
        constraint=_constraint(config),
        optimizer=_optimizer(config),
        learning_rate=config.learning_rate,
        discriminator_learning_rate=config.discriminator_learning_rate,
        decay_steps=config.steps if config.lr_decay == "linear" else None,
        critic_steps=config.critic_steps,
        clip_interval=config.clip_interval,
        input_noise=config.input_noise,
        augment=config.transforms,
        shared_fakes=config.shared_fakes,
        ema_decay=config.ema_decay,
        seed=config.seed,
        precision=config.precision,
        cuda_graph=config.cuda_graph,
        read=read,
        processes=processes,
        sync_batch_norm=config.sync_batch_norm,
    )


def _constraint(config) -> Constraint:
    options = {} if config.penalty_weight is None else {"weight": config.penalty_weight}
    return lookup("constraint", config.constraint)(**options)


def _optimizer(config):
    options = {"betas": (config.adam_beta1, config.adam_beta2)} if config.optimizer == "adam" else {}
    return partial(lookup("optimizer", config.optimizer), **options)
