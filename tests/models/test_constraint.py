"""The constraint of a whole discriminator."""

import torch
from torch import nn

from tgan_fast import VideoDiscriminator, reference
from tgan_fast.models import constrain_


def trained_twins(device):
    """Two discriminators with the same weights, of which some break the constraint and running statistics vary."""
    plain = reference.Discriminator(0.25).double().to(device)
    for module in plain.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(module.weight, std=3 / module.weight[0].numel() ** 0.5)
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight, std=2)
            nn.init.uniform_(module.running_var, 0, 2)
    fast = VideoDiscriminator(0.25).double().to(device)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def test_it_does_what_the_reference_does(device):
    plain, fast = trained_twins(device)
    before = {key: value.clone() for key, value in fast.state_dict().items()}
    reference.constrain(plain)
    constrain_(fast)
    changed = {key for key, value in fast.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"model3d.{i}.weight" for i in (0, 2, 3, 5, 6, 8, 9)} | {"conv2d.weight"}
    torch.testing.assert_close(fast.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-9)


def test_afterwards_every_layer_is_a_contraction(device):
    _, fast = trained_twins(device)
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
