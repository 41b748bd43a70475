"""The generator against the reference model."""

import pytest
import torch
from support.layouts import VIDEOS, watched
from torch import nn

from tgan_fast import VideoGenerator, reference
from tgan_fast.models import layers as layers_module
from tgan_fast.models.layers import (
    DoublingConvTranspose1d,
    DoublingConvTranspose2d,
    PointwiseConvTranspose1d,
    SameConvTranspose2d,
)
from tgan_fast.models.layout import to_channels_last_


def both_generators(width=0.125, latent_dim=12, channels=3, dtype=torch.float64, device="cpu"):
    baseline = reference.Generator(width, latent_dim, channels).to(device, dtype)
    fast = VideoGenerator(width, latent_dim, channels).to(device, dtype)
    fast.load_state_dict(baseline.state_dict())
    return baseline, fast


def latents(n, latent_dim=12, dtype=torch.float64, device="cpu"):
    return (torch.rand(n, latent_dim, dtype=torch.float64) * 2 - 1).to(device, dtype)


def test_parameter_count_is_the_papers():
    assert sum(p.numel() for p in VideoGenerator().parameters()) == 4_449_159


def test_state_dict_has_the_notebooks_keys_in_order_and_shapes():
    baseline, fast = reference.Generator().state_dict(), VideoGenerator().state_dict()
    assert [(key, value.shape) for key, value in fast.items()] == [
        (key, value.shape) for key, value in baseline.items()
    ]
    assert {f"temp.model.{i}.weight" for i in (0, 1, 3, 4, 6, 7, 9, 10, 12)} <= fast.keys()
    assert {f"model.{i}.weight" for i in (0, 1, 3, 4, 6, 7, 9, 10, 12)} <= fast.keys()
    assert {"fast.0.weight", "fast.1.running_mean", "slow.0.weight", "slow.1.num_batches_tracked"} <= fast.keys()


@pytest.mark.parametrize(("n", "channels", "training"), [(2, 3, True), (5, 1, True), (5, 3, False), (2, 1, False)])
def test_videos_and_gradients_are_the_references(n, channels, training, device):
    baseline, fast = both_generators(channels=channels, device=device)
    baseline.train(training), fast.train(training)
    z = latents(n, device=device)
    expected, got = baseline(z), fast(z)
    assert got.shape == (n, channels, 16, 64, 64)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    got.backward(upstream)
    # In training, the gradient of a bias in front of a batch norm is rounding, so the scale is that of all gradients.
    scale = max(parameter.grad.abs().max().item() for parameter in baseline.parameters())
    for a, b in zip(fast.parameters(), baseline.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12 * scale)
    torch.testing.assert_close(fast.state_dict(), baseline.state_dict(), rtol=1e-12, atol=1e-12)


def test_a_single_video_can_be_sampled_but_not_trained_on():
    generator = VideoGenerator(0.125, 12)
    assert generator.eval()(latents(1, dtype=torch.float32)).shape == (1, 3, 16, 64, 64)
    with pytest.raises(ValueError, match="more than one value per channel"):
        generator.train()(latents(1, dtype=torch.float32))


def test_initialization_has_the_distributions_of_the_notebook():
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


def test_the_content_latent_is_not_repeated_over_the_frames(monkeypatch):
    """The first deconvolution's inputs: one of N videos and one of N·16 frames, each of half the channels."""
    seen, convolution = [], layers_module.conv_transpose2d_doubling

    def note(x, *rest):
        seen.append(tuple(x.shape))
        return convolution(x, *rest)

    monkeypatch.setattr(layers_module, "conv_transpose2d_doubling", note)
    VideoGenerator(0.125, 12)(latents(3, dtype=torch.float32))
    assert seen[:2] == [(3, 32, 4, 4), (48, 32, 4, 4)]


