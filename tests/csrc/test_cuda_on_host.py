"""The kernels' sources run on a CPU as on a GPU, and mistakes become visible."""

import ctypes
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from emulator.host_build import build, explain, guarded_copy

SEEDS = range(6)  # ascending, descending and four random orders


class Missing(IntEnum):
    NOTHING, FIRST_BARRIER, SECOND_BARRIER, THE_WAIT = range(4)


FAULTS = [
    "no_fault",
    "barrier_for_some",
    "collective_for_some",
    "different_collectives",
    "small_warp",
    "grid_barrier_for_some",
    "write_before",
    "write_behind",
    "write_far_behind",
    "copy_not_waited_for",
    "copy_of_changed_source",
    "copy_misaligned",
    "copy_beyond",
    "matrix_misaligned",
    "matrix_beyond",
    "write_by_all",
    "write_by_blocks",
    "write_neighbors",
    "index_beyond",
    "vector_misaligned",
]


class Toys:
    """Kernels of toy_kernels.cu; every run returns what went wrong, or an empty string."""

    def __init__(self, path):
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.error_string.restype = ctypes.c_char_p
        self.configure()

    def configure(self, multiprocessors=4, shared_bytes=232448, blocks=8, seed=0):
        self.library.configure_host_device(multiprocessors, shared_bytes, blocks, seed)

    def call(self, name, *arguments):
        converted = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_long(a) for a in arguments
        ]
        error = getattr(self.library, name)(*converted)
        return self.library.error_string(error).decode() if error else ""

    def products(self, a, b, c, threads, repeats=1):
        return self.call("run_products", a, b, c, a.shape[1], threads, repeats)

    def integer_products(self, a, b):
        out = np.zeros((16, 8), np.int64)
        return out, self.call("run_integer_products", a, b, out, a.shape[1])

    def sums(self, values, missing=Missing.NOTHING):
        out = np.full(len(values), np.nan)
        return out, self.call("run_sum", values, out, *values.shape, missing)

    def warp_sum(self, values, missing=Missing.NOTHING):
        out = np.full(32, np.nan)
        return out, self.call("run_warp_sum", values, out, missing)

    def grid_sum(self, values, missing=Missing.NOTHING, cooperative=True, arrivals=0):
        out, partial = np.full((2, len(values)), np.nan)
        arrivals = np.full(1, arrivals, np.uint32)
        return out, self.call("run_grid_sum", values, out, partial, arrivals, *values.shape, cooperative, missing)

    def swap_pairs(self, values, missing=Missing.NOTHING):
        out = np.full_like(values, np.nan)
        return out, self.call("run_swap_pairs", values, out, len(values), values.shape[1] // 2, missing)

    def faulty(self, fault, blocks=1, threads=32, cooperative=False):
        memory, arrivals = guarded_copy(np.zeros(4096)), np.zeros(1, np.uint32)
        return self.call("run_faulty", FAULTS.index(fault), memory, arrivals, blocks, threads, cooperative)

    def nothing(self, blocks=1, threads=32, shared_bytes=0, cooperative=False):
        return self.call("run_nothing", blocks, threads, shared_bytes, cooperative)


def build_toys(tmp_path_factory, race_check):
    source = Path(__file__).parent / "emulator" / "toy_kernels.cu"
    return build([source], tmp_path_factory.mktemp("build"), race_check=race_check)


@pytest.fixture(scope="module")
def plain_library(tmp_path_factory):
    return build_toys(tmp_path_factory, race_check=False)


@pytest.fixture(scope="module")
def checked_library(tmp_path_factory):
    return build_toys(tmp_path_factory, race_check=True)


@pytest.fixture
def plain(plain_library):
    return Toys(plain_library)


@pytest.fixture
def checked(checked_library):
    return Toys(checked_library)


@pytest.fixture(params=["plain_library", "checked_library"], ids=["plain", "checked"])
def toys(request):
    return Toys(request.getfixturevalue(request.param))


def is_close(actual, expected):
    return np.allclose(actual, expected, rtol=0, atol=1e-10)


def random_tiles(tiles=5, threads=64):
    return guarded_copy(np.random.default_rng(0).normal(size=(tiles, 2 * threads)))


def swapped(tiles):
    return tiles.reshape(-1, 2, 2)[:, ::-1].reshape(tiles.shape)


# ---- Correct kernels -----------------------------------------------------------------------------------------------


def test_multiply_add_is_a_matrix_product(toys):
    for seed in SEEDS:
        toys.configure(seed=seed)
        random = np.random.default_rng(seed)
        a, b, c = random.normal(size=(16, 40)), random.normal(size=(40, 8)), random.normal(size=(3, 16, 8))
        expected = c + a @ b
        assert toys.products(a, b, c, threads=96) == "", seed
        np.testing.assert_allclose(c, expected, rtol=0, atol=1e-13)


LARGEST_WITH_DIGITS = 0x7F7F7F7F


def digits(values):
    """Return the signed digits of integers in base 256, from −128 to 127, the lowest first."""
    rest, found = values.astype(np.int64), []
    for _ in range(4):
        found.append((rest + 128) % 256 - 128)
        rest = (rest - found[-1]) // 256
    assert not rest.any()
    return found


def random_integers(random, *shape):
    """Return integers of all magnitudes, and those whose digits are the largest."""
    values = random.integers(-LARGEST_WITH_DIGITS, LARGEST_WITH_DIGITS, shape) >> random.integers(0, 32, shape)
    values.flat[:4] = LARGEST_WITH_DIGITS, -LARGEST_WITH_DIGITS, -0x7F808080, 0
    return values.astype(np.int32)


def test_products_of_integers(toys):
    """The host computes exactly what the sum over digits i + j ≥ 2 is, and this is near the product."""
    for seed in SEEDS:
        toys.configure(seed=seed)
        random = np.random.default_rng(seed)
        a, b = random_integers(random, 16, 96), random_integers(random, 96, 8)
        found, error = toys.integer_products(a, b)
        assert error == "", seed
        left, right = digits(a), digits(b)
        pairs = [(i, j) for i in range(4) for j in range(4) if i + j >= 2]
        assert len(pairs) == 13
        np.testing.assert_array_equal(found, sum((left[i] @ right[j]) * 256 ** (i + j - 2) for i, j in pairs))
        exact = a.astype(object) @ b.astype(object)
        assert max(abs(exact - found.astype(object) * 65536).flat) <= 96 * (2 * 256 + 1) * 128**2


def test_matrices_are_loaded_into_operands(toys):
    for seed in SEEDS:
        toys.configure(seed=seed)
        words = np.random.default_rng(seed).integers(0, 2**32, 128, dtype=np.uint32)
        out = np.zeros((32, 4), np.uint32)
        assert toys.call("run_matrices", words, out, Missing.NOTHING) == "", seed
        matrices = words.reshape(32, 4)[::-1].reshape(4, 8, 4)  # matrix, row, word
        np.testing.assert_array_equal(out, matrices.transpose(1, 2, 0).reshape(32, 4))


def test_a_loaded_matrix_needs_a_barrier_before(checked):
    words, out = np.zeros(128, np.uint32), np.zeros((32, 4), np.uint32)
    assert checked.call("run_matrices", words, out, Missing.FIRST_BARRIER).startswith("race: thread ")


def test_sums_of_digits_products_must_not_overflow(plain):
    def products(depth):
        largest = np.full((16, depth), LARGEST_WITH_DIGITS, np.int32)
        return plain.integer_products(largest, np.ascontiguousarray(largest[:8].T))[1]

    assert products(32 * 1040) == ""  # 4 · 127² · 33280 < 2³¹
    assert products(32 * 1041) == "an int32 sum of digits' products overflows"


def test_integers_are_the_sums_of_their_digits(plain):
    values = random_integers(np.random.default_rng(0), 1000, 4)
    values[0] = 2**31 - 1, -(2**31), 127, -129
    out = np.zeros_like(values)
    plain.call("through_digits", values, out, len(values))
    np.testing.assert_array_equal(out, values.astype(np.int64).clip(-LARGEST_WITH_DIGITS, LARGEST_WITH_DIGITS))


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 3e-30, 1.0, 0.3, 8.0, 1e30, 3.4028235e38])
def test_floats_in_fixed_point(plain, largest):
    """At most half a unit is lost, and nothing of numbers within a factor of 64 of the largest."""
    values = (np.random.default_rng(0).uniform(-1, 1, 1000) * np.float32(largest)).astype(np.float32)
    values[:2] = largest, -largest
    out = np.zeros(1000)
    plain.call("through_fixed_point", values, out, values.size, np.full(1, largest, np.float32))
    assert np.abs(out - values).max() <= np.abs(values).max() * 2.0**-30
    large = np.abs(values) >= np.abs(values).max() / 64
    np.testing.assert_array_equal(out[large], values[large])


