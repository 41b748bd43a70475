"""Latents have their documented distributions, and so do the latents interpolated between them."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tgan_fast import VideoGenerator
from tgan_fast.models.latents import LATENTS
from tgan_fast.models.sampling import draw_inputs, draw_labels, draw_latents

COUNT, DIM = 500, 40
# A sample from the right distribution is below this once in a thousand draws, and these draws have fixed seeds.
SIGNIFICANCE = 1e-3
EXPECTED = {"uniform": stats.uniform(-1, 2), "normal": stats.norm()}


def expected_within(name, limit):
    return stats.uniform(-limit, 2 * limit) if name == "uniform" else stats.truncnorm(-limit, limit)


def drawn(name, seed=0, **options):
    return draw_latents(COUNT, DIM, seed, distribution=LATENTS[name], **options)


def p_value(latents, distribution):
    return stats.kstest(latents.flatten().double().numpy(), distribution.cdf).pvalue


@pytest.mark.parametrize("name", LATENTS)
def test_latents_have_their_distribution(name):
    for seed in (0, 1, 2):
        latents = drawn(name, seed)
        assert latents.dtype == torch.float32
        assert latents.shape == (COUNT, DIM)
        assert p_value(latents, EXPECTED[name]) > SIGNIFICANCE, seed


@pytest.mark.parametrize("name", LATENTS)
def test_truncated_latents_have_the_distribution_of_those_within_the_limit(name):
    for limit in (0.01, 0.5, 0.9):
        latents = drawn(name, 3, truncation=limit)
        assert latents.dtype == torch.float32
        # As a number of float32, which may lie just beyond.
        assert latents.abs().max() <= np.float32(limit)
        assert latents.abs().max() > 0.99 * limit
        assert p_value(latents, expected_within(name, limit)) > SIGNIFICANCE, limit


@pytest.mark.parametrize("name", LATENTS)
def test_a_limit_that_hardly_anything_exceeds_changes_hardly_anything(name):
    latents, truncated = drawn(name), drawn(name, truncation=10.0)
    if name == "uniform":
        assert torch.equal(truncated, latents)
    else:
        torch.testing.assert_close(truncated, latents, rtol=1e-6, atol=1e-7)


def test_truncated_normal_latents_differ_from_clamped_and_from_scaled_ones():
    """The test of truncation can tell these apart."""
    latents, within = drawn("normal", 3), expected_within("normal", 1.5)
    assert p_value(LATENTS["normal"].truncated(latents, 1.5), within) > SIGNIFICANCE
    assert p_value(latents.clamp(-1.5, 1.5), within) < SIGNIFICANCE
    assert p_value(latents * (1.5 / latents.abs().max()), within) < SIGNIFICANCE


@pytest.mark.parametrize("name", LATENTS)
def test_truncation_keeps_signs_and_order(name):
    """A latent then stays recognizable at every limit."""
    latents, truncated = drawn(name).flatten(), drawn(name, truncation=0.7).flatten()
    assert torch.equal(truncated.sign(), latents.sign())
    assert (truncated[latents.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("name", LATENTS)
def test_extreme_latents_are_truncated_to_finite_ones(name, device):
    """More than 8 deviations away, where the distribution function is 1 even in float64."""
    latents = torch.tensor([[-40.0, -9.0, 0.0, 9.0, 40.0]], device=device)
    latents = latents / 40 if name == "uniform" else latents
    truncated = LATENTS[name].truncated(latents, 0.5)
    assert truncated.device == latents.device
    torch.testing.assert_close(truncated[0, [0, 2, 4]].cpu(), torch.tensor([-0.5, 0.0, 0.5]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", LATENTS)
def test_a_seed_is_a_draw(name):
    """The draw does not depend on other random numbers."""
    before = torch.get_rng_state()
    first = drawn(name, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(drawn(name, 5), first)
    assert not torch.equal(drawn(name, 6), first)
    # Fewer of them are the first ones.
    assert torch.equal(draw_latents(16, DIM, 5, distribution=LATENTS[name]), first[:16])


@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_they_are_drawn_where_they_lie(name, dtype, device):
    latents = torch.full((COUNT, DIM), math.nan, dtype=dtype, device=device)
    LATENTS[name].fill_(latents, torch.Generator(device).manual_seed(0))
    assert p_value(latents.cpu(), EXPECTED[name]) > SIGNIFICANCE


def ends(dtype=torch.float64, device="cpu", count=4):
    return torch.randn(2, count, DIM, dtype=dtype, device=device)


@pytest.mark.parametrize("name", LATENTS)
def test_ways_lead_from_their_beginnings_to_their_ends(name, device):
    begin, end = ends(device=device)
    share = torch.linspace(0, 1, 5, dtype=torch.float64, device=device)
    way = LATENTS[name].between(begin, end, share)
    assert way.shape == (4, 5, DIM)
    torch.testing.assert_close(way[:, 0], begin, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(way[:, -1], end, rtol=1e-14, atol=1e-14)
    back = LATENTS[name].between(end, begin, share)
    torch.testing.assert_close(back.flip(1), way, rtol=1e-12, atol=1e-12)


def test_ways_of_uniform_latents_are_straight():
    begin, end = ends()
    share = torch.tensor([0.0, 0.25, 0.6, 1.0], dtype=torch.float64)
    way = LATENTS["uniform"].between(begin, end, share)
    for index, part in enumerate(share):
        torch.testing.assert_close(way[:, index], begin + part * (end - begin), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ways_of_normal_latents_are_arcs_that_are_walked_evenly(dtype):
    begin, end = ends(dtype)
    radius = 3.0
    begin, end = (radius * torch.nn.functional.normalize(latents, dim=1) for latents in (begin, end))
    share = torch.linspace(0, 1, 9, dtype=dtype)
    way = LATENTS["normal"].between(begin, end, share)
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(way.norm(dim=2), torch.full((4, 9), radius, dtype=dtype), rtol=tolerance, atol=0)
    steps = way.diff(dim=1).norm(dim=2)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=10 * tolerance, atol=0)
    # And stay in the plane of both ends.
    matrices = torch.cat([begin.unsqueeze(1), way, end.unsqueeze(1)], 1)
    assert torch.linalg.svdvals(matrices.double())[:, 2].max() <= 10 * tolerance * radius


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LATENTS)
def test_a_way_from_a_latent_to_itself_stays_there(name, dtype):
    begin, _ = ends(dtype)
    share = torch.linspace(0, 1, 9, dtype=dtype)
    way = LATENTS[name].between(begin, begin.clone(), share)
    # An arc of a ten-thousandth is a straight line but for a hundred-millionth.
    torch.testing.assert_close(way, begin.unsqueeze(1).expand_as(way), rtol=3e-7, atol=1e-8)


@pytest.mark.parametrize("distance", [1e-7, 1e-5, 1e-3])
def test_ways_between_neighbors_lie_between_them(distance):
    """The cosine of the angle between neighbors rounds to 1 in float32."""
    begin, end = ends(torch.float32)
    end = begin + distance * end
    share = torch.linspace(0, 1, 9)
    way = LATENTS["normal"].between(begin, end, share)
    straight = torch.lerp(begin.double()[:, None], end.double()[:, None], share.double().view(1, -1, 1))
    torch.testing.assert_close(way.double(), straight, rtol=0, atol=1e-6 + distance**2)


def test_latents_in_the_middle_of_normal_ways_are_normal_latents():
    begin, end = drawn("normal", 7), drawn("normal", 8)
    share = torch.tensor([0.5])
    p = p_value(LATENTS["normal"].between(begin, end, share), EXPECTED["normal"])
    # Straight ones are too short by a third.
    straight = p_value(LATENTS["uniform"].between(begin, end, share), EXPECTED["normal"])
    assert straight < SIGNIFICANCE < p


CLASSES = 5


def small_generator(classes, latent="uniform"):
    return VideoGenerator(0.03125, 6, clip_frames=8, image_size=16, classes=classes, latent=latent)


@pytest.mark.parametrize("seed", [0, 1])
def test_labels_are_all_classes_about_equally_often(seed):
    generator = small_generator(CLASSES)
    labels = draw_labels(generator, 2000, seed)
    assert labels.dtype == torch.int64
    assert stats.chisquare(torch.bincount(labels, minlength=CLASSES).numpy()).pvalue > SIGNIFICANCE
    assert len(torch.bincount(labels)) == CLASSES
    assert torch.equal(draw_labels(generator, 2000, seed), labels)
    assert not torch.equal(draw_labels(generator, 2000, seed + 1), labels)


def test_there_are_no_labels_without_classes():
    assert draw_labels(small_generator(0), 10, 0) is None


@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_inputs_are_the_latents_of_the_generator_s_distribution_and_its_labels(name, classes):
    generator = small_generator(classes, name)
    inputs = draw_inputs(generator, 2000, seed=4)
    latents, one_hot = inputs.split([6, classes], 1)
    assert torch.equal(latents, draw_latents(2000, 6, 4, distribution=LATENTS[name]))
    assert p_value(latents, EXPECTED[name]) > SIGNIFICANCE
    if classes:
        assert torch.equal(one_hot.argmax(1), draw_labels(generator, 2000, 4))
        assert torch.equal(one_hot.sum(1), torch.ones(2000))
