"""Every backend of singular value clipping against a float64 SVD, on the spectra that break shortcuts."""

import math

import pytest
import torch
from support.spectra import (
    ROWS,
    SPECTRA,
    clipped_by_svd,
    cluster,
    exactly_clipped,
    gaussian,
    relative_error,
    topped,
    with_spectrum,
)

from tgan_fast.ops import BackendError, singular_value_clip, singular_value_clip_

BACKENDS = ["svd", "eigh", "gemm"]
GRAM_BACKENDS = ["eigh", "gemm"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# Largest singular values on both sides of the limits for `eigh` to use the Gram matrix (4 and 8192), and far beyond.
STEEP = [3.9, 10, 8000, 9000, 1e5, 1e7, 1e8, 1e9, 1e20, 1e37, 1e160]


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_float32_is_clipped_to_rounding_and_by_the_gram_matrix_better_than_by_an_svd(spectrum, device):
    for threshold in (1.0, 0.037, 20.0):
        weight = (threshold * with_spectrum(spectrum())).float().to(device)
        expected = clipped_by_svd(weight, threshold)
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        own = relative_error((u * s.clamp(max=threshold)) @ vh, expected)
        by_svd = relative_error(singular_value_clip(weight, threshold, backend="svd"), expected)
        assert by_svd <= 2 * own, threshold
        for backend in GRAM_BACKENDS:
            got = singular_value_clip(weight, threshold, backend=backend)
            assert relative_error(got, expected) <= 1e-7, (backend, threshold)
            assert relative_error(got, expected) < by_svd, (backend, threshold)
            assert torch.linalg.svdvals(got.double()).max() <= threshold * (1 + 2e-7), (backend, threshold)


@pytest.mark.parametrize("top", [1.001, 1.02, 1.1, 1.4, 1.6, 30, 1000])
@pytest.mark.parametrize("shape", [(8, 256), (96, 2048), (130, 2100), (2100, 130)], ids=str)
def test_wide_and_tall_weights_are_clipped_to_rounding_by_eigh(shape, top, device):
    rows, columns = min(shape), max(shape)
    for lowest in (0.0, 0.9):
        for threshold in (1.0, 1e-25, 1e25):
            s = torch.linspace(lowest, 1.02, rows).clamp(max=top)
            s[-1] = top
            weight = (threshold * with_spectrum(s, columns)).float().to(device)
            weight = weight.mT.contiguous() if shape[0] > shape[1] else weight
            for dtype, error in ((torch.float32, 1e-7), (torch.bfloat16, torch.finfo(torch.bfloat16).eps)):
                rounded = weight.to(dtype)
                got = singular_value_clip(rounded, threshold, backend="eigh").double() / threshold
                expected = clipped_by_svd(rounded, threshold) / threshold
                assert relative_error(got, expected) <= error, (lowest, threshold, dtype)
                if dtype == torch.float32:
                    assert torch.linalg.matrix_norm(got, ord=2) <= 1 + 2e-7, (lowest, threshold)


def of_equal_terms(rows, columns):
    """Yield weights whose products round in one direction, so that float32 would be off by much more than rounding."""
    signs = torch.randn(rows, columns).sign()
    row = torch.randn(1, columns)
    partly = gaussian(rows, columns, top=1)
    partly[:4] = 1.3 / (4 * columns) ** 0.5
    for weight in (torch.ones(rows, columns), signs, row.expand(rows, columns), torch.rand(rows, columns)):
        yield 1.4 * weight / torch.linalg.matrix_norm(weight.double(), ord=2).float()
    yield partly


@pytest.mark.parametrize("shape", [(6, 4096), (64, 1024), (128, 4096)], ids=str)
def test_equal_terms_do_not_add_up_their_rounding(shape, device):
    for i, weight in enumerate(of_equal_terms(*shape)):
        got = singular_value_clip(weight.to(device), backend="eigh")
        assert relative_error(got, clipped_by_svd(weight, 1.0)) <= 1e-7, i
        assert torch.linalg.matrix_norm(got.double(), ord=2) <= 1 + 2e-7, i


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_clips_float64(backend, device):
    for name, spectrum in SPECTRA.items():
        weight = with_spectrum(spectrum())
        got = singular_value_clip(weight.to(device), backend=backend)
        top = spectrum().max().item()
        # The Gram matrix squares the condition number, so its backends lose float64 rounding times the largest σ
        # squared; the iterations of `gemm` also lose some digits of singular values near the threshold.
        bounds = {"svd": 1e-13 + 1e-14 * top, "eigh": 1e-14 + 1e-15 * top**2, "gemm": 1e-9 + 1e-14 * top**2}
        assert relative_error(got, clipped_by_svd(weight, 1.0)) <= bounds[backend], name


def largest(weight):
    return torch.linalg.svdvals(weight.double().flatten(1))[0].item()


def steep(dtype, device, rows=ROWS, columns=None):
    """Yield each number of `STEEP` that the dtype can hold, with a weight whose largest singular value it is.

    All others lie around 1, where rounding of the Gram matrix decides whether they are clipped.
    """
    for top in STEEP:
        s = cluster(1e-3)[:rows]
        s[0] = top
        weight = with_spectrum(s, columns or 2 * rows).to(device, dtype)
        if weight.isfinite().all():
            yield top, weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["svd", "eigh"])