def test_rounding_to_an_int_saturates(plain):
    values = np.array([0.5, 1.5, -2.5, 2.0**31 - 0.5, 2.0**31, -(2.0**31) - 1, 1e300, -np.inf, 7.4999])
    out = np.zeros(values.size, np.int32)
    plain.call("round_to_ints", values, out, values.size)
    top, bottom = 2**31 - 1, -(2**31)
    assert out.tolist() == [0, 2, -2, top, top, bottom, top, bottom, 7]


def test_right_kernels(toys):
    for seed in SEEDS:
        toys.configure(seed=seed)
        values = np.random.default_rng(seed).normal(size=(4, 256))
        for run, expected in [
            (toys.sums(values), values.sum(1)),
            (toys.grid_sum(values), np.full(4, values.sum())),
            (toys.warp_sum(values[0]), np.full(32, values[0, :32].sum())),
            (toys.swap_pairs(random_tiles()), swapped(random_tiles())),
        ]:
            out, error = run
            assert error == "", seed
            assert is_close(out, expected), seed


def test_a_seed_gives_the_same_order_again(plain):
    values = np.random.default_rng(0).normal(size=(4, 256))

    def wrong_sums(seed):
        plain.configure(seed=seed)
        return plain.grid_sum(values, Missing.SECOND_BARRIER)[0].tolist()

    assert wrong_sums(2) == wrong_sums(2)
    assert len({str(wrong_sums(seed)) for seed in SEEDS}) > 3


