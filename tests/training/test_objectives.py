"""The losses against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from tgan_fast.training.objectives import Hinge, LeastSquares, Vanilla, Wasserstein
from tgan_fast.training.registry import REGISTRY, lookup


@pytest.fixture
def scores():
    return torch.randn(2, 7, dtype=torch.float64) * 50


def test_wasserstein(scores):
    real, fake = scores
    assert Wasserstein().discriminator(real, fake) == fake.mean() - real.mean()
    assert Wasserstein().generator(fake) == -fake.mean()


def test_hinge_is_the_margin_loss_of_both(scores):
    real, fake = scores / 25
    ones = torch.ones_like(real)
    # hinge_embedding_loss with the target −1 is max(0, margin − x).
    expected = F.hinge_embedding_loss(real, -ones) + F.hinge_embedding_loss(-fake, -ones)
    torch.testing.assert_close(Hinge().discriminator(real, fake), expected)
    assert Hinge().generator(fake) == -fake.mean()


def test_vanilla_is_cross_entropy(scores):
    real, fake = scores
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    expected = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)
    torch.testing.assert_close(Vanilla().discriminator(real, fake), expected)
    torch.testing.assert_close(Vanilla().generator(fake), F.binary_cross_entropy_with_logits(fake, ones))


def test_least_squares(scores):
    real, fake = scores
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    expected = (F.mse_loss(real, ones) + F.mse_loss(fake, zeros)) / 2
    torch.testing.assert_close(LeastSquares().discriminator(real, fake), expected)
    torch.testing.assert_close(LeastSquares().generator(fake), F.mse_loss(fake, ones) / 2)


@pytest.mark.parametrize("name", REGISTRY["objective"])
def test_each_wants_high_scores_of_what_is_real_and_the_generator_of_fakes(name, scores):
    objective, (real, fake) = lookup("objective", name)(), (scores / 500).requires_grad_().unbind()
    of_real, of_fake = torch.autograd.grad(objective.discriminator(real, fake), [real, fake])
    (of_generator,) = torch.autograd.grad(objective.generator(fake), fake)
    assert (of_real < 0).all()
    assert (of_fake > 0).all() or name == "lsgan"
    assert (of_generator < 0).all()
    # Within its margin, the hinge loss is linear too.
    assert objective.opposite == torch.equal(of_generator, -of_fake) or name == "hinge"