def test_the_bound_holds_however_large_a_singular_value_is(backend, dtype, device):
    # Relative rounding u of the entries makes an error with a Frobenius norm of at most u·√rows. The rounding of the
    # SVD, 8·√rows·eps of the compute dtype, or of the Gram matrix, 2·2⁻⁵²·8192², comes on top.
    computed = 8 * ROWS**0.5 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    in_float64 = max(2 * 2**-52 * (4 if dtype == torch.float64 else 8192) ** 2, 8 * ROWS**0.5 * 2**-52)
    excess = torch.finfo(dtype).eps / 2 * ROWS**0.5 + (computed if backend == "svd" else in_float64)
    for top, weight in steep(dtype, device):
        assert largest(singular_value_clip(weight, backend=backend)) <= 1 + excess, top


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_error_is_rounding_of_the_largest_singular_value_in_float64(dtype):
    limit = 4 if dtype == torch.float64 else 8192
    rounding = torch.finfo(dtype).eps / 2 * 6**0.5
    for top, weight in steep(dtype, "cpu", rows=6, columns=9):
        got = singular_value_clip(weight, backend="eigh")
        blur = 2 * top**2 if top < limit else 8 * top
        assert (got.double() - exactly_clipped(weight, 1.0)).norm() <= rounding + 2**-52 * (blur + 8), top


def test_auto_is_the_backend_whose_bound_always_holds_on_a_cpu():
    weight = with_spectrum(torch.tensor([1e8, *[0.5] * 19])).float()
    assert torch.equal(singular_value_clip(weight), singular_value_clip(weight, backend="eigh"))
    assert largest(singular_value_clip(weight)) <= 1 + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["svd", "eigh"])
