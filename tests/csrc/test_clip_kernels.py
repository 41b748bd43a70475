"""Tests of the CUDA kernels of singular value clipping against a float64 SVD, on the CPU (cuda_on_host.h) and a GPU."""

import contextlib
import ctypes
import importlib.machinery
import importlib.util
from itertools import cycle
from pathlib import Path
from unittest import mock

import pytest
import torch
from emulator.host_build import build
from support.spectra import SPECTRA, TGAN, clipped_by_svd, gaussian, relative_error, topped, with_spectrum

from benchmarks.clipping_costs import operations_of_program
from benchmarks.spectra import trained
from tgan_fast.ops import singular_value_clip
from tgan_fast.ops.clipping import cuda as singular_value_clip_cuda
from tgan_fast.ops.clipping.constrain import clamp_batch_norm_scale_
from tgan_fast.ops.dispatch import BackendError

CSRC = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
SOURCES = [CSRC / "singular_value_clip.cu", CSRC / "bindings.cpp"]
SQRT = 3e-7  # PyTorch's square root on CPUs is not always the nearest number
H100, CONSUMER = 232448, 101376  # bytes of shared memory that a block may have


class HostDevice:
    """Extension built for the CPU, in place of the one for GPUs."""

    def __init__(self, path):
        name = f"{path.stem}._cuda"  # pybind11 takes two modules of one name for the same
        loader = importlib.machinery.ExtensionFileLoader(name, str(path))
        self.module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
        loader.exec_module(self.module)
        self.library = ctypes.CDLL(str(path))

    def configure(self, multiprocessors=4, shared_bytes=H100, blocks=1, seed=0):
        self.device = self.library.configure_host_device(multiprocessors, shared_bytes, blocks, seed)

    def clip(self, weights, thresholds=None, *, copies=None, scales=(), running_vars=(), lowest=0.01, **options):
        """Clip in place, and return whether a weight was reported as not finite."""
        non_finite = torch.zeros((), dtype=torch.int32)
        gpu = {"device": self.device, "stream": 0}
        guard = Workspace()
        with mock.patch.multiple(
            singular_value_clip_cuda,
            _current_gpu=lambda device: contextlib.nullcontext(gpu),
            _workspace=lambda device, size: guard.of_size(size),
        ):
            singular_value_clip_cuda.launch(
                weights,
                thresholds or [1.0] * len(weights),
                copies=copies,
                non_finite=non_finite,
                scales=scales,
                running_vars=running_vars,
                lowest=lowest,
                **options,
            )
        guard.check()
        self.arrivals = guard.arrivals()
        return bool(non_finite)


class Gpu:
    """Extension for GPUs. Tensors are copied there and back with all of the memory that they are views of."""

    def clip(self, weights, thresholds=None, *, copies=None, scales=(), running_vars=(), lowest=0.01, **options):
        bases = {}

        def there(tensor):
            if tensor is None:
                return None
            storage = tensor.untyped_storage()
            size = storage.nbytes() // tensor.element_size()
            base = tensor.as_strided((size,), (1,), 0)
            moved = bases.setdefault(storage.data_ptr(), (base, base.cuda()))[1]
            return moved.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

        non_finite = torch.zeros((), dtype=torch.int32, device="cuda")
        singular_value_clip_cuda.launch(
            [there(weight) for weight in weights],
            thresholds or [1.0] * len(weights),
            copies=None if copies is None else [there(copy) for copy in copies],
            non_finite=non_finite,
            scales=[there(scale) for scale in scales],
            running_vars=[there(variance) for variance in running_vars],
            lowest=lowest,
            **options,
        )
        for base, moved in bases.values():
            base.copy_(moved)
        return bool(non_finite)


