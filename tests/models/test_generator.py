"""The generator against the reference model."""

import pytest
import torch
from torch import nn

from tgan_fast import VideoGenerator, reference
from tgan_fast.models.generator import ConvTranspose2dStride1


def twins(width=0.125, latent_dim=12, channels=3, dtype=torch.float64, device="cpu"):
    plain = reference.Generator(width, latent_dim, channels).to(device, dtype)
    fast = VideoGenerator(width, latent_dim, channels).to(device, dtype)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def latents(n, latent_dim=12, dtype=torch.float64, device="cpu"):
    return (torch.rand(n, latent_dim, dtype=torch.float64) * 2 - 1).to(device, dtype)


class InputShapes(torch.overrides.TorchFunctionMode):
    """Notes the shape of the first argument of every call of one function."""

    def __init__(self, function):
        super().__init__()
        self.function, self.seen = function, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is self.function:
            self.seen.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


def test_parameter_count_is_the_papers():
    assert sum(p.numel() for p in VideoGenerator().parameters()) == 4_449_159


def test_state_dict_has_the_notebooks_keys_in_order_and_shapes():
    plain, fast = reference.Generator().state_dict(), VideoGenerator().state_dict()
    assert [(key, value.shape) for key, value in fast.items()] == [(key, value.shape) for key, value in plain.items()]
    assert {f"temp.model.{i}.weight" for i in (0, 1, 3, 4, 6, 7, 9, 10, 12)} <= fast.keys()
    assert {f"model.{i}.weight" for i in (0, 1, 3, 4, 6, 7, 9, 10, 12)} <= fast.keys()
    assert {"fast.0.weight", "fast.1.running_mean", "slow.0.weight", "slow.1.num_batches_tracked"} <= fast.keys()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [2, 5])
def test_videos_and_gradients_are_the_references(n, channels, training, device):
    plain, fast = twins(channels=channels, device=device)
    plain.train(training), fast.train(training)
    z = latents(n, device=device)
    expected, got = plain(z), fast(z)
    assert got.shape == (n, channels, 16, 64, 64)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    got.backward(upstream)
    # A bias in front of a batch norm in training has no gradient but rounding, so the scale is that of all gradients.
    scale = max(parameter.grad.abs().max().item() for parameter in plain.parameters())
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12 * scale)
    torch.testing.assert_close(fast.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)


def test_a_single_video_can_be_sampled_but_not_trained_on():
    generator = VideoGenerator(0.125, 12)
    assert generator.eval()(latents(1, dtype=torch.float32)).shape == (1, 3, 16, 64, 64)
    with pytest.raises(ValueError, match="more than one value a channel"):
        generator.train()(latents(1, dtype=torch.float32))


def test_initialisation_has_the_distributions_of_the_notebook():
    generator = VideoGenerator()
    for name in ("fast.0", "slow.0", "model.0", "model.3", "model.6", "model.9", "model.12"):
        weight = generator.get_submodule(name).weight
        assert weight.abs().max() <= 0.01, name
        assert weight.std().item() == pytest.approx(0.01 / 3**0.5, rel=0.05), name
    for index in (0, 3, 6, 9, 12):
        weight = generator.temp.model.get_submodule(str(index)).weight
        fans = nn.init._calculate_fan_in_and_fan_out(weight)
        limit = 2**0.5 * (6 / sum(fans)) ** 0.5
        assert 0.99 * limit < weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)


def test_the_content_latent_is_not_repeated_over_the_frames():
    """The first deconvolution's inputs: one of N videos and one of N·16 frames, each of half the channels."""
    generator = VideoGenerator(0.125, 12)
    with InputShapes(nn.functional.conv_transpose2d) as shapes:
        generator(latents(3, dtype=torch.float32))
    assert shapes.seen[:2] == [(48, 32, 4, 4), (3, 32, 4, 4)]


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (1, 0), (5, 2)])
def test_stride_one_deconvolution_is_the_framework_s(kernel, padding, device, assert_same_module):
    fast = ConvTranspose2dStride1(6, 4, kernel, padding).double().to(device)
    plain = nn.ConvTranspose2d(6, 4, kernel, padding=padding).double().to(device)
    assert_same_module(fast, plain, torch.randn(2, 6, 7, 9, dtype=torch.float64, device=device))


def test_latents_of_another_size_are_refused():
    with pytest.raises(ValueError, match="latents \\[N, 12\\] and got \\[3, 10\\]"):
        VideoGenerator(0.125, 12)(torch.zeros(3, 10))
