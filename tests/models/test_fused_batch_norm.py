"""Both networks with every batch norm done by the Triton kernels."""

import copy

import pytest
import torch

from tgan_fast import VideoDiscriminator, VideoGenerator, reference
from tgan_fast.nn import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d

pytest.importorskip("triton")

FUSED = BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
WIDTH, LATENT = 0.0625, 10


def with_kernels(network):
    layers = [module for module in network.modules() if isinstance(module, FUSED)]
    for layer in layers:
        layer.backend = "triton"
    return len(layers)


def outcome(network, x, upstream):
    """Output and running statistics, gradients of the parameters."""
    y = network(x)
    grads = torch.autograd.grad(y, list(network.parameters()), upstream.to(y.dtype))
    return [y.detach(), *network.buffers()], list(grads)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_a_training_pass_is_the_references(name, triton_device):
    if name == "generator":
        plain, fused, layers = reference.Generator(WIDTH, LATENT), VideoGenerator(WIDTH, LATENT), 10
        x, upstream = torch.rand(3, LATENT) * 2 - 1, torch.randn(3, 3, 16, 64, 64)
    else:
        plain, fused, layers = reference.Discriminator(WIDTH), VideoDiscriminator(WIDTH), 3
        x, upstream = torch.rand(3, 3, 16, 64, 64) * 2 - 1, torch.randn(3)
    fused.load_state_dict(plain.state_dict())
    assert with_kernels(fused) == layers
    x, upstream, plain, fused = (value.to(triton_device) for value in (x, upstream, plain, fused))
    got, grads = outcome(fused, x, upstream)
    start = copy.deepcopy(plain).double()
    expected, _ = outcome(plain, x, upstream)
    exact, exact_grads = outcome(start, x.double(), upstream)
    for mine, theirs, truth in zip(got, expected, exact, strict=True):
        error, own = ((value.double() - truth).norm() for value in (mine, theirs))
        assert error <= 2 * own + 2e-7 * truth.double().norm()
    # Looser: rounding puts a few values on the activation's other side. The true gradient of a bias before a batch norm
    # is zero.
    largest = max(grad.norm() for grad in exact_grads)
    for mine, truth in zip(grads, exact_grads, strict=True):
        assert (mine.double() - truth).norm() <= 1e-2 * torch.maximum(truth.norm(), 1e-2 * largest)