class Workspace:
    """Memory full of NaN, between two borders that must not change."""

    BORDER = 64

    def of_size(self, size):
        self.memory = torch.full((size // 8 + 2 * self.BORDER,), float("nan"), dtype=torch.float64)
        self.borders = [self.memory[: self.BORDER], self.memory[len(self.memory) - self.BORDER :]]
        for border in self.borders:
            border.fill_(7.0)
        return self.memory[self.BORDER : len(self.memory) - self.BORDER].view(torch.uint8)

    def arrivals(self):
        """Return the number of arrivals of blocks at the iteration's barriers, with which the workspace begins."""
        return self.memory[self.BORDER :].view(torch.int32)[0].item()

    def check(self):
        assert all((border == 7.0).all() for border in self.borders)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    return tmp_path_factory.mktemp("csrc")


@pytest.fixture(scope="session")
def host_device(libraries):
    return HostDevice(build(SOURCES, libraries, python=True))


@pytest.fixture
def host(host_device, monkeypatch):
    host_device.configure()
    monkeypatch.setattr(singular_value_clip_cuda, "extension", lambda: host_device.module)
    return host_device


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request):
    return Gpu() if request.param == "gpu" else request.getfixturevalue("host")


def largest(weight):
    return torch.linalg.matrix_norm(weight.double().flatten(1), ord=2).item()


def assert_clipped(got, before, threshold=1.0, bound=1e-7):
    assert relative_error(got, clipped_by_svd(before, threshold)) <= bound, before.shape
    assert largest(got) <= threshold * (1 + 2 * bound), before.shape


# float32 rounding alone is 3e-8. At the edge of what the kernels tell from the threshold (kResolution in
# csrc/cuda/program.cuh) a singular value may stay 4.2e-8 too large.
THRESHOLDS = [1.0, 0.037, 20.0]  # in turns, because a threshold only divides the Gram matrix


@pytest.mark.parametrize("float64_only", [False, True], ids=["fixed-point", "float64"])
@pytest.mark.parametrize(("name", "threshold"), list(zip(SPECTRA, cycle(THRESHOLDS))), ids=str)
def test_every_spectrum_is_clipped_to_rounding(name, threshold, float64_only, kernels):
    before = (threshold * with_spectrum(SPECTRA[name]())).float()
    weight = before.clone()
    assert not kernels.clip([weight], [threshold], float64_only=float64_only)
    assert_clipped(weight, before, threshold, bound=8e-8)


@pytest.mark.parametrize(("top", "fixed"), [(4.0, True), (4.4, False)])
def test_fixed_point_ends_at_four_times_the_threshold(top, fixed, kernels):
    """The entries have so few bits that both kinds of arithmetic give the same Gram matrix, but not the same R."""
    weight = (with_spectrum(topped(top)) * 1024).round().float() / 1024
    results = [weight.clone(), weight.clone()]
    for result, float64_only in zip(results, (False, True), strict=True):
        kernels.clip([result], float64_only=float64_only)
    assert torch.equal(*results) != fixed


@pytest.mark.parametrize("make", [lambda: trained(64, 192), lambda: gaussian(70, 160), lambda: gaussian(1, 9, top=2)])
def test_the_number_of_barriers_is_the_predicted_one(make, host):
    host.configure(multiprocessors=1)
    weight = make()
    _, barriers = operations_of_program(weight)
    host.clip([weight])
    assert host.arrivals == barriers


def test_blocks_with_large_elements_are_multiplied_in_float64(kernels):
    """An element above 8·t makes one block of 64 rows and 1024 columns float32; the others stay in fixed point."""
    small, mixed = gaussian(130, 1100, top=3), gaussian(130, 1100, top=3)
    mixed[70, 1050] = 11
    small[70, 1050] = 3
    for before in (small, mixed):
        weight = before.clone()
        kernels.clip([weight])
        assert_clipped(weight, before)


def test_a_block_of_small_elements_has_a_unit_of_its_own(kernels):
    before = gaussian(70, 1200, top=2)
    before[:64, :1024] *= 1e-6
    before[64:] *= 1e3 / before[64:].norm()
    before[64:, 1024:] *= 1e-3
    weight = before.clone()
    kernels.clip([weight])
    assert_clipped(weight, before)


@pytest.mark.parametrize(("factor", "bound"), [(1.5, 2e-7), (3, 2e-6)])
def test_equal_entries(factor, bound, kernels):
    """Rounding errors that are all alike add up; LAPACK's SVD in float32 is off by 2e-4."""
    before = torch.full((300, 2000), factor / 600_000**0.5)
    weight = before.clone()
    kernels.clip([weight])
    assert_clipped(weight, before, bound=bound)
    weight = before.clone()
    kernels.clip([weight], float64_only=True)
    assert_clipped(weight, before)


# Around the sizes of tiles (32, 64), of the kernels' depth (64) and of the Gram kernel's parts of the columns (1024).
SHAPES = [
    *[(1, 1), (1, 50), (50, 1), (2, 2), (3, 200), (200, 3), (7, 7), (31, 33), (32, 64), (33, 65), (63, 64), (64, 63)],
    *[(64, 64), (65, 129), (128, 128), (129, 130), (40, 1023), (40, 1024), (40, 1025), (5, 4100), (4100, 5), (1, 4097)],
]


def test_shapes(kernels):
    for shape in SHAPES:
        before = gaussian(*shape, top=2)
        weight = before.clone()
        kernels.clip([weight])
        assert_clipped(weight, before)


def channels_last(*shape):
    return torch.randn(*shape).to(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)])