def test_more_threads_than_fit_a_gpu_of_today(plain):
    plain.configure(multiprocessors=132, blocks=1, seed=2)
    values = np.random.default_rng(0).normal(size=(132, 512))
    out, error = plain.grid_sum(values)
    assert error == ""
    assert is_close(out, values.sum())


# ---- Missing barriers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [Missing.FIRST_BARRIER, Missing.SECOND_BARRIER])
@pytest.mark.parametrize("kernel", ["sums", "warp_sum", "grid_sum"])
def test_a_missing_barrier_shows_in_some_order(plain, kernel, missing):
    values = np.random.default_rng(0).normal(size=(4, 256))
    expected = {"sums": values.sum(1), "warp_sum": values[0, :32].sum(), "grid_sum": values.sum()}[kernel]
    wrong = 0
    for seed in SEEDS:
        plain.configure(seed=seed)
        out, error = getattr(plain, kernel)(values, missing)
        assert error == ""
        wrong += not is_close(out, expected)
    assert wrong >= 3


@pytest.mark.parametrize("missing", [Missing.FIRST_BARRIER, Missing.SECOND_BARRIER])
@pytest.mark.parametrize("kernel", ["sums", "warp_sum", "grid_sum"])
def test_a_missing_barrier_is_a_race_in_any_order(checked, kernel, missing):
    for seed in SEEDS:
        checked.configure(seed=seed)
        error = getattr(checked, kernel)(np.ones((4, 256)), missing)[1]
        assert error.startswith("race: thread "), seed
        assert "without a barrier between" in error, seed


