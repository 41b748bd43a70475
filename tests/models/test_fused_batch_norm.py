"""Both networks with every batch norm done by the Triton kernels."""

import copy

import pytest
import torch

from tgan_fast import VideoDiscriminator, VideoGenerator
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
    """Return output and running statistics, and gradients of the parameters."""
    y = network(x)
    grads = torch.autograd.grad(y, list(network.parameters()), upstream.to(y.dtype))
    return [y.detach(), *network.buffers()], list(grads)


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_a_training_pass_is_that_of_pytorchs_batch_norm(name, triton_device):
    """Networks of small videos, whose first layers are large enough for the kernels of any size."""
    if name == "generator":
        baseline, fused = (VideoGenerator(WIDTH, LATENT, clip_frames=8, image_size=16) for _ in range(2))
        layers, x, upstream = 7, torch.rand(5, LATENT) * 2 - 1, torch.randn(5, 3, 8, 16, 16)
    else:
        baseline, fused = (VideoDiscriminator(WIDTH, clip_frames=8, image_size=32) for _ in range(2))
        layers, x, upstream = 2, torch.rand(9, 3, 8, 32, 32) * 2 - 1, torch.randn(9)
    fused.load_state_dict(baseline.state_dict())
    assert with_kernels(fused) == layers
    x, upstream, baseline, fused = (value.to(triton_device) for value in (x, upstream, baseline, fused))
    got, grads = outcome(fused, x, upstream)
    start = copy.deepcopy(baseline).double()
    expected, _ = outcome(baseline, x, upstream)
    exact, exact_grads = outcome(start, x.double(), upstream)
    for mine, theirs, truth in zip(got, expected, exact, strict=True):
        error, own = ((value.double() - truth).norm() for value in (mine, theirs))
        assert error <= 2 * own + 2e-7 * truth.double().norm()
    # Looser: rounding puts a few values on the activation's other side. The true gradient of a bias before a batch norm
    # is zero.
    largest = max(grad.norm() for grad in exact_grads)
    for mine, truth in zip(grads, exact_grads, strict=True):
        assert (mine.double() - truth).norm() <= 1e-2 * torch.maximum(truth.norm(), 1e-2 * largest)