DOUBLING = {"stride": 2, "padding": 1}
LAYERS = {
    "pointwise-1d": (PointwiseConvTranspose1d(6, 4), nn.ConvTranspose1d(6, 4, 1), (3, 6, 5)),
    "doubling-1d": (DoublingConvTranspose1d(6, 4), nn.ConvTranspose1d(6, 4, 4, **DOUBLING), (3, 6, 5)),
    "doubling-2d": (DoublingConvTranspose2d(6, 4), nn.ConvTranspose2d(6, 4, 4, bias=False, **DOUBLING), (3, 6, 5, 7)),
    "same-2d-1": (SameConvTranspose2d(6, 4, 1), nn.ConvTranspose2d(6, 4, 1), (2, 6, 7, 16)),
    "same-2d-3": (SameConvTranspose2d(6, 4, 3), nn.ConvTranspose2d(6, 4, 3, padding=1), (2, 6, 7, 16)),
    "same-2d-5": (SameConvTranspose2d(6, 4, 5), nn.ConvTranspose2d(6, 4, 5, padding=2), (2, 6, 7, 16)),
}


@pytest.mark.parametrize(("fast", "baseline", "shape"), LAYERS.values(), ids=LAYERS)
def test_layers_are_the_framework_s(fast, baseline, shape, device, assert_same_module):
    x = torch.randn(shape, dtype=torch.float64, device=device)
    assert_same_module(fast.double().to(device), baseline.double().to(device), x)


def test_biases_that_the_paper_does_not_have_are_added(device):
    """Folding a batch norm into the layer before it adds such a bias."""
    baseline, fast = both_generators(device=device)
    names = ("fast.0", "slow.0", "model.0", "model.3", "model.6", "model.9")
    for name in names:
        part, index = name.rsplit(".")
        bias = torch.randn(baseline.get_submodule(f"{part}.{int(index) + 1}").num_features)
        for network in (baseline, fast):
            network.get_submodule(name).bias = nn.Parameter(bias.to(device, torch.float64))
    z = latents(3, device=device)
    baseline.eval(), fast.eval()
    expected, got = baseline(z), fast(z)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("every_table")
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_stay_last_in_memory(channels, device):
    """Only the features of both linear layers and their gradients are copied to another layout."""
    generator = to_channels_last_(VideoGenerator(0.25, 12, channels).to(device))
    z = latents(VIDEOS, dtype=torch.float32, device=device)
    with watched(generator) as transposed:
        videos = generator(z)
        videos.backward(torch.randn_like(videos))
    turned = [(VIDEOS, 64, 4, 4), (16 * VIDEOS, 64, 4, 4)]
    assert sorted(transposed) == sorted(2 * turned)
    assert videos.movedim(1, -1).is_contiguous()
    for name, parameter in generator.named_parameters():
        assert parameter.grad.squeeze().stride() == parameter.squeeze().stride(), name


def test_a_transposed_layout_would_not_go_unnoticed():
    layers = nn.Sequential(nn.Identity(), to_channels_last_(DoublingConvTranspose2d(64, 32)))
    x = torch.randn(VIDEOS, 64, 4, 4)
    with pytest.raises(AssertionError, match="has the strides"), watched(layers):
        layers(x)
    with watched(layers) as transposed:
        x = x.contiguous(memory_format=torch.channels_last)
        assert transposed == [tuple(x.shape)]
        y = layers(x)
        (y + torch.randn(y.shape)).relu()
    assert transposed == [tuple(x.shape), tuple(y.shape)]


@pytest.mark.usefixtures("every_table")
def test_in_bf16_it_is_as_accurate_as_the_reference(assert_bf16_copy_is_as_accurate, device):
    baseline, fast = both_generators(0.25, 24, dtype=torch.float32, device=device)
    assert_bf16_copy_is_as_accurate(fast, baseline, latents(8, 24, device=device).bfloat16().double())


def test_latents_of_another_size_are_refused():
    with pytest.raises(ValueError, match="latents \\[N, 12\\] and got \\[3, 10\\]"):
        VideoGenerator(0.125, 12)(torch.zeros(3, 10))
