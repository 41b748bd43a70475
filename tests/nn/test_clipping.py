"""Clipping as a hook of an optimizer, and as a parametrization."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tgan_fast.nn import ClippedSingularValues, SingularValueClipping
from tgan_fast.ops import singular_value_clip


def norm(weight):
    return torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item()


def step_of(network, optimizer, *inputs):
    optimizer.zero_grad()
    network(*inputs).square().sum().backward()
    optimizer.step()


def network_with_every_kind_of_weight():
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 4, 3, padding=1),
        nn.Flatten(2),
        nn.TransformerEncoderLayer(16, 2, 8, batch_first=True),
        nn.Linear(16, 3, bias=False),
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def test_all_weights_are_clipped_after_every_other_step_and_nothing_else():
    network = network_with_every_kind_of_weight()
    keys = network.state_dict().keys()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    clipping = SingularValueClipping(network, 0.7, every=2)
    optimizer.register_step_post_hook(clipping)
    attention = network[4].self_attn
    clipped = [network[0].weight, network[2].weight, network[4].linear1.weight, network[4].linear2.weight]
    clipped += [network[5].weight, attention.out_proj.weight, *attention.in_proj_weight.detach().chunk(3)]
    x = torch.randn(2, 2, 4, 4)
    for number in range(1, 5):
        scale = network[1].weight.detach().clone()
        step_of(network, optimizer, x)
        assert clipping.steps == number
        if number == 1:
            assert all(norm(weight) > 0.71 for weight in clipped)
        if number == 2:
            assert [norm(weight) for weight in clipped] == pytest.approx([0.7] * len(clipped), rel=1e-5)
        if number == 4:
            assert all(norm(weight) <= 0.7 * (1 + 1e-5) for weight in clipped)
        assert norm(network[1].weight[None]) > 0.9 * norm(scale[None])
    assert network.state_dict().keys() == keys


def test_projections_of_different_widths_are_clipped():
    network = nn.MultiheadAttention(8, 2, kdim=5, vdim=6)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=3)
    SingularValueClipping(network)()
    weights = [network.q_proj_weight, network.k_proj_weight, network.v_proj_weight, network.out_proj.weight]
    assert [norm(weight) for weight in weights] == pytest.approx([1.0] * 4, rel=1e-5)


def test_training_that_is_resumed_clips_at_the_same_steps():
    torch.manual_seed(0)
    network = nn.Linear(5, 4)
    inputs = [torch.randn(3, 5) for _ in range(7)]

    def train(network, inputs, steps):
        optimizer = torch.optim.SGD(network.parameters(), 0.3)
        clipping = SingularValueClipping(network, 0.2, every=3)
        clipping.steps = steps
        optimizer.register_step_post_hook(clipping)
        for x in inputs:
            step_of(network, optimizer, x)
        return clipping.steps

    whole, resumed = copy.deepcopy(network), copy.deepcopy(network)
    train(whole, inputs, 0)
    train(resumed, inputs[4:], train(resumed, inputs[:4], 0))
    assert torch.equal(whole.weight, resumed.weight)


def test_a_network_that_was_moved_or_extended_is_still_clipped():
    network = nn.Sequential(nn.Linear(4, 4))
    clipping = SingularValueClipping(network, accuracy="fast")
    network.double()
    network.append(nn.Linear(4, 4))
    network[0].weight = nn.Parameter(torch.full((4, 4), 5.0))
    nn.init.constant_(network[1].weight, 5.0)
    clipping()
    assert [norm(layer.weight) for layer in network] == pytest.approx([1.0, 1.0], rel=1e-5)


def test_what_cannot_be_clipped_is_named():
    with pytest.raises(TypeError, match=r"takes an nn\.Module, not an object of type generator"):
        SingularValueClipping(nn.Linear(2, 2).parameters())
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="every must be a whole number of steps, 1 or more, not "):
            SingularValueClipping(nn.Linear(2, 2), every=every)
    network = nn.Sequential(nn.Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="weight of 1 is computed by a parametrization, so clipping it would change"):
        SingularValueClipping(network)
    with pytest.raises(ValueError, match="ReLU has no linear layer, convolution or attention to clip"):
        SingularValueClipping(nn.ReLU())
    for make in (SingularValueClipping, lambda module, t: ClippedSingularValues(t)(module.weight)):
        with pytest.raises(ValueError, match="max_singular_value must be a number from"):
            make(nn.Linear(2, 2), 0.0)
    with pytest.raises(ValueError, match="singular_value_clip has no backend 'lapack'"):
        SingularValueClipping(nn.Linear(2, 2), backend="lapack")
    with pytest.raises(ValueError, match="accuracy must be"):
        SingularValueClipping(nn.Linear(2, 2), accuracy="exactly")


@pytest.mark.parametrize("layer", [nn.Linear(4, 6), nn.ConvTranspose1d(4, 3, 2)], ids=["linear", "transposed"])
def test_the_parametrization_keeps_the_constraint_in_the_graph(layer, device):
    nn.init.normal_(layer.weight, std=3)
    plain = layer.weight.detach().clone().to(device)
    parametrize.register_parametrization(layer, "weight", ClippedSingularValues(0.5, out_dim=1)).to(device)
    assert torch.equal(layer.weight, singular_value_clip(plain, 0.5, out_dim=1))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    x = torch.randn(5, 4, *(3,) * (layer.weight.dim() - 2), device=device)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert norm(layer.weight.movedim(1, 0)) <= 0.5 * (1 + 1e-5)
    assert losses[-1] < losses[0]


def test_a_parametrized_layer_takes_values_and_saves_them():
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    for each in (layer, other):
        parametrize.register_parametrization(each, "weight", ClippedSingularValues())
    layer.weight = 3 * torch.eye(4)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other.weight.detach(), torch.eye(4))
    assert torch.equal(other.parametrizations.weight.original, 3 * torch.eye(4))
    assert "max_singular_value=1.0" in repr(other)
    parametrize.remove_parametrizations(other, "weight")
    torch.testing.assert_close(other.weight.detach(), torch.eye(4))


def test_a_weight_that_pruning_computes_is_named():
    network = nn.Sequential(nn.Linear(4, 4))
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    with pytest.raises(ValueError, match="weight of 0 is computed by a parametrization"):
        SingularValueClipping(network)
