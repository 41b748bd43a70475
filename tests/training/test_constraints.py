"""Constraints of the discriminator: the values that they compute, and that they hold during training."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tgan_fast import VideoDiscriminator, VideoGenerator, reference
from tgan_fast.models import FramesDiscriminator
from tgan_fast.training import TrainingStep
from tgan_fast.training.constraints import Constraint, GradientPenalty, WeightClipping
from tgan_fast.training.optimizers import Adam

WIDTH, LATENT, BATCH = 0.0625, 6, 4
SMALL = {"clip_frames": 8, "image_size": 32}


def videos(seed=0, dtype=torch.float32, device="cpu", shape=(8, 32, 32)):
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(BATCH, 3, *shape, generator=random) * 2 - 1).to(device, dtype)


def step_of(constraint, kind=VideoDiscriminator, device="cpu", **options):
    torch.manual_seed(0)
    generator, discriminator = VideoGenerator(WIDTH, LATENT, 3, **SMALL), kind(WIDTH, 3, **SMALL)
    constraint.prepare_(discriminator)
    networks = generator.to(device), discriminator.to(device)
    return TrainingStep(*networks, constraint=constraint, clip_interval=1, **options)


def test_the_gradient_penalty_and_its_gradients_are_the_definitions(device):
    """The definition is computed by PyTorch alone, in the reference's network."""
    eager = reference.Discriminator(WIDTH, 3).to(device, torch.float64)
    fast = VideoDiscriminator(WIDTH, 3).to(device, torch.float64)
    fast.load_state_dict(eager.state_dict())
    before = {name: buffer.clone() for name, buffer in fast.named_buffers()}
    real, fake = (videos(seed, torch.float64, device, shape=(16, 64, 64)) for seed in (1, 2))
    mix = torch.rand(BATCH, 1, 1, 1, 1, device=device, dtype=torch.float32)

    between = (mix * real + (1 - mix.double()) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(eager(between).sum(), between, create_graph=True)
    norms = gradient.flatten(1).norm(dim=1)
    expected = 3 * ((norms - 1) ** 2).mean()

    got = GradientPenalty(3).penalty(fast, real, fake, mix, None)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)
    wanted = torch.autograd.grad(expected, list(eager.parameters()), allow_unused=True)
    found = torch.autograd.grad(got, list(fast.parameters()), allow_unused=True)
    scale = max(gradient.abs().max() for gradient in wanted if gradient is not None)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12 * scale.item())
    for name, buffer in fast.named_buffers():
        assert torch.equal(buffer, before[name]), name


class Dilated(TorchDispatchMode):
    """Mode that records the dtypes of dilated convolutions; a strided convolution's second derivative is one."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.convolution and max(args[5]) > 1:
            self.dtypes.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shared_fakes", [False, True])
def test_the_gradient_penalty_is_float32_where_the_rest_is_bfloat16(shared_fakes, device):
    """Dilated convolutions in bfloat16 with kernels as large as these may be missing in cuDNN."""
    options = {"device": device, "precision": "bf16", "cuda_graph": "off", "shared_fakes": shared_fakes}
    step = step_of(GradientPenalty(), **options)
    with Dilated() as dilated:
        step(videos(device=device))
    assert set(dilated.dtypes) == {torch.float32}


def test_the_gradient_penalty_in_bfloat16_is_that_of_its_weights(device):
    step = step_of(GradientPenalty(), device=device, precision="bf16")
    computing, exact = step._discriminator.computing, VideoDiscriminator(WIDTH, 3, **SMALL).to(device).double()
    exact.load_state_dict(computing.state_dict())
    real, fake = (videos(seed, torch.bfloat16, device) for seed in (1, 2))
    mix = torch.rand(BATCH, 1, 1, 1, 1, device=device)
    penalties = []
    for network, dtype in ((computing, torch.bfloat16), (exact, torch.float64)):
        penalties.append(GradientPenalty().penalty(network, real.to(dtype), fake.to(dtype), mix, None))
    assert penalties[0].dtype == torch.float32
    # Every rounding is of float32, though there are millions of them.
    torch.testing.assert_close(penalties[0].double(), penalties[1], rtol=1e-5, atol=0)
    penalties[0].backward()
    assert all(parameter.grad is not None for name, parameter in computing.named_parameters() if "weight" in name)


@pytest.mark.parametrize("kind", [VideoDiscriminator, FramesDiscriminator])
def test_the_gradient_penalty_pulls_norms_towards_one(kind):
    constraint = GradientPenalty(10)
    step = step_of(constraint, kind, optimizer=Adam, learning_rate=1e-3)
    mix = torch.full((BATCH, 1, 1, 1, 1), 0.5)

    def distance():
        real, fake = videos(7), videos(8)
        return constraint.penalty(step.discriminator, real, fake, mix, None).item() / constraint.weight

    before = distance()
    for number in range(40):
        step(videos(number))
    assert before > 0.8
    assert distance() < 0.5 * before


def test_without_the_penalty_gradient_norms_are_far_from_1():
    step = step_of(Constraint(), optimizer=Adam, learning_rate=1e-3)
    mix = torch.full((BATCH, 1, 1, 1, 1), 0.5)
    for number in range(40):
        step(videos(number))
    assert GradientPenalty(1).penalty(step.discriminator, videos(7), videos(8), mix, None) > 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weight_clipping_reaches_all_that_computes(precision, device):
    step = step_of(WeightClipping(), device=device, precision=precision)
    step(videos(device=device))
    computing = step._discriminator.computing
    for network in (step.discriminator, computing):
        assert max(parameter.abs().max().item() for parameter in network.parameters()) <= 0.01001
    for own, copied in zip(step.discriminator.parameters(), computing.parameters(), strict=True):
        torch.testing.assert_close(copied.float(), own, rtol=2**-8, atol=0)
