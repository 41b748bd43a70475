"""The constraint of a whole network."""

import torch
from torch import nn

from tgan_fast import VideoDiscriminator, reference
from tgan_fast.nn import constrain_
from tgan_fast.ops import singular_value_clip_


def trained_pair(device):
    """Return two discriminators with the same weights and running statistics; some weights break the constraint."""
    baseline = reference.Discriminator(0.25).double().to(device)
    for module in baseline.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(module.weight, std=3 / module.weight[0].numel() ** 0.5)
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight, std=2)
            nn.init.uniform_(module.running_var, 0, 2)
    fast = VideoDiscriminator(0.25).double().to(device)
    fast.load_state_dict(baseline.state_dict())
    return baseline, fast


def test_it_does_what_the_reference_does(device):
    baseline, fast = trained_pair(device)
    before = {key: value.clone() for key, value in fast.state_dict().items()}
    reference.constrain(baseline)
    constrain_(fast)
    changed = {key for key, value in fast.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"model3d.{i}.weight" for i in (0, 2, 3, 5, 6, 8, 9)} | {"conv2d.weight"}
    torch.testing.assert_close(fast.state_dict(), baseline.state_dict(), rtol=1e-9, atol=1e-9)


def test_afterwards_every_layer_is_a_contraction(device):
    _, fast = trained_pair(device)
    constrain_(fast, 0.7)
    for module in fast.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            assert torch.linalg.matrix_norm(module.weight.flatten(1), ord=2) <= 0.7 * (1 + 1e-6)
        elif isinstance(module, nn.BatchNorm3d):
            factor = module.weight / module.running_var.sqrt()
            assert factor.min() >= 0.01 * (1 - 1e-6)
            assert factor.max() <= 1 + 1e-6


def test_linear_layers_are_clipped_and_batch_norms_without_scale_or_statistics_passed_over():
    network = nn.Sequential(
        nn.Linear(6, 4),
        nn.BatchNorm1d(4, affine=False),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.Conv1d(4, 3, 2),
    )
    nn.init.constant_(network[2].weight, 5.0)
    nn.init.constant_(network[0].weight, 5.0)
    constrain_(network)
    assert torch.linalg.matrix_norm(network[0].weight, ord=2) <= 1 + 1e-6
    assert torch.equal(network[2].weight, torch.full((4,), 5.0))


def test_other_layers_stay_as_they_are():
    network = nn.Sequential(
        nn.ConvTranspose1d(4, 3, 2),
        nn.ConvTranspose2d(4, 3, 2),
        nn.ConvTranspose3d(4, 3, 2),
        nn.Bilinear(4, 3, 2),
        nn.Embedding(4, 3),
        nn.GroupNorm(1, 3),
    )
    for module in network:
        nn.init.constant_(module.weight, 5.0)
    constrain_(network)
    assert all((module.weight == 5.0).all() for module in network)


def test_a_transposed_convolution_has_the_matrix_of_the_convolution_that_it_transposes():
    """The two have the same weight and norm: [in, …] of the one is [out, …] of the other."""
    transposed, convolution = nn.ConvTranspose2d(6, 4, 3, bias=False), nn.Conv2d(4, 6, 3, bias=False)
    nn.init.normal_(transposed.weight)
    convolution.weight = nn.Parameter(transposed.weight.detach().clone())
    constrain_(convolution)
    singular_value_clip_(transposed.weight)
    assert torch.equal(transposed.weight, convolution.weight)
    x, y = torch.randn(1, 6, 5, 5), torch.randn(1, 4, 7, 7)
    torch.testing.assert_close((transposed(x) * y).sum(), (x * convolution(y)).sum(), rtol=1e-4, atol=1e-4)
