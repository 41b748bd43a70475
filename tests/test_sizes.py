"""Networks for every supported number of frames and image size."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from tgan_fast import VideoDiscriminator, VideoGenerator, reference
from tgan_fast.models import FRAMES, IMAGE_SIZE, FrameGenerator, FramesDiscriminator, GRUTemporalGenerator
from tgan_fast.sizes import IMAGE_SIZES, check_sizes, doublings, scaled

WIDTH, LATENT = 0.03125, 6
PAIRS = {"video": (VideoGenerator, VideoDiscriminator), "frame": (FrameGenerator, FramesDiscriminator)}
# Every image size and every kind of number of frames: powers of two, other even ones, odd ones.
SIZES = [(8, 16), (12, 32), (16, 64), (8, 128), (64, 32), (64, 16), (9, 16), (63, 16), (12, 128)]


def networks(frames, image_size, generator=VideoGenerator, discriminator=VideoDiscriminator):
    sizes = {"clip_frames": frames, "image_size": image_size}
    temporal = {} if frames.bit_count() == 1 else {"temporal": GRUTemporalGenerator}
    return generator(WIDTH, LATENT, 2, **sizes, **temporal), discriminator(WIDTH, 2, **sizes)


def latents(count, device="cpu"):
    return torch.rand(count, LATENT, dtype=torch.float64, device=device) * 2 - 1


def videos(count, frames, image_size, device="cpu"):
    return torch.rand(count, 2, frames, image_size, image_size, dtype=torch.float64, device=device) * 2 - 1


def native_scores(network, videos):
    """Return the scores of a `VideoDiscriminator` in training mode, computed by PyTorch's own operations."""

    def convolved(x, layer):
        frames = {"stride": 2, "padding": 1} if x.shape[2] > 1 else {"stride": (1, 2, 2), "padding": (0, 1, 1)}
        return F.conv3d(x, layer.weight, layer.bias, **frames)

    first, *rest = network.model3d
    x = F.leaky_relu(convolved(videos, first), 0.2)
    for layer, norm in zip(rest[::2], rest[1::2], strict=True):
        x = F.batch_norm(convolved(x, layer), None, None, norm.weight, norm.bias, training=True)
        x = F.leaky_relu(x, 0.2)
    # Each remaining frame adds a share of the score.
    weights = network.conv2d.weight.chunk(x.shape[2], 1)
    shares = [F.conv2d(frame, weight) for frame, weight in zip(x.unbind(2), weights, strict=True)]
    return (sum(shares) + network.conv2d.bias).flatten()


@pytest.mark.parametrize(("frames", "image_size"), SIZES)
def test_latents_become_videos_and_these_become_scores(frames, image_size, device):
    """Training mode is tested, with gradients for every parameter."""
    for pair in PAIRS.values():
        generator, discriminator = (network.to(device) for network in networks(frames, image_size, *pair))
        made = generator(latents(3, device).float())
        assert made.shape == (3, 2, frames, image_size, image_size)
        assert made.abs().max() < 1
        scores = discriminator(made)
        assert scores.shape == (3,)
        parameters = [*generator.named_parameters(), *discriminator.named_parameters()]
        gradients = torch.autograd.grad(scores, [parameter for _, parameter in parameters], torch.randn_like(scores))
        for (name, parameter), gradient in zip(parameters, gradients, strict=True):
            assert gradient.isfinite().all(), name
            # The gradient of a bias in front of a batch norm is only rounding.
            assert parameter.dim() == 1 or gradient.count_nonzero() > 0, name


@pytest.mark.parametrize(("frames", "image_size"), [(8, 128), (9, 16), (15, 128), (33, 16), (64, 16), (64, 128)])
def test_scores_are_those_of_the_framework_s_layers(frames, image_size, device):
    _, network = networks(frames, image_size)
    network.double().to(device)
    x = videos(2, frames, image_size, device)
    torch.testing.assert_close(network(x), native_scores(network, x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("frames", "image_size"), [(8, 128), (64, 16), (12, 16)])
def test_groups_equal_separate_calls(frames, image_size, device):
    together, apart = (networks(frames, image_size)[1].double().to(device) for _ in range(2))
    apart.load_state_dict(together.state_dict())
    x = videos(4, frames, image_size, device)
    got, expected = together(x, groups=2), torch.cat([apart(part) for part in x.chunk(2)])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together.state_dict(), apart.state_dict(), rtol=1e-12, atol=1e-12)
    # Not those of a whole batch.
    assert not torch.allclose(got, together(x), rtol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"clip_frames": 7}, "a video has 8 to 64 frames, not 7"),
        ({"clip_frames": 65}, "a video has 8 to 64 frames, not 65"),
        ({"image_size": 8}, "images are squares of 16, 32, 64, 128 pixels, not 8"),
        ({"image_size": 48}, "images are squares of 16, 32, 64, 128 pixels, not 48"),
        ({"image_size": 256}, "images are squares of 16, 32, 64, 128 pixels, not 256"),
    ],
    ids=str,
)
def test_other_sizes_are_refused(sizes, message):
    for network in (*PAIRS["video"], *PAIRS["frame"]):
        with pytest.raises(ValueError, match=message):
            network(WIDTH, **sizes)


@pytest.mark.parametrize("discriminator", [VideoDiscriminator, FramesDiscriminator])
def test_videos_of_other_sizes_than_the_discriminator_s_are_refused(discriminator):
    _, network = networks(8, 32, discriminator=discriminator)
    for frames, image_size in ((16, 32), (8, 64)):
        with pytest.raises(ValueError, match=r"takes videos \['N', 2, 8, 32, 32\] and got"):
            network(videos(2, frames, image_size).float())


def test_the_defaults_are_the_paper_s():
    assert (FRAMES, IMAGE_SIZE) == (16, 64)
    generator, discriminator = VideoGenerator(), VideoDiscriminator()
    assert sum(parameter.numel() for parameter in generator.parameters()) == 4_449_159
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 11_033_281


def test_of_the_paper_s_size_networks_are_the_reference_s(device):
    generator, discriminator = (network.double().to(device) for network in networks(16, 64))
    plain = [reference.Generator(WIDTH, LATENT, 2), reference.Discriminator(WIDTH, 2)]
    for mine, network in zip((generator, discriminator), plain, strict=True):
        network.double().to(device).load_state_dict(mine.state_dict())
    z = latents(3, device)
    made, expected = generator(z), plain[0](z)
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(discriminator(made), plain[1](expected), rtol=1e-9, atol=1e-10)


def test_images_are_doubled_from_4_pixels_on():
    for image_size in IMAGE_SIZES:
        assert 4 * 2 ** doublings(image_size) == image_size


def test_scaled_channels_are_rounded_and_at_least_one():
    assert [scaled(64, width) for width in (1, 0.5, 0.02, 1e-6, 2)] == [64, 32, 1, 1, 128]


def test_sizes_at_and_within_the_limits_are_accepted():
    for frames, image_size in product((8, 17, 64), IMAGE_SIZES):
        check_sizes(frames, image_size)
