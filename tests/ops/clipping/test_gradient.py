"""The gradient of singular value clipping, and the operation under torch.compile."""

import pytest
import torch
from support.spectra import SPECTRA, relative_error, with_spectrum

from tgan_fast.ops import singular_value_clip, singular_value_clip_

# In units of the threshold, without any so close to it that a finite difference crosses it.
COINCIDING = {
    "distinct": [3.0, 2.0, 0.5, 0.1],
    "pairs": [3.0, 3.0, 0.5, 0.5],
    "equal-above": [1.5] * 4,
    "equal-below": [0.5] * 4,
    "rank-one": [2.0, 0.0, 0.0, 0.0],
    "zero": [0.0] * 4,
    "steep": [1e4, 1.2, 0.9, 0.0],
}


def by_svd(weight, threshold):
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return (u * s.clamp(max=threshold)) @ vh


def gradient_of(function, weight, dy):
    weight = weight.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(weight), weight, dy)
    return gradient


@pytest.mark.parametrize("s", COINCIDING.values(), ids=COINCIDING)
def test_it_is_the_derivative_also_where_singular_values_coincide(s):
    for columns in (4, 7):
        for weight in (with_spectrum(torch.tensor(s), columns), with_spectrum(torch.tensor(s), columns).mT):
            assert torch.autograd.gradcheck(singular_value_clip, weight.detach().clone().requires_grad_(), atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "trained", "top-30", "top-1000", "geometric-1000"])
def test_it_agrees_with_the_svd_where_that_has_a_derivative(name, device):
    for threshold in (1.0, 1e-6):
        weight = (threshold * with_spectrum(SPECTRA[name]())).to(device)
        dy = torch.randn_like(weight)
        expected = gradient_of(lambda w, t=threshold: by_svd(w, t), weight, dy).cpu()
        got = gradient_of(lambda w, t=threshold: singular_value_clip(w, t), weight, dy)
        # The SVD's own formula divides by differences of squares of singular values, some of which are 1e-5.
        assert relative_error(got, expected) <= 1e-9, threshold


def test_it_is_finite_where_that_of_the_svd_is_not():
    weight, dy = torch.eye(5, dtype=torch.float64) * 1.5, torch.randn(5, 5, dtype=torch.float64)
    assert not gradient_of(lambda w: by_svd(w, 1.0), weight, dy).isfinite().all()
    # Of 1.5·I: the antisymmetric part turns the matrix and is kept by t/σ, the symmetric part would lengthen it.
    torch.testing.assert_close(gradient_of(singular_value_clip, weight, dy), (dy - dy.mT) / 2 / 1.5)


@pytest.mark.parametrize("accuracy", ["exact", "fast"])
def test_lower_precision_is_rounded_once(accuracy, device):
    for name in ("gaussian", "all-equal", "rank-deficient", "top-30"):
        weight = with_spectrum(SPECTRA[name]())
        for dtype in (torch.float32, torch.bfloat16):
            rounded, dy = weight.to(device, dtype), torch.randn_like(weight).to(device, dtype)
            got = gradient_of(lambda w: singular_value_clip(w, accuracy=accuracy), rounded, dy)
            assert got.dtype == dtype
            expected = gradient_of(singular_value_clip, rounded.double(), dy.double()).cpu()
            # Singular values near the threshold, where the gradient jumps, are few.
            error = torch.finfo(dtype).eps if accuracy == "exact" else torch.finfo(dtype).eps + 2e-5
            assert relative_error(got, expected) <= error, (name, dtype)


def test_where_nothing_is_clipped_the_gradient_passes_unchanged():
    dy = torch.randn(6, 9)
    within, broken = 0.1 * torch.randn(6, 9), torch.full((6, 9), float("nan"))
    for weight in (within, broken, torch.zeros(6, 9)):
        assert torch.equal(gradient_of(singular_value_clip, weight, dy), dy)


def test_batches_and_other_rows_have_gradients():
    weight = torch.randn(2, 3, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: singular_value_clip(w, 1.5, batch_dims=1, out_dim=1), weight)
    row = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(singular_value_clip, row)
    assert torch.autograd.gradcheck(lambda w: singular_value_clip(w.expand(4, 6)), row)


def test_a_second_derivative_is_refused():
    weight = (3 * torch.randn(3, 4)).requires_grad_()
    (gradient,) = torch.autograd.grad(singular_value_clip(weight).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


@pytest.mark.slow
def test_compiled_with_its_gradient_in_one_graph(device):
    weight = (3 * torch.randn(4, 3, 5, device=device)).requires_grad_()

    def loss(weight):
        return (singular_value_clip(2 * weight, 1.5, batch_dims=1) * weight).sum()

    value = torch.compile(loss, fullgraph=True)(weight)
    torch.testing.assert_close(value, loss(weight))
    (got,) = torch.autograd.grad(value, weight)
    (expected,) = torch.autograd.grad(loss(weight), weight)
    torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match="accuracy must be 'exact' or 'fast', not 'fsat'"):
        torch.compile(lambda w: singular_value_clip(w, accuracy="fsat"), fullgraph=True)(weight)


@pytest.mark.slow
def test_compiled_in_place_with_copies_and_flag(device):
    def clip(weights, copies, flag):
        singular_value_clip_(weights, [1.0, 2.0, 1.0], copies=copies, non_finite=flag)
        return weights[1].sum()

    made = [
        3 * torch.randn(5, 6, device=device),
        3 * torch.randn(7, 3, 2, device=device),
        torch.full((2, 2), torch.nan),
    ]
    made[2] = made[2].to(device)
    results = []
    for function in (clip, torch.compile(clip, fullgraph=True)):
        weights = [torch.nn.Parameter(weight.to(device, copy=True)) for weight in made]
        copies = [None, torch.zeros(7, 3, 2, dtype=torch.bfloat16, device=device), None]
        flag = torch.zeros((), dtype=torch.int32, device=device)
        total = function(weights, copies, flag)
        assert flag.item() == 1
        assert torch.equal(copies[1], weights[1].bfloat16())
        results.append((total.detach(), *(weight.detach() for weight in weights)))
    torch.testing.assert_close(*results, equal_nan=True)
