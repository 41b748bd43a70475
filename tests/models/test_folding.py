"""A folded generator is the generator in evaluation mode, with weights of its own."""

import copy

import pytest
import torch
from support.generators import in_bfloat16, latents, trained_generator

from tgan_fast.models import folding
from tgan_fast.models.folding import FoldedGenerator


def unfolded(generator, z):
    with torch.no_grad():
        return copy.deepcopy(generator).eval().frames(z)


def error(frames, exact):
    return (frames.double() - exact).norm().item()


@pytest.mark.parametrize(("n", "channels"), [(1, 3), (5, 1)])
def test_in_float64_it_is_the_network_in_evaluation_mode(n, channels, device):
    generator = trained_generator(torch.float64, device, channels, clip_frames=16, image_size=64)
    z = latents(n, torch.float64, device)
    frames = FoldedGenerator(generator, torch.float64).frames(z)
    assert frames.shape == (16 * n, channels, 64, 64)
    assert frames.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(frames, unfolded(generator, z), rtol=1e-12, atol=1e-12)


@pytest.fixture(params=["shift in the layer", "shift in the activation"])
def place(request, monkeypatch):
    """Run on the CPU as if on each device, which decides where the shifts go."""
    monkeypatch.setattr(folding, "_adds_bias_for_free", lambda layer: request.param == "shift in the layer")


@pytest.mark.usefixtures("place")
def test_other_activations_stay_what_they_are():
    generator, z = trained_generator(torch.float64), latents(3, torch.float64)
    for norm, slope in ((generator.model[1], 0.2), (generator.slow[1], 1.0), (generator.temp.model[1], 0.5)):
        norm.negative_slope = slope
    frames = FoldedGenerator(generator, torch.float64).frames(z)
    torch.testing.assert_close(frames, unfolded(generator, z), rtol=1e-12, atol=1e-12)


def test_in_float32_it_is_as_accurate_as_the_network(device):
    exact, z = trained_generator(torch.float64, device), latents(8, torch.float64, device)
    truth, generator = unfolded(exact, z), copy.deepcopy(exact).float()
    folded = FoldedGenerator(generator, torch.float32).frames(z)
    assert folded.dtype == torch.float32
    assert error(folded, truth) <= 2 * error(unfolded(generator, z.float()), truth)


@pytest.mark.usefixtures("place")
def test_in_bfloat16_it_is_as_accurate_as_the_network(device):
    exact, z = trained_generator(torch.float64, device), latents(8, torch.float64, device)
    truth, generator = unfolded(exact, z), copy.deepcopy(exact).float()
    folded = FoldedGenerator(generator, torch.bfloat16).frames(z)
    assert folded.dtype == torch.bfloat16
    assert error(folded, truth) <= 2 * error(unfolded(in_bfloat16(generator), z.bfloat16()), truth)


def test_folding_is_rounded_once():
    """The weights in bfloat16 are the nearest to those in float32."""
    generator = trained_generator()
    rounded, wide = (FoldedGenerator(generator, dtype).network for dtype in (torch.bfloat16, torch.float32))
    for (name, ours), theirs in zip(rounded.state_dict().items(), wide.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs.bfloat16()), name


@pytest.mark.usefixtures("place")
def test_refresh_takes_over_everything_into_the_same_memory(device):
    generator, other = (trained_generator(torch.float64, device) for _ in range(2))
    z = latents(3, torch.float64, device)
    folded = FoldedGenerator(generator, torch.float64)
    before, addresses = folded.frames(z).clone(), pointers(folded)
    generator.load_state_dict(other.state_dict())
    assert torch.equal(folded.frames(z), before)
    folded.refresh()
    torch.testing.assert_close(folded.frames(z), unfolded(other, z), rtol=1e-12, atol=1e-12)
    assert pointers(folded) == addresses


def test_refresh_finds_parameters_that_have_moved():
    """A training step moves all parameters into one buffer."""
    generator, z = trained_generator(torch.float64), latents(3, torch.float64)
    folded = FoldedGenerator(generator, torch.float64)
    for parameter in generator.parameters():
        parameter.data = parameter.data * 1.1
    folded.refresh()
    torch.testing.assert_close(folded.frames(z), unfolded(generator, z), rtol=1e-12, atol=1e-12)


def test_the_generator_is_as_before(device):
    generator = trained_generator(device=device)
    generator.slow.eval()
    generator.model[0].requires_grad_(False)
    generator(latents(4, device=device)).sum().backward()
    z = latents(2, device=device)
    described = [describe(generator), torch.get_rng_state()]
    folded = FoldedGenerator(generator, torch.bfloat16)
    assert not folded.frames(z).requires_grad
    folded.refresh()
    torch.testing.assert_close([describe(generator), torch.get_rng_state()], described, rtol=0, atol=0)


@pytest.mark.gpu
def test_refresh_does_not_wait_for_the_gpu():
    folded = FoldedGenerator(trained_generator(device="cuda"), torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        folded.refresh()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pointers(folded):
    return [tensor.data_ptr() for tensor in folded.network.state_dict().values()]


def describe(generator):
    modes = [module.training for module in generator.modules()]
    parameters = list(generator.parameters())
    state = {key: value.clone() for key, value in generator.state_dict().items()}
    grads = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
    return {"state": state, "modes": modes, "grads": grads, "trainable": [p.requires_grad for p in parameters]}


@pytest.mark.usefixtures("place")
def test_what_is_left_of_a_batch_norm_has_an_epsilon_that_every_pytorch_takes():
    """PyTorch 2.11 refuses 0."""
    network = FoldedGenerator(trained_generator(), torch.float32).network
    left = [module.eps for module in network.modules() if hasattr(module, "eps")]
    assert all(0 < eps < torch.finfo(torch.float32).eps for eps in left)
