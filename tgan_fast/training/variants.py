"""Iterations in another order than `TrainingStep`'s: several critic steps, or fakes shared by both networks' steps."""

from collections.abc import Callable
from functools import partial

import torch

from tgan_fast.training.objectives import Objective


def variant_of(objective: Objective, critic_steps: int, shared_fakes: bool) -> Callable | None:
    """Return the iteration that `TrainingStep` runs instead of its own, called with the step, batch and labels.

    Raises:
        ValueError: Fakes are shared, but the objective's losses are not opposite or there are several critic steps.
    """
    if not shared_fakes:
        return partial(_run_critic_steps, critic_steps) if critic_steps > 1 else None
    if not (objective.opposite and critic_steps == 1):
        raise ValueError("shared_fakes needs an objective with opposite losses and one critic step")
    return _run_with_shared_fakes


def _run_critic_steps(critic_steps, step, batch, labels):
    """Run discriminator steps on equal parts of the batch, the constraint after each of them, then a generator step."""
    count = len(batch) // critic_steps
    for number, begin in enumerate(range(0, len(batch), count)):
        part = slice(begin, begin + count)
        step._inputs.load(batch[part], None if labels is None else labels[part])
        step._discriminator_draws.draw(count)
        step._runner(step._discriminator_step)
        step._constrain_if_due(step.iteration * critic_steps + number)
    step._generator_draws.draw(count)
    step._runner(step._generator_step)


def _run_with_shared_fakes(step, batch, labels):
    """Run the iteration of the authors' own code."""
    step._inputs.load(batch, labels)
    step._discriminator_draws.draw(len(batch))
    step._runner(_update_on_shared_fakes, step)
    step._constrain_if_due(step.iteration)


def _update_on_shared_fakes(step):
    """Compute both networks' gradients from one pass of the fakes, and update the generator first."""
    real = step._inputs.videos(step.dtype)
    fake = step._fakes(step._discriminator_draws)
    seen = fake.detach().requires_grad_()
    step._discriminator.zero_grad()
    videos = step._discriminator_draws.augment(torch.cat([real, seen]))
    score_real, score_fake = step._score(videos, step._discriminator_draws, groups=2).chunk(2)
    loss = step._objective.discriminator(score_real, score_fake)
    loss.backward()
    # The two losses see the fakes with opposite signs, so one backward pass through D serves both.
    step._generator.zero_grad()
    fake.backward(-seen.grad)
    if step._constraint.penalizes:
        penalty = step._penalty(*videos.chunk(2))
        penalty.backward()
        loss = loss + penalty
    step._record_discriminator(loss, score_real, score_fake)
    step._update_generator(step._objective.generator(score_fake))
    step._discriminator.update()
