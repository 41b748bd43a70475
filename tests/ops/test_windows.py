"""Windows of frames become videos, with the pixels that a simple loop reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.graphs import captured

from tgan_fast.ops.dispatch import TRITON_IS_INSTALLED, BackendError
from tgan_fast.ops.windows import read_windows, whole_frames
from tgan_fast.pixels import to_videos

needs_triton = pytest.mark.skipif(not TRITON_IS_INSTALLED, reason="needs Triton")


def random_frames(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def random_windows(frames, n, layers, clip_frames, *, image_size=64):
    """Return random windows that reach both ends of the frames, half of them mirrored, independent for each frame."""
    count, height, width, _ = frames.shape
    size, last = (n, layers, clip_frames), image_size - 1
    step = 1 - 2 * torch.randint(2, size)
    windows = [torch.randint(most, size) for most in (count, height - last, width - last)]
    windows[2] += torch.where(step < 0, last, 0)
    windows = torch.stack([*windows, step], -1)
    windows[0, 0, 0] = torch.tensor([count - 1, height - image_size, width - 1, -1])
    windows[-1, -1, -1] = torch.tensor([0, 0, 0, 1])
    return windows


def plain_loop(frames, windows, channels, *, image_size=64):
    """Return videos float64 [n, channels, T, image_size, image_size]."""
    n, layers, clip_frames, _ = windows.shape
    levels = np.zeros((n, clip_frames, image_size, image_size, frames.shape[-1]), np.uint8)
    for place in np.ndindex(n, layers, clip_frames):
        frame, top, left, step = windows[place].tolist()
        for x in range(image_size):
            column = frames[frame, top : top + image_size, left + step * x].numpy()
            pixels = levels[place[0], place[2], :, x]
            np.maximum(pixels, column, out=pixels)
    videos = (levels.astype(float) - 127.5) / 127.5
    return torch.from_numpy(np.broadcast_to(videos, (*videos.shape[:-1], channels)).copy()).permute(0, 4, 1, 2, 3)


CASES = {
    "frames-of-the-same-size": ((5, 64, 64, 3), (2, 1, 3), 3),
    "wider": ((5, 64, 85, 3), (2, 1, 3), 3),
    "larger": ((3, 70, 99, 3), (2, 1, 2), 3),
    "gray": ((5, 64, 85, 1), (2, 1, 3), 1),
    "gray-to-color": ((5, 64, 85, 1), (2, 1, 3), 3),
    "two-layers": ((6, 100, 100, 1), (3, 2, 2), 3),
    "three-layers-two-channels": ((4, 66, 65, 2), (1, 3, 1), 2),
    "one-frame": ((1, 64, 64, 1), (1, 1, 1), 1),
    "five-channels": ((2, 64, 64, 5), (1, 1, 2), 5),
}


def cases_and(*dtypes):
    """Parametrize a test by all cases in float32, and one in other dtypes, which only the final conversion uses."""
    rows = [(name, torch.float32) for name in CASES] + [("gray-to-color", dtype) for dtype in dtypes]
    parameters = [pytest.param(*CASES[name], dtype, id=f"{name}-{dtype}") for name, dtype in rows]
    return pytest.mark.parametrize(("shape", "size", "channels", "dtype"), parameters)


# Cases by the size of their images.
OTHER_SIZES = {
    16: ((5, 20, 18, 3), (2, 1, 8), 3),
    32: ((3, 32, 43, 1), (2, 2, 4), 1),
    128: ((4, 130, 140, 1), (1, 1, 2), 3),
}
other_sizes = pytest.mark.parametrize("image_size", OTHER_SIZES)


@cases_and(torch.bfloat16, torch.float16, torch.float64)
def test_indexing_reads_what_a_plain_loop_reads(device, shape, size, channels, dtype):
    frames = random_frames(*shape)
    windows = random_windows(frames, *size)
    videos = read_windows(frames.to(device), windows.to(device), dtype=dtype, channels=channels, backend="torch")
    check(videos, plain_loop(frames, windows, channels), dtype, rounds_twice=True)


@needs_triton
@cases_and(torch.bfloat16, torch.float16)
def test_the_kernel_reads_what_a_plain_loop_reads(triton_device, shape, size, channels, dtype):
    frames = random_frames(*shape)
    windows = random_windows(frames, *size)
    placed = frames.to(triton_device), windows.to(triton_device)
    videos = read_windows(*placed, dtype=dtype, channels=channels, backend="triton")
    # Triton's interpreter rounds bfloat16 toward zero.
    in_interpreter = triton_device.type == "cpu" and dtype == torch.bfloat16
    check(videos, plain_loop(frames, windows, channels), dtype, rounds_twice=in_interpreter)


@other_sizes
def test_indexing_reads_images_of_other_sizes(device, image_size):
    shape, size, channels = OTHER_SIZES[image_size]
    frames = random_frames(*shape)
    windows = random_windows(frames, *size, image_size=image_size)
    placed = frames.to(device), windows.to(device)
    videos = read_windows(*placed, image_size=image_size, channels=channels, backend="torch")
    check(videos, plain_loop(frames, windows, channels, image_size=image_size), torch.float32, rounds_twice=True)


@needs_triton
@other_sizes
def test_the_kernel_reads_images_of_other_sizes(triton_device, image_size):
    shape, size, channels = OTHER_SIZES[image_size]
    frames = random_frames(*shape)
    windows = random_windows(frames, *size, image_size=image_size)
    placed = frames.to(triton_device), windows.to(triton_device)
    videos = read_windows(*placed, image_size=image_size, channels=channels, backend="triton")
    check(videos, plain_loop(frames, windows, channels, image_size=image_size), torch.float32, rounds_twice=False)


@needs_triton
@pytest.mark.parametrize(
    ("image_size", "channels", "block", "warps"),
    [(16, 1, 256, 1), (16, 2, 512, 2), (16, 3, 256, 1), (32, 1, 1024, 4), (64, 3, 1024, 4), (128, 1, 1024, 4)],
)
def test_programs_share_a_frame_evenly(image_size, channels, block, warps):
    from tgan_fast.ops.windows.triton import block_of, warps_of

    assert block_of(image_size**2 * channels) == block
    assert warps_of(block) == warps


def check(videos, exact, dtype, *, rounds_twice):
    assert videos.dtype == dtype
    assert videos.is_contiguous(memory_format=torch.channels_last_3d)
    videos = videos.cpu()
    if not rounds_twice:
        assert torch.equal(videos, exact.to(dtype))
    torch.testing.assert_close(videos.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_an_unknown_backend_is_named():
    frames = random_frames(1, 64, 64, 1)
    with pytest.raises(ValueError, match="read_windows has no backend 'cuda': choose auto, triton, torch"):
        read_windows(frames, whole_frames(1), backend="cuda")


@needs_triton
def test_the_kernel_says_what_it_does_not_take(triton_device):
    frames = random_frames(16, 64, 64, 1).to(triton_device)
    with pytest.raises(BackendError, match=r"it writes float32, float16 and bfloat16, and not torch\.float64"):
        read_windows(frames, whole_frames(1).to(triton_device), dtype=torch.float64, backend="triton")


@needs_triton
def test_every_byte_is_rounded_once_by_the_kernel(triton_device):
    frames = torch.arange(256, dtype=torch.uint8).repeat(16).view(1, 64, 64, 1).to(triton_device)
    windows = torch.tensor([0, 0, 0, 1], device=triton_device).view(1, 1, 1, 4)
    videos = read_windows(frames, windows, backend="triton").flatten()[:256].cpu()
    assert torch.equal(videos, ((torch.arange(256).double() - 127.5) / 127.5).float())
    assert (videos[0], videos[-1]) == (-1, 1)


BACKENDS = ["torch", pytest.param("triton", marks=needs_triton)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("clip_frames", "size"), [(16, 64), (8, 16), (9, 32)])
def test_whole_frames_are_clips_as_they_are(backend, clip_frames, size):
    """On a CPU the kernel runs in Triton's interpreter."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clips = random_frames(2, clip_frames, size, size, 1).to(device)
    windows = whole_frames(2, clip_frames).to(device)
    videos = read_windows(clips.flatten(0, 1), windows, image_size=size, backend=backend)
    torch.testing.assert_close(videos, to_videos(clips), rtol=2e-7, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_beyond_what_32_bits_count(backend):
    frames = torch.zeros(2**31 // (64 * 64 * 3) + 20, 64, 64, 3, dtype=torch.uint8, device="cuda")
    assert frames.numel() > 2**31
    last = frames[-2:].copy_(random_frames(2, 64, 64, 3))
    windows = torch.tensor([[0, 0, 0, 1], [1, 0, 63, -1]], device="cuda").view(1, 1, 2, 4)
    expected = read_windows(last.clone(), windows, backend=backend)
    windows[..., 0] += len(frames) - 2
    assert torch.equal(read_windows(frames, windows, backend=backend), expected)


@pytest.mark.gpu
def test_a_gpu_takes_the_kernel_where_it_can():
    frames = random_frames(3, 64, 64, 1).cuda()
    windows = random_windows(frames.cpu(), 2, 1, 2).cuda()
    for dtype, backend in ((torch.bfloat16, "triton"), (torch.float64, "torch")):
        expected = read_windows(frames, windows, dtype=dtype, backend=backend)
        assert torch.equal(read_windows(frames, windows, dtype=dtype), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cuda_graph_reads_the_windows_of_its_replay(backend):
    frames = random_frames(9, 70, 85, 3).cuda()
    windows = random_windows(frames.cpu(), 4, 2, 16).cuda()
    static = windows.clone()
    graph, videos = captured(lambda: read_windows(frames, static, dtype=torch.bfloat16, backend=backend))
    for _ in range(3):
        windows = windows.roll(1, 0)
        static.copy_(windows)
        graph.replay()
        assert torch.equal(videos, read_windows(frames, windows, dtype=torch.bfloat16, backend=backend))


COMPILE = """
import itertools, json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tgan_fast.ops.windows.triton import block_of, read_windows_kernel, warps_of

numbers = dict.fromkeys(("height", "width", "clip_frames"), "i32")
architectures = itertools.cycle((80, 90, 100))
for dtype in ("fp32", "bf16"):
    for channels, video_channels, layers, size in ((3, 3, 1, 64), (1, 3, 2, 64), (3, 3, 1, 16)):
        constants = {"LAYERS": layers, "CHANNELS": channels, "VIDEO_CHANNELS": video_channels, "SIZE": size}
        constants["BLOCK"] = block_of(size * size * video_channels)
        signature = {"frames": "*u8", "windows": "*i64", "videos": "*" + dtype, **numbers}
        source = ASTSource(
            fn=read_windows_kernel,
            signature={**signature, **dict.fromkeys(constants, "constexpr")},
            constexprs=constants,
            attrs={(position,): [["tt.divisibility", 16]] for position in range(3)},
        )
        target = GPUTarget("cuda", next(architectures), 32)
        compiled = triton.compile(source, target=target, options={"num_warps": warps_of(constants["BLOCK"])})
        print(json.dumps({"cubin": len(compiled.asm["cubin"]), "ptx": compiled.asm["ptx"]}))
"""


@needs_triton
@pytest.mark.slow
def test_the_kernel_compiles_for_gpus_that_are_not_there():
    """A separate process compiles, because this one may use Triton's interpreter, which accepts more code."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=Path(__file__).resolve().parents[2], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    compiled = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(compiled) == 6
    for entry in compiled:
        assert entry["cubin"] > 0
        assert "div.rn.f32" in entry["ptx"]
        assert "st.global.v4.b32" in entry["ptx"]
