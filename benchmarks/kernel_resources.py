"""Registers, shared memory and spills of every kernel, without a GPU.

    python -m benchmarks.kernel_resources triton
    python -m benchmarks.kernel_resources cuda

The launchers of Triton's kernels run on tensors without memory, for every tile of the table; what Triton would compile
for them is compiled ahead of time. The CUDA kernels in csrc/cuda are compiled with the flags of setup.py; their shared
memory is that of a launch for TGAN's largest weight.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Literal, NamedTuple
from unittest import mock

import torch
import triton
import tyro
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tgan_fast.ops.augmentation import TRANSFORMS, Pass
from tgan_fast.ops.augmentation import triton as augmentation_kernels
from tgan_fast.ops.batch_norm import triton as launchers
from tgan_fast.ops.batch_norm import triton_kernels as batch_norm_kernels
from tgan_fast.ops.batch_norm.activation import IDENTITY, Activation
from tgan_fast.ops.batch_norm.geometry import to_layout
from tgan_fast.ops.batch_norm.tiles import table
from tgan_fast.ops.cuda_extension import extension
from tgan_fast.ops.levels import triton as levels_kernels
from tgan_fast.ops.optimizer import triton as optimizer_kernels
from tgan_fast.ops.windows import triton as data_kernels

ROOT = Path(__file__).resolve().parent.parent
TRITON_ARCHITECTURES = (80, 90, 100)
CUDA_ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SIDE = 512  # rows of the largest weight
USAGE = (
    r"entry function '_ZN\d+tgan_fast\d+([a-z_]+_kernel)(?:ILi(\d+)E)?\w*' for 'sm_\d+'.*?(\d+) bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
)
MULTIPROCESSORS = 132
EPS, MOMENTUM = 1e-5, 0.1
LEAKY, GELU = Activation("leaky_relu", 0.2), Activation("gelu_tanh")
ACTIVATIONS = [LEAKY, GELU, IDENTITY, *(Activation(name) for name in ("leaky_relu", "relu6", "silu", "hardswish"))]
FLOATS = torch.float32, torch.bfloat16, torch.float16
MODULES = batch_norm_kernels, optimizer_kernels, levels_kernels, data_kernels, augmentation_kernels
KERNELS = {name: kernel for module in MODULES for name, kernel in vars(module).items() if name.endswith("_kernel")}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Stub of the driver functions that Triton calls before it compiles.
DRIVER = SimpleNamespace(
    get_current_device=lambda: 0,
    get_current_stream=lambda device: 0,
    get_current_target=lambda: GPUTarget("cuda", TRITON_ARCHITECTURES[0], 32),
)


class Launch(NamedTuple):
    """Kernel with everything that its machine code depends on."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[int, ...]  # positions of arguments that are divisible by 16
    warps: int
    most_registers: int | None


def launches() -> list[Launch]:
    """Return the launches for every entry of the table, and for every option on a tensor of each kind."""
    found: dict[Launch, None] = {}

    def note(fn, compile, **_):
        names, (attributes,) = fn.jit_function.arg_names, compile["configs"]
        constants = tuple((names[position], value) for (position,), value in compile["constants"].items())
        divisible = tuple(position for (position,), attribute in attributes.items() if attribute)
        limit = json.loads(compile["specialization_data"])["options"]["maxnreg"]
        signature = tuple(compile["signature"].items())
        found[Launch(fn.name, signature, constants, divisible, compile["num_warps"], limit)] = None
        return True  # makes Triton neither compile nor launch

    triton.runtime.driver.set_active(DRIVER)
    with (
        triton.knobs.runtime.scope(),
        mock.patch.object(launchers, "_multiprocessors", return_value=MULTIPROCESSORS),
    ):
        triton.knobs.runtime.jit_cache_hook = note
        for x in _tensors_of_every_entry():
            _train_and_back(x)
            _train_and_back(x, GELU, residual=x)  # the most registers
        for x in _tensors_of_every_kind():
            _run_every_option(x)
        _run_others()
    return list(found)


