"""Sampling does not change the generator, and gives the clips of its videos; latents are the same everywhere."""

import copy
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from support.generators import FRAMES, IMAGE_SIZE, LATENT, in_bfloat16, latents, trained_generator
from support.lifetimes import dies_with_its_last_reference

from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.models.sampling import Sampler, _StaticBatch, draw_latents, refuse_non_finite, sample_videos

SMALL, PAPERS = (FRAMES, IMAGE_SIZE), (16, 64)  # frames, pixels
# Error of (tanh + 1)·127.5 in float64 if the frames before it were rounded to float32.
ROUNDING = 1e-4


def levels(generator, z):
    """Return the levels of the definition, before they are rounded: [N, T, H, W, C]."""
    with torch.no_grad():
        videos = copy.deepcopy(generator).eval()(z).double()
    return ((videos + 1) * 127.5).permute(0, 2, 3, 4, 1).cpu()


def rms(clips, exact):
    return (clips.double() - exact).square().mean().sqrt().item()


@pytest.mark.parametrize(("n", "channels", "sizes"), [(1, 3, SMALL), (4, 1, SMALL), (7, 3, SMALL), (7, 3, PAPERS)])
def test_clips_are_the_levels_of_the_videos(n, channels, sizes, device):
    frames, image_size = sizes
    generator = trained_generator(torch.float64, device, channels, clip_frames=frames, image_size=image_size)
    z = latents(n, torch.float64)
    clips = Sampler(generator, batch_size=4, precision="fp32")(z)
    assert clips.dtype == torch.uint8
    assert clips.shape == (n, frames, image_size, image_size, channels)
    assert clips.device.type == "cpu"
    assert clips.is_contiguous()
    assert (clips.double() - levels(generator, z.to(device))).abs().max() <= 0.5 + ROUNDING


def test_videos_are_those_of_the_generator_in_evaluation_mode(device):
    generator, z = trained_generator(torch.float64, device), latents(7, torch.float64)
    sampler = Sampler(generator, batch_size=4, precision="fp32", output="videos")
    videos = torch.cat(list(sampler.on_device(z)))
    with torch.no_grad():
        expected = copy.deepcopy(generator).eval()(z.to(device))
    assert videos.dtype == torch.float32
    torch.testing.assert_close(videos.double(), expected, rtol=0, atol=1e-6)


def test_no_latents_are_no_clips(device):
    sampler = Sampler(trained_generator(device=device))
    assert sampler(latents(0)).shape == (0, FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert list(sampler.on_device(latents(0))) == []


def test_in_bfloat16_clips_are_as_accurate_as_the_networks_videos(device):
    exact, z = trained_generator(torch.float64, device), latents(8, torch.float64, device)
    truth, generator = levels(exact, z), copy.deepcopy(exact).float()
    clips = Sampler(generator, precision="bf16")(z)
    own = rms(levels(in_bfloat16(generator), z.bfloat16()).round(), truth)
    assert rms(clips, truth) <= 2 * own
    # Of 255 levels: the bound above is one.
    assert own < 3


def test_on_the_device_they_are_the_same(device):
    sampler = Sampler(trained_generator(device=device), batch_size=3)
    z = latents(7)
    batches = list(sampler.on_device(z))
    assert max(len(batch) for batch in batches) == sampler.batch_size <= 3
    assert {batch.device.type for batch in batches} == {device.type}
    assert torch.equal(torch.cat(batches).cpu(), sampler(z))


def test_one_sampler_takes_latents_of_any_dtype_device_and_number(device):
    sampler = Sampler(trained_generator(device=device), batch_size=4)
    z = latents(6)
    clips = sampler(z)
    assert torch.equal(sampler(z.double().to(device)), clips)
    assert torch.equal(sampler(z.repeat_interleave(2, 0)[::2]), clips)
    assert torch.equal(sampler(z[:4]), clips[:4])


def test_refresh_takes_over_what_the_generator_has_now(device):
    generator, other = (trained_generator(torch.float64, device) for _ in range(2))
    sampler, z = Sampler(generator, precision="fp32"), latents(3)
    before = sampler(z)
    generator.load_state_dict(other.state_dict())
    assert torch.equal(sampler(z), before)
    sampler.refresh()
    assert torch.equal(sampler(z), Sampler(other, precision="fp32")(z))
    assert not torch.equal(sampler(z), before)


def test_a_training_iteration_does_not_notice(device):
    """Modes, buffers, gradients and random numbers."""
    generator, z = trained_generator(device=device), latents(5, device=device)
    generator.slow.eval()
    generator(z).sum().backward()
    before = described(generator, device)
    sampler = Sampler(generator, batch_size=3)
    assert not sampler(z).requires_grad
    sampler.refresh()
    torch.testing.assert_close(described(generator, device), before, rtol=0, atol=0)


def described(generator, device):
    return {
        "state": {key: value.clone() for key, value in generator.state_dict().items()},
        "modes": [module.training for module in generator.modules()],
        "gradients": [parameter.grad.clone() for parameter in generator.parameters()],
        "random": [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device.type == "cuda" else [])],
    }


def test_a_sampler_that_nobody_has_any_more_is_gone_at_once_with_its_graph(device):
    """A graph that the garbage collector destroys while another one is captured invalidates that."""

    def used_sampler():
        sampler = Sampler(trained_generator(device=device), batch_size=2)
        sampler(latents(9))
        return sampler

    assert dies_with_its_last_reference(used_sampler)


