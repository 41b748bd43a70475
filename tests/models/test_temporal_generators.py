"""Temporal generators: frame latents for every number of frames, and recurrent cells against PyTorch's layers."""

import pytest
import torch
from torch import nn

from tgan_fast.models import GRUTemporalGenerator, LSTMTemporalGenerator, TemporalGenerator

INPUTS, OUTPUTS, WIDTH = 7, 5, 0.03125
RECURRENT = {"gru": (GRUTemporalGenerator, nn.GRU), "lstm": (LSTMTemporalGenerator, nn.LSTM)}
CASES = [
    *[pytest.param(TemporalGenerator, frames, id=f"deconv-{frames}") for frames in (8, 16, 64)],
    *[
        pytest.param(temporal, frames, id=f"{name}-{frames}")
        for name, (temporal, _) in RECURRENT.items()
        for frames in (9, 64)
    ],
]


@pytest.mark.parametrize(("temporal", "frames"), CASES)
def test_a_latent_becomes_one_for_every_frame_and_every_parameter_learns(temporal, frames, device):
    # In training mode, the gradient of a bias in front of a batch norm would be only rounding.
    network = temporal(INPUTS, OUTPUTS, frames, WIDTH).double().to(device).eval()
    z = torch.randn(3, INPUTS, dtype=torch.float64, device=device, requires_grad=True)
    latents = network(z)
    assert latents.shape == (3, frames, OUTPUTS)
    # No frame is another one's copy.
    assert len(latents[0].unique(dim=0)) == frames
    gradients = torch.autograd.grad(latents, [z, *network.parameters()], torch.randn_like(latents))
    for name, gradient in zip(("z", *(name for name, _ in network.named_parameters())), gradients, strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.count_nonzero() > 0, name


@pytest.mark.parametrize("frames", [8, 64])
def test_deconvolved_latents_lie_within_the_unit_interval(frames, device):
    """The last layer's outputs may lie far outside of it."""
    network = TemporalGenerator(INPUTS, OUTPUTS, frames, WIDTH).double().to(device)
    z = torch.randn(4, INPUTS, dtype=torch.float64, device=device)
    outside = network.model(z.unsqueeze(2))
    scale = 5 / outside.abs().max()
    with torch.no_grad():
        network.model[-1].weight *= scale
        network.model[-1].bias *= scale
    latents = network(z)
    assert latents.abs().max() < 1
    assert latents.min() < -0.9
    assert latents.max() > 0.9


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize(("temporal", "layer"), RECURRENT.values(), ids=RECURRENT)
def test_recurrent_ones_are_the_framework_s_between_two_linear_layers(temporal, layer, frames, device):
    network = temporal(INPUTS, OUTPUTS, frames, WIDTH).double().to(device)
    hidden = network.first.out_features
    baseline = layer(hidden, hidden, batch_first=True).double().to(device)
    baseline.load_state_dict({f"{name}_l0": value for name, value in network.recurrent.state_dict().items()})

    z = torch.randn(3, INPUTS, dtype=torch.float64, device=device, requires_grad=True)
    got = network(z)
    x = network.first(z)
    expected = network.last(baseline(x.unsqueeze(1).repeat(1, frames, 1))[0])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)

    around = [z, *network.first.parameters(), *network.last.parameters()]
    cell = [network.recurrent.get_parameter(name.removesuffix("_l0")) for name, _ in baseline.named_parameters()]
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(got, [*around, *cell], upstream)
    wanted = torch.autograd.grad(expected, [*around, *baseline.parameters()], upstream)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_frames_that_are_never_reached_by_doubling_are_refused():
    with pytest.raises(ValueError, match="clip_frames is 12, but transposed convolutions need a power of two"):
        TemporalGenerator(INPUTS, OUTPUTS, 12, WIDTH)
