"""BatchNormAct* as drop-ins for nn.BatchNorm* and an activation."""

import copy

import pytest
import torch
from torch import nn

from tgan_fast.nn import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d, convert_batch_norm

CLASSES = {
    "1d": (BatchNormAct1d, nn.BatchNorm1d, (6, 4, 5)),
    "1d-flat": (BatchNormAct1d, nn.BatchNorm1d, (6, 4)),
    "2d": (BatchNormAct2d, nn.BatchNorm2d, (6, 4, 3, 5)),
    "3d": (BatchNormAct3d, nn.BatchNorm3d, (6, 4, 2, 3, 5)),
}


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize(("fused", "plain", "shape"), CLASSES.values(), ids=CLASSES)
def test_it_is_batch_norm_and_activation_over_several_steps(fused, plain, shape, momentum, device):
    left = fused(4, 0.2, momentum=momentum, eps=1e-3).to(device)
    right = nn.Sequential(plain(4, momentum=momentum, eps=1e-3), nn.LeakyReLU(0.2)).to(device)
    for mode in (True, True, True, False):
        x = 3 * torch.randn(shape, device=device) + 1
        got, expected = left.train(mode)(x), right.train(mode)(x)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    tolerance = 0 if device.type == "cpu" else 1e-6
    torch.testing.assert_close(left.state_dict(), right[0].state_dict(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("fused", "plain", "shape"), CLASSES.values(), ids=CLASSES)
def test_state_dicts_are_interchangeable(fused, plain, shape):
    fused(4).load_state_dict(plain(4).state_dict())
    plain(4).load_state_dict(fused(4).state_dict())


def test_without_running_statistics_it_uses_the_batch_in_evaluation_too():
    module = BatchNormAct1d(3, 0.2, track_running_stats=False)
    x = torch.randn(5, 3)
    assert torch.equal(module.train()(x), module.eval()(x))


def test_groups_update_the_running_statistics_once_a_part():
    together, apart = BatchNormAct2d(4), BatchNormAct2d(4)
    x = torch.randn(6, 4, 3, 3)
    got = together(x, groups=2)
    expected = torch.cat([apart(x[:3]), apart(x[3:])])
    assert torch.equal(got, expected)
    torch.testing.assert_close(together.state_dict(), apart.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_groups_and_momentum_go_together(momentum):
    together, apart = BatchNormAct2d(4, momentum=momentum), BatchNormAct2d(4, momentum=momentum)
    for _ in range(2):
        x = torch.randn(6, 4, 3, 3)
        together(x, groups=2)
        apart(x[:3])
        apart(x[3:])
    torch.testing.assert_close(together.state_dict(), apart.state_dict(), rtol=0, atol=0)


def test_statistics_that_are_not_tracked_any_more_stay_as_they_are():
    module, plain = BatchNormAct1d(4, 1.0), nn.BatchNorm1d(4)
    for batch_norm in (module, plain):
        batch_norm.track_running_stats = False
    x = torch.randn(6, 4) + 3
    torch.testing.assert_close(module(x), plain(x))
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNormAct2d(4)(torch.ones(2, 4))
    with pytest.raises(ValueError, match="more than one value a channel"):
        BatchNormAct1d(4)(torch.ones(1, 4))


class Residual(nn.Module):
    """Calls its activation itself, so that only the code of `forward` knows what follows the batch norm."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(x + self.norm(x))


def make_network():
    shared = nn.BatchNorm2d(6)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, eps=1e-3, momentum=0.3),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=False), nn.ReLU(), Residual(6)),
        shared,
        nn.ReLU(),
        nn.Conv2d(6, 6, 1),
        shared,
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(216, 5),
        nn.BatchNorm1d(5, momentum=None),
    )


def test_a_converted_network_trains_like_the_original(device):
    plain = make_network().to(device)
    fused = copy.deepcopy(plain)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (plain, fused)]
    assert convert_batch_norm(fused) is fused
    assert not any(type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) for module in fused.modules())
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8, device=device)
        outputs = [network(x) for network in (plain, fused)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_converted_network_has_the_activation_where_the_order_is_known():
    network = convert_batch_norm(make_network())
    assert [network[i].negative_slope for i in (1, 4, 7, 11)] == [0.1, 0.0, 1.0, 1.0]
    assert [type(network[i]) for i in (2, 5, 8)] == [nn.Identity, nn.Identity, nn.Tanh]
    inner = network[3]
    assert (inner[1].negative_slope, type(inner[2])) == (0.0, nn.Identity)
    assert (inner[3].norm.negative_slope, type(inner[3].act)) == (1.0, nn.ReLU)
    assert network[4].weight is network[7].weight
    assert network[4].running_mean is network[7].running_mean
    assert (network[1].eps, network[1].momentum, network[11].momentum) == (1e-3, 0.3, None)


def test_conversion_keeps_parameters_mode_and_names():
    network = make_network().eval()
    network[1].weight.requires_grad_(False)
    parameters, state = dict(network.named_parameters()), network.state_dict()
    convert_batch_norm(network, backend="torch")
    assert all(parameters[name] is parameter for name, parameter in network.named_parameters())
    assert list(network.state_dict()) == list(state)
    assert not any(module.training for module in network.modules())
    assert network[1].backend == "torch"


def test_conversion_of_a_batch_norm_alone():
    plain = nn.BatchNorm3d(4)
    fused = convert_batch_norm(plain, process_group="group")
    assert type(fused) is BatchNormAct3d
    assert fused.process_group == "group"
    assert fused.weight is plain.weight


def test_conversion_leaves_alone_what_it_does_not_know():
    class OwnBatchNorm(nn.BatchNorm2d):
        pass

    watched, seen = nn.BatchNorm2d(3), []
    watched.register_forward_hook(lambda module, inputs, output: seen.append(output))
    activation = nn.ReLU()
    activation.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network = nn.Sequential(OwnBatchNorm(3), nn.ReLU(), watched, nn.ReLU(), nn.BatchNorm2d(3), activation, nn.ReLU6())
    convert_batch_norm(network)
    kinds = [OwnBatchNorm, nn.ReLU, nn.BatchNorm2d, nn.ReLU, BatchNormAct2d, nn.ReLU, nn.ReLU6]
    assert [type(module) for module in network] == kinds
    assert network[4].negative_slope == 1.0
    network(torch.randn(2, 3, 4, 4))
    assert len(seen) == 2