@pytest.mark.parametrize("missing", [Missing.FIRST_BARRIER, Missing.SECOND_BARRIER, Missing.THE_WAIT])
def test_asynchronous_copies_need_their_wait_and_barriers(plain, checked, missing):
    tiles = random_tiles()
    for seed in SEEDS:
        plain.configure(seed=seed)
        out, error = plain.swap_pairs(tiles, missing)
        assert error == "", seed
        assert np.isnan(out).any(), seed

        checked.configure(seed=seed)
        error = checked.swap_pairs(tiles, missing)[1]
        if missing == Missing.THE_WAIT:
            assert "copy_async" in error, seed
            assert "not waited for" in error, seed
        else:
            assert error.startswith("race: ") or "copy_async" in error, seed


def test_blocks_are_unordered_without_a_grid_barrier(checked):
    assert "thread 0 of block 0 wrote" in checked.faulty("write_by_blocks", blocks=2)
    assert checked.faulty("write_by_blocks", blocks=1) == ""
    assert checked.faulty("write_by_blocks", blocks=1) == ""  # launches are ordered


def test_neighbors_in_a_word_do_not_race(checked):
    assert checked.faulty("write_neighbors") == ""


def test_a_race_names_its_source_lines(checked):
    error = checked.sums(np.ones((1, 64)), Missing.FIRST_BARRIER)[1]
    lines = explain(checked.path, error).splitlines()
    assert lines[0] == error
    numbers = {int(line.split("toy_kernels.cu:")[1].split()[0]) for line in lines[1:] if "toy_kernels.cu" in line}
    source = (Path(__file__).parent / "emulator" / "toy_kernels.cu").read_text().splitlines()
    named = "\n".join(source[number - 1] for number in numbers)
    assert "shared[threadIdx.x] = value;" in named
    assert "+= shared[threadIdx.x + half]" in named


# ---- Reported faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("barrier_for_some", "__syncthreads"),
        ("collective_for_some", "deadlock: no thread can go on; block 0: 32 in multiply_add, 32 exited"),
        ("different_collectives", "deadlock: no thread can go on; block 0: 32 in multiply_add, 32 in __syncwarp"),
        ("write_before", "shared memory"),
        ("write_behind", "512 bytes of shared memory"),
        ("write_far_behind", "byte 160000 of 512 bytes of shared memory"),
        ("copy_not_waited_for", "ends with copies that it has not waited for"),
        ("copy_of_changed_source", "changed before its wait"),
        ("copy_misaligned", "no multiples of 16"),
        ("copy_beyond", "copy_async to byte "),
        ("matrix_misaligned", "load_matrices from byte 8 of 512 bytes of shared memory"),
        ("matrix_beyond", "load_matrices from byte 512 of 512 bytes of shared memory"),
    ],
)
def test_a_fault_is_an_error_of_its_launch(toys, fault, message):
    for seed in SEEDS:
        toys.configure(seed=seed)
        assert message in toys.faulty(fault, threads=32 if "copy" in fault else 64), seed
        assert toys.library.last_error() != 0, seed
        assert toys.library.last_error() == 0, seed
        # The next launch starts afresh.
        values = np.ones((4, 64))
        assert toys.grid_sum(values)[0].tolist() == [256] * 4, seed


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("write_by_all", "race: thread 0 of block 0 wrote byte 0 of shared memory at +0x"),
        ("index_beyond", "undefined"),
        ("vector_misaligned", "undefined"),
    ],
)
def test_a_fault_that_only_the_race_check_sees(checked, fault, message):
    assert message in checked.faulty(fault)


def test_a_warp_that_is_not_whole(toys):
    assert toys.faulty("small_warp", threads=48) == "multiply_add in a warp of 16 threads"