LAYOUTS = {
    "vector": lambda: torch.randn(40),
    "every-third-of-a-vector": lambda: torch.randn(120)[::3],
    "conv2d": lambda: torch.randn(5, 3, 4, 4),
    "conv3d": lambda: torch.randn(6, 2, 3, 3, 3),
    "conv2d-channels-last": lambda: channels_last(5, 3, 4, 4),
    "conv3d-channels-last": lambda: channels_last(6, 4, 3, 3, 3),
    "transposed": lambda: torch.randn(30, 9).mT,
    "transposed-tall": lambda: torch.randn(9, 80).mT,
    "rows-of-a-wider-one": lambda: torch.randn(20, 90)[:, 8:72],
    "rows-not-aligned": lambda: torch.randn(20, 91)[:, 1:70],
    "every-other-row": lambda: torch.randn(40, 72)[::2],
    "every-other-column": lambda: torch.randn(20, 144)[:, ::2],
    "middle-dimension-sliced": lambda: torch.randn(6, 8, 5)[:, 2:6],  # no constant stride in a row
    "one-element-off": lambda: torch.randn(20 * 64 + 1)[1:].view(20, 64),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_and_dtypes(make, kernels):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight = make()
        base = torch.full((weight.untyped_storage().nbytes() // 4,), 7.0, dtype=dtype)
        weight_view = base.as_strided(weight.shape, weight.stride(), weight.storage_offset())
        weight_view.copy_(weight)
        before = weight_view.clone()
        kernels.clip([weight_view])
        matrix, expected = (t.double().reshape(t.shape[0] if t.dim() > 1 else 1, -1) for t in (weight_view, before))
        expected = clipped_by_svd(expected, 1.0)
        if dtype == torch.float32:
            assert relative_error(matrix, expected) <= 1e-7
        else:
            torch.testing.assert_close(matrix, expected.to(dtype).double(), rtol=torch.finfo(dtype).eps, atol=1e-6)
        # Nothing but the weight itself was written.
        weight_view.fill_(7.0)
        assert (base == 7.0).all(), dtype


def mixed_batch():
    shapes = [(64, 96), (70, 40), (1, 500), (40, 300), (3, 5), (66, 67), (1, 1)]
    return [gaussian(*shape, top=top) for shape, top in zip(shapes, [1.4, 3, 2, 0.5, 30, 1.01, 4], strict=True)]


def test_the_bits_depend_neither_on_the_order_of_threads_nor_on_the_number_of_multiprocessors(host):
    results = []
    for multiprocessors, seed in [(1, 0), (3, 1), (7, 2), (132, 3)]:
        host.configure(multiprocessors, seed=seed)
        torch.manual_seed(0)
        weights = mixed_batch()
        host.clip(weights)
        results.append(weights)
    for weights in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights, results[0], strict=True))


def test_the_bits_do_not_depend_on_the_rest_of_the_batch(kernels):
    together, alone = mixed_batch(), None
    alone = [weight.clone() for weight in together]
    kernels.clip(together)
    for weight in alone:
        kernels.clip([weight])
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_random_batches(host):
    for seed in range(5):
        torch.manual_seed(seed)
        host.configure(multiprocessors=seed + 1, seed=seed, shared_bytes=(H100, CONSUMER)[seed % 2])
        sizes = torch.randint(1, 90, (6, 2)).tolist()
        before = [gaussian(*size, top=float(4 * torch.rand(()))) for size in sizes]
        weights = [weight.clone() for weight in before]
        host.clip(weights)
        for weight, original in zip(weights, before, strict=True):
            assert_clipped(weight, original)


def test_more_weights_and_scales_than_one_launch_takes(kernels):
    thresholds = [0.5 + i for i in range(50)]
    before = [gaussian(3, 5 + i, top=2 * threshold) for i, threshold in enumerate(thresholds)]
    weights = [weight.clone() for weight in before]
    scales, running_vars = [torch.randn(3) for _ in range(30)], [torch.rand(3) for _ in range(30)]
    expected = [scale.clone() for scale in scales]
    clamp_batch_norm_scale_(expected, running_vars)
    kernels.clip(weights, thresholds, scales=scales, running_vars=running_vars)
    for weight, original, threshold in zip(weights, before, thresholds, strict=True):
        assert_clipped(weight, original, threshold)
    torch.testing.assert_close(scales, expected, rtol=SQRT, atol=0)


def test_every_weight_is_clipped_at_its_own_threshold(kernels):
    """The kernels take the largest weights first, not in the order of the list."""
    row, tall, within, wide = before = [
        gaussian(1, 500, top=200),
        gaussian(300, 40, top=3e-3),
        gaussian(70, 90, top=40),
        gaussian(66, 2060, top=3),
    ]
    weights = [weight.clone() for weight in before]
    kernels.clip(weights, [50.0, 1e-3, 50.0, 1.0])
    assert_clipped(weights[0], row, 50.0)
    assert_clipped(weights[1], tall, 1e-3)
    assert torch.equal(weights[2], within)
    assert_clipped(weights[3], wide, 1.0)


def test_the_same_weight_twice_is_clipped_once(kernels):
    before = gaussian(20, 30, top=3)
    weight = before.clone()
    copies = [torch.empty(20, 30, dtype=torch.bfloat16) for _ in range(2)]
    kernels.clip([weight, weight], copies=copies)
    assert_clipped(weight, before)
    assert all(torch.equal(copy, weight.bfloat16()) for copy in copies)


def test_narrow_strips_where_shared_memory_is_small(host):
    host.configure(shared_bytes=CONSUMER)
    before = [gaussian(300, 310, top=2), gaussian(40, 333, top=2)]  # 64 columns of the first would not fit
    weights = [weight.clone() for weight in before]
    host.clip(weights)
    for weight, original in zip(weights, before, strict=True):
        assert_clipped(weight, original)


@pytest.mark.parametrize(("shared_bytes", "side"), [(H100, 1024), (166912, 1024), (CONSUMER, 512)])
def test_the_largest_side_follows_from_the_shared_memory(shared_bytes, side, host):
    host.configure(shared_bytes=shared_bytes)
    assert host.module.prepare(host.device) == (side, "")


def test_a_device_with_too_little_shared_memory_is_refused(host):
    host.configure(shared_bytes=65536)
    error = "the kernels need more than a block's 65536 bytes of shared memory"
    assert host.module.prepare(host.device) == (0, error)
    with pytest.raises(BackendError, match=error):
        host.clip([torch.ones(2, 2)])


def test_weights_within_the_threshold_stay_bit_for_bit(kernels):
    before = [
        with_spectrum((1 - 4e-6) * torch.rand(70)).float(),
        torch.zeros(40, 90),
        torch.full((1, 4), 0.5),
        gaussian(9, 9, 0.9),
    ]
    weights = [weight.clone() for weight in before]
    kernels.clip(weights)
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_clipping_twice_changes_nothing_beyond_rounding(kernels):
    for top in (2, 30, 1000):
        weight = with_spectrum(topped(top, rows=40), 90).float()
        kernels.clip([weight])
        once = weight.clone()
        kernels.clip([weight])
        assert relative_error(weight, once.double()) <= 1e-7, top


@pytest.mark.parametrize("float64_only", [False, True], ids=["fixed-point", "float64"])
@pytest.mark.parametrize("shape", [(1, 300), (300, 1)], ids=str)
def test_one_row_or_column(shape, float64_only, kernels):
    for norm in (1.5, 4.5, 1e3, 3e3):
        before = gaussian(*shape, top=norm)
        weight = before.clone()
        kernels.clip([weight], float64_only=float64_only)
        assert_clipped(weight, before)
    for norm in (1e6, 1e20):
        weight = gaussian(*shape, top=norm)
        norm = largest(weight)
        kernels.clip([weight], float64_only=float64_only)
        assert largest(weight) == pytest.approx(norm / 3162.3, rel=1e-4)


@pytest.mark.parametrize("top", [1e4, 1e6, 1e30])
def test_a_weight_far_above_the_threshold_comes_down_call_by_call(top, kernels):
    """Each call lowers singular values to at most a 3162th of the Frobenius norm."""
    weight = with_spectrum(topped(top, rows=40), 90).float()
    for _ in range(20):
        norm = weight.double().norm().item()
        kernels.clip([weight])
        assert largest(weight) <= max(1 + 2e-7, 1.001 * norm / 3162)
        if norm < 3162:
            return
    pytest.fail("it does not come down")


def test_non_finite_weights_are_left_alone_and_reported(kernels):
    for value in (float("nan"), float("inf"), -float("inf")):
        broken, sound, vector = gaussian(70, 90), gaussian(33, 50, top=2), torch.ones(1, 9)
        broken[69, 89] = vector[0, 8] = value
        before = [broken.clone(), sound.clone(), vector.clone()]
        assert kernels.clip([broken, sound, vector]), value
        torch.testing.assert_close([broken, vector], [before[0], before[2]], rtol=0, atol=0, equal_nan=True)
        assert_clipped(sound, before[1])


def test_the_largest_finite_weights_are_finite(kernels):
    weight = torch.full((3, 70), torch.finfo(torch.float32).max)
    norm = weight.double().norm().item()
    assert not kernels.clip([weight])
    assert weight.isfinite().all()
    assert largest(weight) < 1.001 * norm / 3162


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_copies_hold_the_rounded_weights(dtype, kernels):
    weights = [
        gaussian(70, 90, top=3),
        gaussian(70, 90, top=0.9),  # stays as it is
        channels_last(6, 4, 3, 3, 3),
        gaussian(90, 30, top=2).to(torch.bfloat16),
        gaussian(20, 200, top=3)[:, 3:100],  # the copy has another layout
        gaussian(5, 5),
    ]
    weights[1][0, 0] = 1e-6  # subnormal in float16
    broken = gaussian(40, 50)
    broken[3, 3] = float("nan")
    weights.append(broken)
    copies = [torch.full_like(weight, float("nan"), dtype=dtype) for weight in weights]
    copies[4] = torch.full((20, 97), float("nan"), dtype=dtype)
    copies[5] = None
    kernels.clip(weights, copies=copies)
    for weight, copy in zip(weights, copies, strict=True):
        if copy is not None:
            torch.testing.assert_close(copy, weight.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_scales_are_clamped_as_by_torch(eps, kernels):
    scales = [torch.randn(300), torch.tensor([5.0, -5.0, 0.5, float("nan"), 1.0, 1.0])]
    running_vars = [torch.rand(300), torch.tensor([1.0, 1.0, 4.0, 1.0, float("nan"), -1.0])]
    expected = [scale.clone() for scale in scales]
    clamp_batch_norm_scale_(expected, running_vars, lowest=0.01, eps=eps)
    weight = gaussian(4, 4, top=2)
    kernels.clip([weight], scales=scales, running_vars=running_vars, eps=eps)
    torch.testing.assert_close(scales, expected, rtol=SQRT, atol=0, equal_nan=True)


def test_what_the_extension_refuses(host):
    def refused(
        rows=4, columns=4, threshold=1.0, polynomials=singular_value_clip_cuda.POLYNOMIALS, workspace_size=None
    ):
        sound, weight = torch.ones(1, 1), torch.ones(rows, columns)
        matrices = [
            (sound.data_ptr(), 1, 1, 1, 1, 1.0, 0, 0),
            (weight.data_ptr(), rows, columns, columns, 1, threshold, 0, 0),
        ]
        size = host.module.workspace_bytes(matrices)
        workspace = torch.empty(size, dtype=torch.uint8)
        return host.module.constrain(
            host.device, matrices, [], 0, 0, polynomials, 0, False, workspace.data_ptr(),
            size if workspace_size is None else workspace_size, 0, 0,
        )  # fmt: skip

    assert refused() == ""
    for threshold in (0.0, -1.0, float("nan"), float("inf"), 1e-170, 1e170):
        assert refused(threshold=threshold) == "a threshold and its square must be positive numbers"
    assert refused(polynomials=[]) == "1 to 32 polynomials are needed"
    assert refused(workspace_size=8) == "the workspace is too small"
    assert refused(rows=0) == "a matrix is empty"
    error = "a matrix of 1025×1026 is too large: the smaller side must be at most 1024"
    assert refused(rows=1025, columns=1026) == error


def test_without_a_device_the_error_is_the_runtimes(host):
    host.configure(multiprocessors=0)
    assert host.module.prepare(host.device) == (0, "no CUDA-capable device is detected")
    with pytest.raises(BackendError, match="singular value clipping failed on cpu: no CUDA-capable device is detected"):
        host.clip([torch.ones(2, 2)])


def test_a_device_is_prepared_once(host):
    """Preparing a device again would fail here, because the runtime no longer knows it."""
    sound = host.device
    prepared = host.module.prepare(sound)
    host.configure(multiprocessors=0)
    failed = host.device
    error = host.module.prepare(failed)
    host.configure()
    assert [host.module.prepare(sound), host.module.prepare(failed)] == [prepared, error]


def test_a_stream_with_fewer_multiprocessors_than_the_device_is_an_error(host):
    """The device reports 4 multiprocessors and has no room for as many blocks, as in a green context."""
    host.configure(blocks=0)
    weight = gaussian(130, 140, top=2)
    before = weight.clone()
    with pytest.raises(BackendError, match="a green context or MPS leaves the stream fewer multiprocessors"):
        host.clip([weight])
    assert torch.equal(weight, before)
    host.configure()
    host.clip([weight])
    assert_clipped(weight, before)


@pytest.mark.slow
def test_no_two_threads_race(libraries, monkeypatch):
    """Every way through the kernels, in both kinds of arithmetic, with more matrices than a block has warps."""
    host = HostDevice(build(SOURCES, libraries, race_check=True, python=True))
    monkeypatch.setattr(singular_value_clip_cuda, "extension", lambda: host.module)
    for seed, shared_bytes in enumerate((H100, CONSUMER)):
        host.configure(multiprocessors=3, shared_bytes=shared_bytes, seed=seed)
        before = [
            gaussian(80, 67, top=2),
            gaussian(66, 2060, top=1.2),
            gaussian(20, 91, top=2)[:, 1:70],
            with_spectrum(topped(1e4, rows=33), 70).float(),
            with_spectrum(topped(100, rows=33), 70).float(),
            gaussian(30, 30, top=0.5),
            gaussian(1, 300, top=2),
            *[gaussian(3, 5, top=2) for _ in range(9)],
        ]
        weights = [weight.clone(memory_format=torch.preserve_format) for weight in before]
        copies = [torch.empty_like(weight, dtype=torch.bfloat16) for weight in weights]
        clamped = {"scales": [torch.randn(300)], "running_vars": [torch.rand(300)]}
        host.clip(weights, copies=copies, **clamped, float64_only=shared_bytes == CONSUMER)
        for weight, original in zip(weights, before, strict=True):
            if original.norm() < 3162:
                assert_clipped(weight, original)


@pytest.mark.slow
def test_the_weights_of_tgan(kernels):
    # Without a GPU, 512 rows take ten seconds for any number of columns, so only smaller weights have many columns.
    shapes = TGAN if isinstance(kernels, Gpu) else [(64, 192), (128, 4096), (512, 520), (40, 16384), (1, 8192)]
    before = [gaussian(*shape) for shape in shapes]
    weights = [weight.clone() for weight in before]
    kernels.clip(weights)
    for weight, original in zip(weights, before, strict=True):
        assert_clipped(weight, original)


def test_autograd_notices(host):
    weight = gaussian(4, 9, top=3)
    factor = torch.ones(4, 9, requires_grad=True)
    product = (factor * weight).sum()
    host.clip([weight])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_gemm_and_the_kernels_agree(kernels):
    before = with_spectrum(topped(30)).float()
    weight = before.clone()
    kernels.clip([weight])
    assert relative_error(weight, singular_value_clip(before, backend="gemm").double()) <= 1e-7
