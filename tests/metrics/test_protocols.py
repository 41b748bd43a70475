"""Preprocessing of each protocol, step by step in float64, with the mean file's layout."""

import numpy as np
import pytest
import torch
from support.c3d_weights import random_mean

from tgan_fast.errors import InputError
from tgan_fast.metrics.protocols import PROTOCOLS, check_size
from tgan_fast.pixels import to_clips, to_videos

MEAN = random_mean()


def cubic_weights(size, target):
    """Matrix [target, size] of OpenCV's INTER_CUBIC: half-pixel centers, a = -0.75, edges repeated."""

    def kernel(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    weights = np.zeros((target, size))
    for row in range(target):
        center = (row + 0.5) * size / target - 0.5
        for tap in range(int(np.floor(center)) - 1, int(np.floor(center)) + 3):
            weights[row, min(max(tap, 0), size - 1)] += kernel(center - tap)
    return weights


def linear_weights(size, target):
    """Matrix [target, size] of Chainer's resize_images: corners are aligned."""
    weights = np.zeros((target, size))
    for row in range(target):
        place = row * (size - 1) / (target - 1)
        before = int(place)
        weights[row, before] += 1 - (place - before)
        weights[row, min(before + 1, size - 1)] += place - before
    return weights


def resized(frames, weights):
    """[..., H, W] → [..., target, target]."""
    return np.einsum("ih,jw,...hw->...ij", weights, weights, frames, optimize=True)


def tgan_step_by_step(video):
    """[3, 16, 64, 64] in [-1, 1]."""
    levels = video.astype(np.float64) * 128 + 128
    large = resized(levels, cubic_weights(64, 128))
    blue_first = large[::-1]
    minus_mean = blue_first - MEAN.astype(np.float64)[:, :, :, 21:149]
    return minus_mean[:, :, 8:120, 8:120]


def tgan2_step_by_step(video):
    levels = video.astype(np.float64)[::-1] * 128
    large = resized(levels, linear_weights(64, 112))
    return large + (128 - MEAN.astype(np.float64)[:, :, 8:120, 8:120])


STEP_BY_STEP = {"tgan": tgan_step_by_step, "tgan2": tgan2_step_by_step}


@pytest.mark.parametrize("name", STEP_BY_STEP)
def test_c3ds_input_is_that_of_the_authors_code(name):
    videos = torch.rand(2, 3, 16, 64, 64) * 2 - 1
    got = PROTOCOLS[name].prepare(videos, torch.from_numpy(MEAN)).numpy()
    expected = np.stack([STEP_BY_STEP[name](video) for video in videos.numpy()])
    assert got.shape == (2, 3, 16, 112, 112)
    # Places up to 63 are rounded to float32, in two directions, amid levels that differ by up to 255.
    assert np.abs(got - expected).max() < 2 * 63 * 2**-23 * 255


@pytest.mark.parametrize("name", STEP_BY_STEP)
def test_real_clips_arrive_with_their_own_levels(name):
    clips = torch.randint(256, (1, 16, 64, 64, 3), dtype=torch.uint8)
    videos = PROTOCOLS[name].scaled(clips)
    assert videos.shape == (1, 3, 16, 64, 64)
    assert torch.equal(videos.permute(0, 2, 3, 4, 1) * 128 + 128, clips.float())


def test_the_plain_protocol_shows_videos_as_training_sees_them():
    clips = torch.randint(256, (2, 16, 64, 64, 1), dtype=torch.uint8)
    videos = PROTOCOLS["plain"].scaled(clips)
    assert torch.equal(videos, to_videos(clips))
    assert PROTOCOLS["plain"].prepare(videos, None) is videos
    assert torch.equal(to_clips(videos), clips)


def test_the_numbers_are_those_of_the_papers_codes():
    table = {
        name: (protocol.samples, protocol.runs, protocol.splits, protocol.epsilon, protocol.layer)
        for name, protocol in PROTOCOLS.items()
    }
    assert table["tgan"] == (9984, 4, 1, 1e-7, "fc7")
    assert table["tgan2"] == (2048, 10, 1, 1e-20, "fc7")


@pytest.mark.parametrize(("frames", "size"), [(8, 32), (16, 16), (40, 128), (16, 64)])
def test_classifiers_of_this_package_see_videos_of_all_sizes_as_16_frames_of_64(frames, size):
    # Frames of one level each, at a place that is 1 in the left half.
    levels = torch.linspace(-1, 0.5, frames)
    videos = levels.view(1, 1, frames, 1, 1).expand(2, 1, frames, size, size).clone()
    videos[..., : size // 2] += 0.25
    got = PROTOCOLS["plain"].prepare(videos, None)
    assert got.shape == (2, 1, 16, 64, 64)
    expected = levels[[frame * frames // 16 for frame in range(16)]]
    # Within four pixels of the step, levels are mixed.
    left, right = got[..., :28], got[..., 36:]
    torch.testing.assert_close(left, (expected + 0.25).view(16, 1, 1).expand_as(left), rtol=0, atol=1e-6)
    torch.testing.assert_close(right, expected.view(16, 1, 1).expand_as(right), rtol=0, atol=1e-6)
    assert size != 64 or frames != 16 or got is videos


@pytest.mark.parametrize("name", [*STEP_BY_STEP, None])
def test_the_papers_classifiers_take_one_size_alone(name):
    protocol = None if name is None else PROTOCOLS[name]
    check_size(16, 64, protocol)
    with pytest.raises(InputError, match="needs videos of 16 frames of 64×64 pixels, but these have 8 of 32×32"):
        check_size(8, 32, protocol)
    check_size(8, 32, PROTOCOLS["plain"])
