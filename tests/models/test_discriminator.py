"""The discriminator against the reference model."""

import pytest
import torch
from support.layouts import VIDEOS, watched
from torch import nn

from tgan_fast import VideoDiscriminator, reference
from tgan_fast.models.layers import HalvingConv3d, TwoFrameConv3d, WholeConv2d
from tgan_fast.models.layout import to_channels_last_


def videos(n, channels=3, dtype=torch.float64, device="cpu"):
    return (torch.rand(n, channels, 16, 64, 64, dtype=torch.float64) * 2 - 1).to(device, dtype)


def test_parameter_count_is_the_papers():
    assert sum(p.numel() for p in VideoDiscriminator().parameters()) == 11_033_281


def test_state_dict_has_the_notebooks_keys_in_order_and_shapes():
    baseline, fast = reference.Discriminator().state_dict(), VideoDiscriminator().state_dict()
    assert [(key, value.shape) for key, value in fast.items()] == [
        (key, value.shape) for key, value in baseline.items()
    ]
    assert {f"model3d.{i}.weight" for i in (0, 2, 3, 5, 6, 8, 9)} | {"conv2d.weight", "conv2d.bias"} <= fast.keys()


@pytest.mark.parametrize(
    ("n", "channels", "training", "layout"),
    [
        (1, 3, True, "contiguous"),
        (5, 1, True, "channels-last"),
        (2, 3, True, "channels-last"),
        (2, 1, False, "contiguous"),
        (5, 3, False, "channels-last"),
    ],
)
def test_scores_and_gradients_are_the_references(n, channels, training, layout, device):
    baseline = reference.Discriminator(0.125, channels).double().to(device).train(training)
    fast = VideoDiscriminator(0.125, channels).double().to(device).train(training)
    fast.load_state_dict(baseline.state_dict())
    x = videos(n, channels, device=device).requires_grad_()
    laid_out = x.to(memory_format=torch.channels_last_3d) if layout == "channels-last" else x
    expected, got = baseline(x), fast(laid_out)
    assert got.shape == (n,)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, *baseline.parameters()], upstream)
    grads = torch.autograd.grad(got, [x, *fast.parameters()], upstream)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * max(1.0, b.abs().max().item()))
    torch.testing.assert_close(fast.state_dict(), baseline.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "channels", "size"),
    [
        (HalvingConv3d, 3, (4, 6, 8)),
        (HalvingConv3d, 5, (4, 6, 8)),
        (TwoFrameConv3d, 5, (2, 8, 8)),
        (TwoFrameConv3d, 5, (2, 2, 6)),
    ],
)
def test_layers_are_the_framework_s(layer, channels, size, device, assert_same_module):
    fast = layer(channels, 7).double().to(device)
    baseline = nn.Conv3d(channels, 7, 4, stride=2, padding=1).double().to(device)
    assert_same_module(fast, baseline, torch.randn(3, channels, *size, dtype=torch.float64, device=device))


def test_the_last_layer_is_the_framework_s(device):
    fast = WholeConv2d(6, 4).double().to(device)
    baseline = nn.Sequential(nn.Conv2d(6, 1, 4), nn.Flatten(0)).double().to(device)
    fast.load_state_dict(baseline[0].state_dict())
    x = torch.randn(5, 6, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    got, expected = fast(x), baseline(x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(got)
    grads, wanted = (
        torch.autograd.grad(y, [x, *net.parameters()], upstream) for y, net in ((got, fast), (expected, baseline))
    )
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_scores_are_float32_and_summed_in_it_where_the_layers_are_bfloat16(device):
    layer = WholeConv2d(512, 4).to(device, torch.bfloat16)
    x = torch.randn(64, 512, 4, 4, device=device).bfloat16()
    scores = layer(x)
    assert scores.dtype == torch.float32
    exact = nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double()).flatten()
    # bfloat16 cannot have such a small error.
    assert (scores - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.usefixtures("every_table")
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_stay_last_in_memory(channels, device):
    discriminator = to_channels_last_(VideoDiscriminator(0.25, channels).to(device))
    x = videos(2 * VIDEOS, channels, torch.float32, device).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    with watched(discriminator) as transposed:
        discriminator(x, groups=2).sum().backward()
    assert transposed == []
    assert x.grad.movedim(1, -1).is_contiguous()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad.squeeze().stride() == parameter.squeeze().stride(), name


@pytest.mark.usefixtures("every_table")
def test_in_bf16_it_is_as_accurate_as_the_reference(assert_bf16_copy_is_as_accurate, device):
    baseline, fast = (network(0.25).to(device) for network in (reference.Discriminator, VideoDiscriminator))
    assert_bf16_copy_is_as_accurate(fast, baseline, videos(8, device=device).bfloat16().double())


def test_groups_equal_separate_calls(device):
    together, apart = (VideoDiscriminator(0.125).double().to(device) for _ in range(2))
    apart.load_state_dict(together.state_dict())
    x = videos(6, device=device)
    got, expected = together(x, groups=3), torch.cat([apart(part) for part in x.chunk(3)])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together.state_dict(), apart.state_dict(), rtol=1e-12, atol=1e-12)


def test_initialization_has_the_distribution_of_the_notebook():
    discriminator = VideoDiscriminator()
    for layer in (*discriminator.model3d, discriminator.conv2d):
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            fans = nn.init._calculate_fan_in_and_fan_out(layer.weight)
            assert layer.weight.std().item() == pytest.approx(2**0.5 * (2 / sum(fans)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("shape", [(2, 1, 16, 64, 64), (2, 3, 15, 64, 64), (2, 3, 16, 64, 85), (3, 16, 64, 64)])
def test_videos_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="takes videos \\['N', 3, 16, 64, 64\\]"):
        VideoDiscriminator(0.125)(torch.zeros(shape))