def test_a_static_batch_is_padded_and_its_results_outlive_the_next():
    seen = []

    def double(z):
        seen.append(len(z))
        return buffer.copy_(z).mul_(2)

    static, buffer = torch.zeros(4, 2), torch.empty(4, 2)
    batch = _StaticBatch(static, replayed=None)
    first, second = torch.rand(4, 2), torch.rand(3, 2)
    results = batch(double, first), batch(double, second)
    assert torch.equal(results[0], 2 * first)
    assert torch.equal(results[1], 2 * second)
    assert seen == [4, 4]


def test_latents_of_another_shape_are_refused_at_once():
    sampler = Sampler(trained_generator())
    for sample, shape in product((sampler, sampler.on_device), [(3, LATENT + 1), (LATENT,), (3, LATENT, 1)]):
        with pytest.raises(ValueError, match=r"takes latents \[N, 12\] and got \["):
            sample(torch.zeros(shape))


def test_what_the_device_does_not_have_is_refused():
    generator = trained_generator()
    with pytest.raises(InputError, match="the CPU does not compute in TF32"):
        Sampler(generator, precision="tf32")
    with pytest.raises(InputError, match="it needs a GPU"):
        Sampler(generator, cuda_graph="on")
    with pytest.raises(ValueError, match="batch_size must be at least 1, and is 0"):
        Sampler(generator, batch_size=0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_a_graph_gives_the_same_clips_bit_for_bit(precision, monkeypatch):
    """There are enough batches to record and replay the graph, also after a refresh."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    generator, z = trained_generator(device="cuda"), latents(23)
    samplers = [Sampler(generator, batch_size=3, precision=precision, cuda_graph=mode) for mode in ("on", "off")]
    replayed, eager = (sampler(z) for sampler in samplers)
    assert torch.equal(replayed, eager)
    generator.load_state_dict(trained_generator().state_dict())
    for sampler in samplers:
        sampler.refresh()
    again, eager_again = (sampler(z) for sampler in samplers)
    assert torch.equal(again, eager_again)
    assert not torch.equal(again, replayed)


@pytest.mark.gpu
def test_what_arrives_on_the_cpu_is_what_was_computed(monkeypatch):
    """Many large batches pass through two buffers that are written and read in turns."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    frames, image_size = PAPERS
    generator = trained_generator(device="cuda", clip_frames=frames, image_size=image_size)
    sampler = Sampler(generator, batch_size=32)
    z = latents(32 * 20 + 5)
    expected = torch.cat([batch.cpu() for batch in sampler.on_device(z)])
    for _ in range(3):
        assert torch.equal(sampler(z), expected)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch_statistics", [True, False])
def test_mode_statistics_and_gradients_are_as_before(training, batch_statistics, device):
    generator = trained_generator(device=device).train(training)
    generator.slow.eval()
    modes = [module.training for module in generator.modules()]
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    z, random = draw_latents(5, LATENT, 0), torch.get_rng_state()
    videos = sample_videos(generator, z, batch_size=3, batch_statistics=batch_statistics)
    assert videos.shape == (5, 3, FRAMES, IMAGE_SIZE, IMAGE_SIZE)
    assert not videos.requires_grad
    assert [module.training for module in generator.modules()] == modes
    torch.testing.assert_close(generator.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_running_statistics_make_videos_independent_of_the_batch():
    generator, z = trained_generator(), draw_latents(5, LATENT, 0)
    one_by_one = sample_videos(generator, z, batch_size=1)
    torch.testing.assert_close(sample_videos(generator, z), one_by_one, rtol=1e-4, atol=1e-5)
    expected = generator.eval()(z)
    torch.testing.assert_close(one_by_one, expected.detach(), rtol=1e-4, atol=1e-5)


def test_batch_statistics_are_those_of_training_and_no_part_is_left_with_one_video():
    generator, z = trained_generator(), draw_latents(5, LATENT, 0)
    got = sample_videos(generator, z, batch_size=4, batch_statistics=True)
    expected = torch.cat([generator.train()(part) for part in (z[:3], z[3:])])
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=0)


def test_latents_are_uniform_and_a_function_of_the_seed():
    z = draw_latents(1000, 100, 3)
    assert z.abs().max() < 1
    assert z.mean().abs() < 0.01
    assert z.std() == pytest.approx(3**-0.5, rel=0.01)
    assert torch.equal(z, draw_latents(1000, 100, 3))
    assert not torch.equal(z, draw_latents(1000, 100, 4))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda state: state["model.0.weight"][0, 0].fill_(math.nan), r"model\.0\.weight"),
        (lambda state: state["model.1.running_var"][:1].fill_(math.inf), r"model\.1\.running_var"),
        (lambda state: state["model.1.running_var"].fill_(-1), "its output"),
        (lambda state: [state[f"model.{layer}.weight"].fill_(1e30) for layer in (0, 3, 6)], "its output"),
    ],
    ids=["weight", "statistic", "negative variance", "too large"],
)
def test_a_generator_that_is_not_finite_is_refused(damage, what):
    generator = trained_generator()
    refuse_non_finite(generator, Path("x.pt"))
    with torch.no_grad():
        damage(generator.state_dict())
    with pytest.raises(NonFiniteError, match=rf"the generator in x\.pt cannot be used, because {what} is not finite"):
        refuse_non_finite(generator, Path("x.pt"))