def test_the_largest_and_the_smallest_finite_numbers_are_clipped(backend, dtype, device):
    flag = torch.zeros((), dtype=torch.int32, device=device)
    signs = torch.randn(5, 9, device=device).sign().to(dtype)
    weight = torch.finfo(dtype).max * signs
    singular_value_clip_(weight, non_finite=flag, backend=backend)
    assert flag.item() == 0
    assert largest(weight) <= 1 + 4 * torch.finfo(dtype).eps
    # Scaled, because some draws of signs have a singular value below 1.
    assert relative_error(weight, clipped_by_svd(2.0**20 * signs.double(), 1.0)) <= 4 * torch.finfo(dtype).eps
    if dtype == torch.float64:
        return  # below the range of thresholds
    smallest = torch.finfo(dtype).smallest_normal
    weight = torch.full((5, 9), smallest, dtype=dtype, device=device)
    singular_value_clip_(weight, 3 * smallest, backend=backend)
    # Of rank one, so that every entry is t/√45, rounded to a multiple of the smallest number above 0.
    step = smallest * torch.finfo(dtype).eps
    expected = torch.full((5, 9), 3 * smallest / 45**0.5, dtype=torch.float64, device=device)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=0.51 * step)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gemm_is_right_to_a_millionth_up_to_a_thousand_times_the_threshold(dtype, device):
    rounding = torch.finfo(dtype).eps / 2 * ROWS**0.5
    for count in (1, ROWS // 2, ROWS):
        weight = with_spectrum(torch.cat([torch.full((count,), 1000.0), cluster(1e-3)[count:]])).to(device, dtype)
        got = singular_value_clip(weight, backend="gemm")
        assert largest(got) <= 1 + 1e-6 + rounding, count
        difference = got.double().cpu() - clipped_by_svd(weight, 1.0)
        assert torch.linalg.matrix_norm(difference, ord=2) <= 1e-6 + rounding, count


@pytest.mark.parametrize("count", [1, ROWS])
def test_gemm_lowers_larger_singular_values_a_thousandfold_a_call(count, device):
    for top in (1e4, 1e8, 1e20, 1e37, 1e149):
        weight = with_spectrum(torch.cat([torch.full((count,), top, dtype=torch.float64), cluster(1e-3)[count:]]))
        weight = weight.to(device)
        for _ in range(math.ceil(math.log(top, 1000)) + 1):
            bound = max(1, largest(weight) / 1000)
            singular_value_clip_(weight, backend="gemm")
            assert largest(weight) <= bound * (1 + 1e-6), top
        assert largest(weight) <= 1 + 1e-6, top


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_within_the_threshold_stay_bit_for_bit(backend, device):
    for dtype in (torch.float32, torch.float64):
        for columns in (160, 20 * ROWS):  # the second is wide enough for a Gram matrix of float32 products
            weight = with_spectrum(0.999 * torch.rand(ROWS), columns).to(device, dtype)
            assert torch.equal(singular_value_clip(weight, backend=backend), weight), dtype
        zero = torch.zeros_like(weight)
        assert torch.equal(singular_value_clip(zero, backend=backend), zero), dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_twice_changes_nothing_beyond_rounding(backend, device):
    once = singular_value_clip(with_spectrum(topped(30)).float().to(device), backend=backend)
    twice = singular_value_clip(once, backend=backend)
    assert relative_error(twice, once.double().cpu()) <= (1e-5 if backend == "svd" else 1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes(backend, device):
    for shape in [(3, 200), (200, 3), (1, 50), (50, 1), (1, 1), (7, 7), (5, 3, 4, 4), (6, 2, 3, 3, 3), (40,)]:
        weight = 3 * torch.randn(shape, device=device)
        got = singular_value_clip(weight, backend=backend)
        assert got.shape == weight.shape
        matrix = weight if weight.dim() > 1 else weight[None]
        assert relative_error(got.reshape(matrix.shape), clipped_by_svd(matrix, 1.0)) <= 2e-6, shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_rounded_once(backend, device):
    for dtype in (torch.float16, torch.bfloat16):
        weight = with_spectrum(topped(10)).to(device, dtype)
        got = singular_value_clip(weight, backend=backend)
        assert got.dtype == dtype
        assert relative_error(got, clipped_by_svd(weight, 1.0)) <= torch.finfo(dtype).eps, dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_clipped_in_place_whatever_its_layout(backend, device):
    channels_last = torch.randn(8, 3, 4, 4, device=device).to(memory_format=torch.channels_last)
    transposed = torch.randn(20, 10, device=device).mT
    every_second = torch.randn(10, 40, device=device)[:, ::2]
    weights = [channels_last, transposed, every_second]
    expected = [clipped_by_svd(weight, 0.5) for weight in weights]
    addresses = [weight.data_ptr() for weight in weights]
    singular_value_clip_(weights, 0.5, backend=backend)
    assert [weight.data_ptr() for weight in weights] == addresses
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    for got, wanted in zip(weights, expected, strict=True):
        assert relative_error(got, wanted) <= 2e-6


def test_parameters_are_clipped_without_touching_their_graph(device):
    weight = torch.nn.Parameter(3 * torch.randn(4, 9, device=device))
    singular_value_clip_([weight])
    assert weight.requires_grad
    assert weight.grad_fn is None


def test_an_empty_list_is_nothing_to_do():
    singular_value_clip_([])


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_finite_weights_are_left_alone_and_the_others_clipped(backend, device):
    for value in (float("nan"), float("inf")):
        broken, sound = torch.randn(4, 9, device=device) * 3, torch.randn(4, 9, device=device) * 3
        broken[1, 2] = value
        before = broken.clone()
        singular_value_clip_([broken, sound], backend=backend)
        torch.testing.assert_close(broken, before, rtol=0, atol=0, equal_nan=True)
        assert torch.linalg.svdvals(sound).max() <= 1 + 1e-5, value


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_a_non_finite_weight_is_reported_and_stays_reported(backend, device):
    flag = torch.zeros((), dtype=torch.int32, device=device)
    sound, broken = torch.randn(4, 9, device=device), torch.full((4, 9), float("inf"), device=device)
    for weights, expected in (([sound], 0), ([sound, broken, sound], 1), ([sound], 1)):
        singular_value_clip_(weights, non_finite=flag, backend=backend)
        assert flag.item() == expected


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_copies_hold_the_rounded_weights(backend, device):
    weights = [3 * torch.randn(4, 9, device=device), torch.randn(3, 2, device=device), torch.eye(2, device=device)]
    copies = [torch.full_like(weights[0], float("nan"), dtype=torch.bfloat16), None, torch.empty_like(weights[2])]
    singular_value_clip_(weights, copies=copies, backend=backend)
    assert torch.equal(copies[0], weights[0].bfloat16())
    assert torch.equal(copies[2], weights[2])


@pytest.mark.parametrize(
    ("weight", "threshold", "message"),
    [
        (torch.ones(2, 2, dtype=torch.int32), 1.0, "must be float64, float32, float16 or bfloat16"),
        (torch.tensor(1.0), 1.0, "needs a matrix"),
        (torch.ones(0, 3), 1.0, "needs a matrix"),
        *((torch.ones(2, 2), t, "must be a number from 1.18e-38 to 3.4e") for t in (0.0, -1.0, float("nan"))),
        *(
            (torch.ones(2, 2), t, "max_singular_value must be a number")
            for t in (1e-320, 1e-170, 1e-39, 1e39, 1e160, 1e308, float("inf"))
        ),
    ],
)
def test_bad_input_is_named_before_any_weight_changes(weight, threshold, message):
    first = torch.full((2, 2), 5.0)
    with pytest.raises(ValueError, match=message):
        singular_value_clip_([first, weight], threshold)
    assert torch.equal(first, torch.full((2, 2), 5.0))


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_thresholds_of_the_whole_range_of_float32_are_obeyed(backend, device):
    for threshold in (1.2e-38, 1e-30, 1e30, 3.4e38):
        weight = threshold * with_spectrum(topped(10))
        got = singular_value_clip(weight.to(device), threshold, backend=backend)
        assert relative_error(got / threshold, clipped_by_svd(weight / threshold, 1.0)) <= 1e-9, threshold
        untouched = weight.to(device) / 20
        assert torch.equal(singular_value_clip(untouched, threshold, backend=backend), untouched), threshold


def test_a_backend_asked_for_by_name_never_falls_back():
    with pytest.raises(BackendError, match="cuda"):
        singular_value_clip(torch.ones(2, 2), backend="cuda")
    with pytest.raises(ValueError, match="choose auto, svd, eigh, gemm, cuda, cuda-float64"):
        singular_value_clip(torch.ones(2, 2), backend="magma")
    with pytest.raises(ValueError, match=r"no backend \['svd'\]: choose auto"):
        singular_value_clip(torch.ones(2, 2), backend=["svd"])


def test_auto_is_available_everywhere(device):
    weight = 3 * torch.randn(4, 9, device=device)
    assert relative_error(singular_value_clip(weight), clipped_by_svd(weight, 1.0)) <= 1e-7


@pytest.mark.parametrize("largest", [1 + 1e-6, 1.001, 1.005, 1.2], ids=str)
@pytest.mark.parametrize("shape", [(128, 2048), (256, 4096), (40, 90)], ids=str)
def test_equal_entries_are_clipped_to_rounding(shape, largest):
    """Their rounding errors add up, and the largest singular value may be just above the threshold."""
    for weight in (torch.ones(shape), torch.ones(shape) + 0.01 * torch.randn(shape), torch.rand(shape)):
        weight = weight * (largest / torch.linalg.matrix_norm(weight.double(), 2)).float()
        clipped = singular_value_clip(weight).double()
        assert abs(torch.linalg.matrix_norm(clipped, 2).item() - 1) <= 2e-7


@pytest.mark.slow
def test_matrices_beyond_the_kernels_are_clipped_as_exactly(device):
    """Here the host reads the norm for `gemm`, which then has fewer polynomials, or nothing to do."""
    weight = gaussian(1100, 1030)
    expected = clipped_by_svd(weight, 1.0)
    weight = weight.to(device)
    for backend in GRAM_BACKENDS:
        for accuracy, error in (("exact", 1e-7), ("fast", 2e-6)):
            got = singular_value_clip(weight, accuracy=accuracy, backend=backend)
            assert relative_error(got, expected) <= error, (backend, accuracy)
            within = 0.6 * weight
            assert torch.equal(singular_value_clip(within, accuracy=accuracy, backend=backend), within)
    steep = weight.clone()
    steep[0] *= 300
    got = singular_value_clip(steep, backend="gemm")
    assert relative_error(got, singular_value_clip(steep, backend="eigh").double().cpu()) <= 1e-6