def test_grid_barriers_that_cannot_work(toys):
    values = np.ones((4, 32))
    error = toys.faulty("grid_barrier_for_some", blocks=3, cooperative=True)
    assert error == (
        "deadlock: no thread can go on; block 0: 31 in __syncthreads, 1 in grid_barrier; "
        "block 2: 31 in __syncthreads, 1 in grid_barrier"
    )
    assert toys.grid_sum(values, cooperative=False)[1] == "grid_barrier in a launch that is not cooperative"
    assert toys.grid_sum(values, arrivals=1)[1] != ""


@pytest.mark.parametrize("shape", [(3, 5), (256, 16), (1024, 3)])
def test_memory_ends_where_a_guarded_copy_does(toys, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float64)
    copy = guarded_copy(values, alignment=8)
    np.testing.assert_array_equal(copy, values)
    blocks = values.size // 32
    if blocks:
        assert toys.call("run_sum", copy, np.zeros(blocks + 1), blocks, 32, 0) == ""
    error = toys.call("run_sum", copy, np.zeros(blocks + 1), blocks + 1, 32, 0)
    assert "where no memory is" in error


# ---- The device ----------------------------------------------------------------------------------------------------


def test_launches_that_a_gpu_refuses(plain):
    plain.configure(multiprocessors=3, shared_bytes=100_000, blocks=2)
    assert plain.nothing() == ""
    assert plain.nothing(blocks=0) == "invalid configuration argument"
    assert plain.nothing(threads=0) == "invalid configuration argument"
    assert plain.nothing(threads=1024) == ""
    assert plain.nothing(threads=1025) == "invalid configuration argument"
    assert plain.nothing(blocks=6, cooperative=True) == ""
    assert plain.nothing(blocks=7, cooperative=True) == "too many blocks in cooperative launch"
    assert plain.nothing(blocks=7) == ""
    assert plain.nothing(shared_bytes=48 << 10) == ""
    assert plain.nothing(shared_bytes=(48 << 10) + 1) == "invalid argument"
    assert plain.call("allow_shared_memory", 100_001) == "invalid argument"
    assert plain.call("allow_shared_memory", 100_000) == ""
    assert plain.nothing(shared_bytes=100_000) == ""
    assert plain.nothing(blocks=3, shared_bytes=100_000, cooperative=True) == ""
    assert plain.nothing(blocks=4, shared_bytes=100_000, cooperative=True) == "too many blocks in cooperative launch"
    plain.configure(multiprocessors=0)
    assert plain.nothing() == "no CUDA-capable device is detected"


def test_resident_blocks(plain):
    def resident_blocks(threads, shared_bytes):
        return plain.library.resident_blocks(threads, ctypes.c_size_t(shared_bytes))

    plain.configure(blocks=32)
    assert resident_blocks(32, 0) == 32
    assert resident_blocks(1024, 0) == 2
    assert resident_blocks(1, 40_000) == 5
    assert resident_blocks(32, 60_000) == 0  # not allowed
    plain.configure(blocks=3)
    assert resident_blocks(32, 0) == 3


# ---- Rounding ------------------------------------------------------------------------------------------------------


def interesting_floats():
    """Every half and bfloat16, the middles between them, and the floats next to both; and random bits."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    bfloat16s = np.arange(1 << 16, dtype=np.uint32) << 16
    ties = np.concatenate([halves, halves + (1 << 12), bfloat16s, bfloat16s + (1 << 15)])
    subnormal_ties = (np.arange(-2048, 2049) * 2.0**-25).astype(np.float32).view(np.uint32)
    random = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    center = np.concatenate([ties, subnormal_ties, random])
    return np.concatenate([center, center + 1, center - 1]).view(np.float32)


def test_rounding(plain):
    values = interesting_floats()
    halves, bfloat16s = np.zeros((2, values.size), np.uint16)
    plain.call("round_all", values, halves, bfloat16s, values.size)
    number = ~np.isnan(values)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(halves[number], values.astype(np.float16).view(np.uint16)[number])
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(bfloat16s[number], expected[number])
    assert (halves[~number] == 0x7FFF).all()
    assert (bfloat16s[~number] == 0x7FFF).all()
