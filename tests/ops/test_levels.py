"""tanh_to_levels against its definition in float64, and against the clips that videos become."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tgan_fast.ops import BackendError
from tgan_fast.ops.levels import tanh_to_levels
from tgan_fast.pixels import to_clips

ROOT = Path(__file__).resolve().parents[2]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# The error of float32 around 127.5, with a tanh that is off by a few units in its last place.
NEAR_A_HALF = 1e-4


def layouts(device, dtype):
    """Return tensors [N, C, H, W] in every layout, whose sizes are not multiples of a block."""
    random = torch.Generator().manual_seed(0)
    dense = (torch.randn(3, 3, 37, 41, generator=random) * 2).to(device, dtype)
    yield "contiguous", dense
    yield "channels last", dense.contiguous(memory_format=torch.channels_last)
    yield "transposed", dense.permute(2, 0, 3, 1)
    yield "sliced", dense[:, 1:, ::2]
    yield "expanded", dense[:, :1].expand(3, 5, 37, 41)
    yield "of one channel", dense[:, :1]
    yield "of many programs", (torch.randn(2, 3, 64, 64, generator=random) * 2).to(device, dtype)
    yield "of one element", torch.full((1, 1, 1, 1), 0.3, device=device, dtype=dtype)
    yield "empty", dense[:0]


def assert_nearest_levels(levels, x, what=""):
    exact = (x.double().tanh() + 1) * 127.5
    assert levels.dtype == torch.uint8, what
    assert (levels.double() - exact).abs().le(0.5 + NEAR_A_HALF).all(), what


def expected_layout(x):
    return torch.empty_like(x, dtype=torch.uint8).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_levels_are_those_of_the_clips(dtype, device):
    for name, x in layouts(device, dtype):
        before = x.clone()
        levels = tanh_to_levels(x, backend="torch")
        videos = x.float().tanh().unsqueeze(2)
        assert torch.equal(levels.permute(0, 2, 3, 1).unsqueeze(1), to_clips(videos)), name
        assert levels.stride() == expected_layout(x), name
        assert_nearest_levels(levels, x, name)
        assert torch.equal(x, before), name


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_triton_takes_the_nearest_levels_too(dtype, triton_device):
    pytest.importorskip("triton")
    for name, x in layouts(triton_device, dtype):
        before = x.clone()
        levels = tanh_to_levels(x, backend="triton")
        assert levels.stride() == expected_layout(x), name
        assert_nearest_levels(levels, x, name)
        assert torch.equal(x, before), name


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # from NumPy in the interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_every_number_of_sixteen_bits_has_a_level(dtype, backend, triton_device):
    """The numbers include NaN and the infinities."""
    if backend == "triton":
        pytest.importorskip("triton")
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).to(triton_device)
    levels = tanh_to_levels(x, backend=backend)
    is_nan = x.isnan()
    assert is_nan.any()
    assert levels[is_nan].eq(0).all()
    assert_nearest_levels(levels[~is_nan], x[~is_nan])
    assert levels[x == torch.inf].item() == 255
    assert levels[x == -torch.inf].item() == 0


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_tie_goes_to_the_even_level(backend, triton_device):
    if backend == "triton":
        pytest.importorskip("triton")
    x = torch.tensor([0.0, -0.0], device=triton_device)
    assert tanh_to_levels(x, backend=backend).tolist() == [128, 128]


def test_auto_takes_triton_on_a_gpu_and_torch_elsewhere(device):
    x = torch.randn(10007, device=device)
    expected = "triton" if device.type == "cuda" else "torch"
    assert torch.equal(tanh_to_levels(x), tanh_to_levels(x, backend=expected))


def test_what_is_refused(triton_device):
    with pytest.raises(ValueError, match=r"x must be a floating-point tensor, not torch\.int64"):
        tanh_to_levels(torch.arange(3))
    with pytest.raises(ValueError, match="has no backend 'cuda': choose auto, triton, torch"):
        tanh_to_levels(torch.zeros(3), backend="cuda")
    with pytest.raises(BackendError, match=r"backend 'triton' cannot be used: it takes .* and x is torch\.float64"):
        tanh_to_levels(torch.zeros(3, dtype=torch.float64, device=triton_device), backend="triton")


@pytest.mark.gpu
def test_triton_on_a_gpu_refuses_the_cpu():
    with pytest.raises(BackendError, match="it runs on a GPU, and x is on cpu"):
        tanh_to_levels(torch.zeros(3), backend="triton")


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tgan_fast.ops.levels.triton import levels_kernel

for architecture in (80, 90, 100):
    for dtype in ("fp32", "fp16", "bf16"):
        for count, aligned in (("i32", (0, 1, 2)), ("i64", (0, 1))):
            signature = {"x": f"*{dtype}", "levels": "*u8", "count": count, "block": "constexpr"}
            attributes = {(position,): [["tt.divisibility", 16]] for position in aligned}
            source = ASTSource(fn=levels_kernel, signature=signature, constexprs={"block": 2048}, attrs=attributes)
            options = {"num_warps": 8}
            compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
            print(architecture, dtype, count, "ld.global.v4" in compiled.asm["ptx"], compiled.metadata.shared)
"""


@pytest.mark.slow
def test_it_compiles_without_a_gpu():
    """A separate process compiles, because this one may use Triton's interpreter."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == 3 * 3 * 2
    for architecture, dtype, count, wide, shared in lines:
        # If the number of elements is a multiple of 16, they are read sixteen bytes at a time.
        assert (wide, shared) == (str(count == "i32"), "0"), (architecture, dtype)
