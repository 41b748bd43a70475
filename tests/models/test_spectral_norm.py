"""Spectral normalization against singular values by `torch.linalg`."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tgan_fast import VideoDiscriminator
from tgan_fast.models import FramesDiscriminator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.models.spectral_norm import SpectralNorm, normalize_spectra_
from tgan_fast.nn import WEIGHTED

SMALL = {"clip_frames": 8, "image_size": 32}
NETWORKS = {
    "video": lambda **options: VideoDiscriminator(0.0625, **SMALL, **options),
    "frames": lambda **options: FramesDiscriminator(0.0625, **SMALL, **options),
}
SHAPES = {
    "linear": (6, 9),
    "tall": (9, 4),
    "one-row": (1, 7),
    "one-column": (7, 1),
    "1d": (5, 3, 4),
    "2d": (4, 3, 3, 3),
    "3d": (4, 3, 4, 4, 4),
    "wide": (3, 2, 4, 4, 4),
}


def videos(count, dtype=torch.float64, device="cpu"):
    return (torch.rand(count, 3, 8, 32, 32, dtype=torch.float64) * 2 - 1).to(device, dtype)


def weighted(network):
    return [module for module in network.modules() if isinstance(module, WEIGHTED)]


def largest_singular_value(weight):
    return torch.linalg.svdvals(weight.flatten(1).double())[0]


def layer(weight):
    """Return a linear layer with this parameter as its weight, normalized."""
    module = nn.Linear(1, 1, bias=False, device=weight.device)
    module.weight = nn.Parameter(weight.detach().clone())
    normalize_spectra_(module)
    return module


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_every_largest_singular_value_is_1_at_once(build, device):
    for training in (True, False):
        network = build().to(device).train(training)
        before = [largest_singular_value(module.weight).item() for module in weighted(network)]
        assert not any(abs(value - 1) < 0.01 for value in before)
        normalize_spectra_(network)
        modules = weighted(network)
        assert len(modules) == len(before) >= 4
        for module in modules:
            assert largest_singular_value(module.weight).item() == pytest.approx(1, abs=1e-5)


def test_weight_and_gradient_are_those_of_the_quotient(device):
    """σ depends on W, which gives the gradient its second term."""
    for name, shape in SHAPES.items():
        weight = torch.randn(shape, dtype=torch.float64, device=device)
        leaf = weight.clone().requires_grad_()
        expected = leaf / torch.linalg.svdvals(leaf.flatten(1))[0]
        upstream = torch.randn(shape, dtype=torch.float64, device=device)
        (wanted,) = torch.autograd.grad(expected, leaf, upstream)
        for training in (True, False):
            module = layer(weight).train(training)
            got = module.weight
            # The two vectors are float32, also for weights of float64.
            torch.testing.assert_close(got, expected, rtol=3e-7, atol=1e-12)
            (gradient,) = torch.autograd.grad(got, module.parametrizations.weight.original, upstream)
            torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().item())
        # Without the second term it would be another one, by far more than rounding.
        alone = upstream / largest_singular_value(weight)
        assert (alone - wanted).norm() > 1e-3 * wanted.norm(), name


def rotate_(weight, angle):
    """Turn a square weight a little, so that its singular vectors move and its singular values stay."""
    n = weight.shape[0]
    skew = torch.zeros(n, n, dtype=weight.dtype, device=weight.device)
    for row in range(n - 1):
        skew[row, row + 1], skew[row + 1, row] = angle, -angle
    turned = torch.linalg.matrix_exp(skew)
    with torch.no_grad():
        weight.copy_(turned @ weight @ turned)


def spectrum(*values, device="cpu"):
    """Return a square matrix with these singular values."""
    n = len(values)
    u, v = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for _ in range(2))
    return (u @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ v).to(device)


def test_in_training_mode_the_vectors_follow_the_weight_and_in_evaluation_mode_they_stay(device):
    module = layer(spectrum(3.0, 1.0, 0.5, 0.2, device=device))
    norm, original = module.parametrizations.weight[0], module.parametrizations.weight.original
    followed = []
    for _ in range(20):
        rotate_(original, 0.05)
        followed.append(largest_singular_value(module.weight).item())
    assert followed == pytest.approx([1.0] * 20, abs=0.01)

    module.eval()
    before = [norm.u.clone(), norm.v.clone()]
    left_behind = []
    for _ in range(20):
        rotate_(original, 0.05)
        left_behind.append(largest_singular_value(module.weight).item())
    assert torch.equal(norm.u, before[0])
    assert torch.equal(norm.v, before[1])
    assert left_behind[-1] > 1.2


def test_iterations_on_a_weight_that_stays_find_what_they_lost(device):
    """The weight changes suddenly, as after loading another one."""
    module = layer(spectrum(3.0, 1.0, 0.5, 0.2, device=device))
    with torch.no_grad():
        module.parametrizations.weight.original.copy_(spectrum(2.0, 1.5, 1.0, 0.5, device=device))
    values = [largest_singular_value(module.weight).item() for _ in range(60)]
    assert abs(values[0] - 1) > 1e-3
    assert values[-1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_backward_through_two_uses_has_the_vectors_of_each(dtype, device):
    """A discriminator may score twice before its backward pass."""
    weight = spectrum(3.0, 2.5, 0.5, 0.2, device=device).to(dtype)
    module = layer(weight)
    original = module.parametrizations.weight.original
    rotate_(original, 0.3)
    upstreams = torch.randn(2, *weight.shape, dtype=dtype, device=device)
    clone = copy.deepcopy(module)
    first, second = module.weight, module.weight
    assert not torch.allclose(first, second, rtol=1e-5)
    (together,) = torch.autograd.grad((first * upstreams[0]).sum() + (second * upstreams[1]).sum(), original)
    apart = 0
    for upstream in upstreams:
        (gradient,) = torch.autograd.grad(clone.weight, clone.parametrizations.weight.original, upstream)
        apart = apart + gradient
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(together, apart, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_a_state_dict_restores_the_scores(build, device):
    network, other = (build(classes=3).double().to(device) for _ in range(2))
    normalize_spectra_(network)
    normalize_spectra_(other)
    x, labels = videos(4, device=device), torch.tensor([0, 1, 2, 1], device=device)
    with torch.no_grad():
        for module in weighted(network):
            module.parametrizations.weight.original.mul_(1.5).add_(0.01)
    assert not torch.allclose(other(x, labels=labels), network(x, labels=labels), rtol=1e-3)
    other.load_state_dict(network.state_dict(), strict=True)
    for training in (False, True):
        scores = [each.train(training)(x, labels=labels) for each in (network, other)]
        assert torch.equal(*scores)
    torch.testing.assert_close(other.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_the_state_has_the_weight_and_two_vectors_for_every_weight():
    baseline, network = NETWORKS["video"](), NETWORKS["video"]()
    normalize_spectra_(network)
    expected = {}
    for name, value in baseline.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if isinstance(baseline.get_submodule(owner), WEIGHTED) and kind == "weight":
            norm = f"{owner}.parametrizations.weight"
            expected[f"{norm}.original"] = value.shape
            expected[f"{norm}.0.u"], expected[f"{norm}.0.v"] = (value.shape[0],), (value[0].numel(),)
        else:
            expected[name] = value.shape
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == {
        name: tuple(shape) for name, shape in expected.items()
    }


def test_scores_are_those_of_a_network_with_the_quotients_for_weights(device):
    """Scores are compared in evaluation mode, also with weights that are channels-last in memory."""
    baseline = NETWORKS["video"]().double().to(device).eval()
    network = to_channels_last_(copy.deepcopy(baseline))
    normalize_spectra_(network)
    with torch.no_grad():
        for module in weighted(baseline):
            module.weight /= largest_singular_value(module.weight)
    x = videos(3, device=device)
    # All but exactly: the vectors are float32.
    torch.testing.assert_close(network(x), baseline(x), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 9), (16, 8, 4, 4, 4)], ids=str)
def test_bfloat16_weights_have_vectors_and_quotients_of_float32(shape, device):
    weight = torch.randn(shape, device=device).bfloat16()
    module = layer(weight)
    norm = module.parametrizations.weight[0]
    for _ in range(3):
        got = module.weight
        assert got.dtype == torch.bfloat16
        assert norm.u.dtype == norm.v.dtype == torch.float32
    exact = weight.double() / largest_singular_value(weight)
    # Rounded once: a number of bfloat16 has 8 digits.
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=0)
    (gradient,) = torch.autograd.grad(got, module.parametrizations.weight.original, torch.ones_like(got))
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_no_random_numbers_are_used_and_two_builds_are_the_same(build, device):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        network, x = build().to(device), videos(2, torch.float32, device)
        before = torch.get_rng_state()
        normalize_spectra_(network)
        network(x)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(network.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_other_layers_stay_as_they_are():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 3), nn.Linear(3, 2))
    normalize_spectra_(network)
    assert [parametrize.is_parametrized(module) for module in network] == [True, False, False, True]
    assert isinstance(network[0].parametrizations.weight[0], SpectralNorm)
    assert not parametrize.is_parametrized(network[0], "bias")