def _empty(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> torch.Tensor:
    x = torch.empty(shape, dtype=dtype, device="meta")
    return to_layout(x, channels_last=True) if channels_last else x


def _tensors_of_every_entry() -> Iterator[torch.Tensor]:
    """Yield tensors for each entry of the table, and two with more rows or columns than 32 bits can count."""
    yield _empty(2**31 + 16, 64, dtype=torch.bfloat16, channels_last=True)
    yield _empty(1, 2, 2**31 + 16, dtype=torch.bfloat16)
    for key in table():
        for dtype in FLOATS[:1] if key.itemsize == 4 else FLOATS[1:]:
            if "small" in key.kernel:
                yield _empty(key.size, 64, dtype=dtype, channels_last=True)
                yield _empty(1, 64, key.size, dtype=dtype)
            else:
                shape = (64, key.size, 32, 32) if key.channels_last else (512, 64, key.size)
                yield _empty(*shape, dtype=dtype, channels_last=key.channels_last)


def _tensors_of_every_kind() -> Iterator[torch.Tensor]:
    """Yield tensors for both families of kernels in both layouts, and for sizes of 1, which are compiled in."""
    for shape in ((64, 64, 32, 32), (64, 64)):
        yield _empty(*shape, dtype=torch.bfloat16, channels_last=True)
    for shape in ((512, 64, 16), (2, 64, 64), (2, 1, 10007)):
        yield _empty(*shape, dtype=torch.bfloat16)
    yield _empty(64, 4, dtype=torch.bfloat16).t()


def _train_and_back(x, activation=LEAKY, residual=None, parameters=torch.float32, momentum=MOMENTUM, groups=1) -> None:
    channel, statistics = _empty(x.shape[1], dtype=parameters), _empty(groups, x.shape[1])
    count = _empty(dtype=torch.int64)
    launchers.train(x, *[channel] * 4, count, momentum, EPS, residual, activation, groups)
    tensors = x, statistics, statistics, None, channel, channel
    launchers.backward(x, *tensors, residual, activation, EPS, True, True, True)


def _run_every_option(x: torch.Tensor) -> None:
    """Run all launchers with the options of a layer, and with the arguments of a group of processes."""
    for options in ({"parameters": x.dtype}, {"momentum": None}, {"groups": 2}):
        _train_and_back(x, **options)
    channel = _empty(x.shape[1])
    launchers.train(x, *[None] * 6, EPS, None, LEAKY, 1)
    launchers.backward(x, x, channel, channel, *[None] * 4, LEAKY, EPS, True, False, False)
    for part in (x, x[:1]):
        launchers.statistics(part, 1)
    for wanted in torch.eye(3, dtype=torch.bool).tolist():
        for rstd, var in ((channel, None), (None, channel)):
            launchers.backward(x, x, channel, rstd, var, channel, channel, None, LEAKY, EPS, *wanted)
    for activation in ACTIVATIONS:
        for residual in (None, x):
            _train_and_back(x, activation, residual)
        launchers.evaluate(x, *[channel] * 4, None, activation, EPS)


def _run_others() -> None:
    """Run the other kernels on every dtype and on aligned, other and huge sizes."""
    alike = list(zip(FLOATS, (None, *FLOATS[1:]), strict=True))
    every = list(itertools.product(FLOATS, (None, *FLOATS[1:])))
    for length, pairs in ((1, alike), (1001, alike), (1 << 20, every), (2**31 + 16, alike)):
        for (gradient, copy), rate in itertools.product(pairs, (1e-3, _empty())):
            p, g = _empty(length), _empty(length, dtype=gradient)
            c = copy and _empty(length, dtype=copy)
            optimizer_kernels.rmsprop(p, g, p, c, rate, 0.99, 1e-8)
            optimizer_kernels.adam(p, g, p, p, _empty(), c, rate, 0.9, 0.999, 1e-8)
        for dtype in FLOATS:
            levels_kernels.tanh_to_levels(_empty(length, dtype=dtype))
    # Frames are in color or gray, in one layer or two, with their own channels or widened.
    for (colors, layers, channels), size, dtype in itertools.product(
        ((3, 1, 3), (1, 1, 1), (1, 2, 3)), (16, 64), FLOATS
    ):
        frames, windows = _empty(100, 64, 85, colors, dtype=torch.uint8), _empty(32, layers, 16, 4, dtype=torch.int64)
        data_kernels.read_windows(frames, windows, size, dtype, channels)
    for channels, dtype, transforms in itertools.product((1, 3), FLOATS, (TRANSFORMS, TRANSFORMS[:1], TRANSFORMS[1:])):
        values, numbers = _empty(32, 16, 64, 64, channels, dtype=dtype), _empty(32, 7)
        for transposed in (False, True):
            kind = Pass(frozenset(transforms), transposed=transposed, shifts=not transposed)
            augmentation_kernels.augment(values, numbers, kind)


def compile_ahead(launch: Launch, architecture: int) -> dict:
    """Compile a kernel, and return the resources that its machine code needs."""
    source = ASTSource(
        fn=KERNELS[launch.kernel],
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(position,): [["tt.divisibility", 16]] for position in launch.divisible},
    )
    options = {"num_warps": launch.warps, "maxnreg": launch.most_registers}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    needs = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout))
    widths = re.findall(r"ld\.global[^;]*?\.(?:v(\d))?\.?b(\d+)", compiled.asm["ptx"])
    return {
        "kernel": launch.kernel,
        "architecture": architecture,
        "constants": dict(launch.constants),
        "type": launch.signature[0][1],
        "warps": launch.warps,
        "registers": int(needs["REG"]),
        "shared": compiled.metadata.shared,
        "spilled": int(needs["STACK"]) + int(needs["LOCAL"]),
        "widest_load": max(int(vector or 1) * int(bits) // 8 for vector, bits in widths),
    }


def triton_resources(architectures: Sequence[int]) -> Iterator[dict]:
    """Yield the resources that every Triton kernel needs on every architecture."""
    found = launches()
    with ProcessPoolExecutor() as pool:
        jobs = found * len(architectures), [each for each in architectures for _ in found]
        yield from pool.map(compile_ahead, *jobs, chunksize=8)


def cuda_resources(architectures: Sequence[int]) -> Iterator[dict]:
    """Yield the resources that every CUDA kernel needs on every architecture."""
    setup = run_path(str(ROOT / "setup.py"))
    if reason := setup["why_without_cuda"]():
        sys.exit(f"the CUDA extension cannot be built here: {reason}")
    shared = dict(extension().shared_bytes(SIDE))
    source, command = ROOT / "csrc" / "cuda" / "singular_value_clip.cu", [setup["find_nvcc"](), *setup["COMPILE_FLAGS"]]
    for architecture in architectures:
        with tempfile.NamedTemporaryFile(suffix=".o") as file:
            options = [f"-arch=sm_{architecture}", "-Xptxas", "-v", "-c", "-o", file.name, str(source)]
            result = subprocess.run([*command, *options], capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr)
        for name, width, *spilled, registers in re.findall(USAGE, result.stderr, flags=re.DOTALL):
            kernel = f"{name}<{width}>" if width else name
            needs = {"registers": int(registers), "shared": shared[kernel], "spilled": sum(map(int, spilled))}
            yield {"kernel": kernel, "architecture": architecture, **needs}


def main(kernels: Literal["triton", "cuda"], /, architectures: tuple[int, ...] = ()) -> None:
    """Print a line with a JSON object for every kernel and architecture.

    Args:
        kernels: Kernels in Triton or in CUDA C++.
        architectures: Compute capabilities without the point, such as 90; by default all that the tests cover.
    """
    if kernels == "triton":
        found = triton_resources(architectures or TRITON_ARCHITECTURES)
    else:
        found = cuda_resources(architectures or CUDA_ARCHITECTURES)
    for entry in found:
        print(json.dumps(entry))


if __name__ == "__main__":
    tyro.cli(main)
