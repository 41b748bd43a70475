"""Training with augmented videos: what both networks see, and the random numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.gradients import Gradients

from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.ops import augment_videos
from tgan_fast.training import TrainingStep
from tgan_fast.training.constraints import GradientPenalty
from tgan_fast.training.objectives import Hinge

WIDTH, LATENT, BATCH, SEED = 0.0625, 6, 3, 5
TRANSFORMS = ("color", "translation", "cutout")
SIZES = {"clip_frames": 8, "image_size": 16}


def step_of(**options):
    torch.manual_seed(1)
    networks = VideoGenerator(WIDTH, LATENT, 3, **SIZES), VideoDiscriminator(WIDTH, 3, **SIZES)
    return TrainingStep(*(network.double() for network in networks), seed=SEED, precision="fp32", **options)


def real_videos(seed=2):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(BATCH, 3, 8, 16, 16, generator=random, dtype=torch.float64) * 2 - 1


def draws():
    """Yield latents of a batch, and the random numbers of its augmentation, real videos first, as a step draws them."""
    latents, numbers = torch.Generator().manual_seed(SEED), torch.Generator().manual_seed(SEED + 2**31)
    for kinds in (2, 1):
        z = torch.rand(BATCH, LATENT, generator=latents) * 2 - 1
        yield z.double(), torch.rand(kinds * BATCH, 7, generator=numbers)


@pytest.mark.parametrize("shared", [False, True], ids=["own-fakes", "shared-fakes"])
def test_both_networks_see_augmented_videos_and_the_generator_gets_gradients_through_them(shared):
    step = step_of(augment=TRANSFORMS, shared_fakes=shared, clip_interval=0, learning_rate=0.0)
    generator, discriminator = copy.deepcopy(step.generator), copy.deepcopy(step.discriminator)
    with Gradients() as gradients:
        scalars = step(real_videos())
    found = gradients.flat()[::-1] if shared else gradients.flat()

    (z, numbers), (other_z, other_numbers) = draws()
    fake = generator(z)
    videos = augment_videos(torch.cat([real_videos(), fake]), numbers)
    score_real, score_fake = discriminator(videos, groups=2).chunk(2)
    loss = score_fake.mean() - score_real.mean()
    torch.testing.assert_close(scalars["loss_discriminator"], loss.detach(), rtol=1e-9, atol=1e-12)
    expected = torch.autograd.grad(loss, discriminator.parameters(), retain_graph=True)
    torch.testing.assert_close(found[0], torch.cat([part.flatten() for part in expected]), rtol=1e-7, atol=1e-10)

    if not shared:
        score_fake = discriminator(augment_videos(generator(other_z), other_numbers))
    expected = torch.autograd.grad(-score_fake.mean(), generator.parameters())
    torch.testing.assert_close(found[1], torch.cat([part.flatten() for part in expected]), rtol=1e-7, atol=1e-10)


def test_the_gradient_penalty_is_that_of_the_augmented_videos(monkeypatch):
    seen = {}
    penalty = GradientPenalty.penalty

    def recorded(self, discriminator, real, fake, mix, labels):
        seen.update(real=real.detach().clone(), fake=fake.detach().clone())
        return penalty(self, discriminator, real, fake, mix, labels)

    monkeypatch.setattr(GradientPenalty, "penalty", recorded)
    step = step_of(augment=TRANSFORMS, constraint=GradientPenalty(), learning_rate=0.0)
    generator = copy.deepcopy(step.generator)
    step(real_videos())
    random = torch.Generator().manual_seed(SEED)
    z = (torch.rand(BATCH, LATENT, generator=random) * 2 - 1).double()
    numbers = next(draws())[1]
    assert torch.equal(seen["real"], augment_videos(real_videos(), numbers[:BATCH]))
    torch.testing.assert_close(seen["fake"], augment_videos(generator(z), numbers[BATCH:]), rtol=1e-9, atol=1e-9)


def test_latents_are_those_of_a_run_without_augmentation():
    states = []
    for augment in ((), TRANSFORMS):
        step = step_of(augment=augment)
        for seed in range(3):
            step(real_videos(seed))
        states.append(step.state_dict())
    assert torch.equal(states[0]["random"], states[1]["random"])
    assert not torch.equal(states[0]["augmentation_random"], states[1]["augmentation_random"])


def test_a_checkpoint_without_the_augmentations_random_state_starts_it_anew():
    """Earlier versions wrote no such state."""
    step = step_of()
    step(real_videos())
    state = step.state_dict()
    del state["augmentation_random"]
    resumed, fresh = step_of(augment=TRANSFORMS), step_of(augment=TRANSFORMS)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.state_dict()["augmentation_random"], fresh.state_dict()["augmentation_random"])


def test_scores_are_those_of_augmented_videos_with_noise_on_top():
    step = step_of(augment=["translation"], input_noise=0.25, objective=Hinge(), learning_rate=0.0)
    generator, discriminator = copy.deepcopy(step.generator), copy.deepcopy(step.discriminator)
    scalars = step(real_videos())
    random = torch.Generator().manual_seed(SEED)
    z = (torch.rand(BATCH, LATENT, generator=random) * 2 - 1).double()
    noise = torch.randn(2 * BATCH, 8, 16, 16, 3, generator=random).movedim(-1, 1).double()
    videos = augment_videos(torch.cat([real_videos(), generator(z)]), next(draws())[1], ["translation"])
    score_real, score_fake = discriminator(videos + 0.25 * noise, groups=2).detach().chunk(2)
    expected = F.relu(1 - score_real).mean() + F.relu(1 + score_fake).mean()
    torch.testing.assert_close(scalars["loss_discriminator"], expected, rtol=1e-9, atol=1e-12)
