"""Sampling leaves the generator as it was, and latents are the same everywhere."""

import pytest
import torch

from tgan_fast import VideoGenerator
from tgan_fast.models.sampling import draw_latents, sample_videos


def trained_generator(device="cpu"):
    generator = VideoGenerator(0.125, 12).to(device)
    generator(torch.rand(4, 12, device=device))
    return generator


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch_statistics", [True, False])
def test_mode_statistics_and_gradients_are_as_before(training, batch_statistics, device):
    generator = trained_generator(device).train(training)
    generator.slow.eval()
    modes = [module.training for module in generator.modules()]
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    random = torch.get_rng_state()
    videos = sample_videos(generator, draw_latents(5, 12, 0), batch_size=3, batch_statistics=batch_statistics)
    assert videos.shape == (5, 3, 16, 64, 64)
    assert not videos.requires_grad
    assert [module.training for module in generator.modules()] == modes
    torch.testing.assert_close(generator.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_running_statistics_make_videos_independent_of_the_batch():
    generator, latents = trained_generator(), draw_latents(5, 12, 0)
    one_by_one = sample_videos(generator, latents, batch_size=1)
    torch.testing.assert_close(sample_videos(generator, latents), one_by_one, rtol=1e-4, atol=1e-5)
    expected = generator.eval()(latents)
    torch.testing.assert_close(one_by_one, expected.detach(), rtol=1e-4, atol=1e-5)


def test_batch_statistics_are_those_of_training_and_no_part_is_left_with_one_video():
    generator, latents = trained_generator(), draw_latents(5, 12, 0)
    got = sample_videos(generator, latents, batch_size=4, batch_statistics=True)
    expected = torch.cat([generator.train()(part) for part in (latents[:3], latents[3:])])
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=0)


def test_latents_are_uniform_and_a_function_of_the_seed():
    latents = draw_latents(1000, 100, 3)
    assert latents.abs().max() < 1
    assert latents.mean().abs() < 0.01
    assert latents.std() == pytest.approx(3**-0.5, rel=0.01)
    assert torch.equal(latents, draw_latents(1000, 100, 3))
    assert not torch.equal(latents, draw_latents(1000, 100, 4))
