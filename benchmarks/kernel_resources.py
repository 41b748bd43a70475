"""Registers, shared memory and spills of every Triton kernel, for every tile of the table, without a GPU.

    python -m benchmarks.kernel_resources

The launchers run on tensors without memory while their launches are recorded; each is then compiled ahead of time.
"""

import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import tyro
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tgan_fast.data import kernels as data_kernels
from tgan_fast.ops import optimizer_kernels, video_levels_kernels
from tgan_fast.ops.batch_norm import kernels as batch_norm_kernels
from tgan_fast.ops.batch_norm import launch as launchers
from tgan_fast.ops.batch_norm.geometry import laid_out
from tgan_fast.ops.batch_norm.tiles import Key, table

ARCHITECTURES = (80, 90, 100)
MULTIPROCESSORS = 132
EPS = 1e-5
_FLOATS = torch.float32, torch.bfloat16, torch.float16
_KERNELS = {
    name: (module, kernel)
    for module in (batch_norm_kernels, optimizer_kernels, video_levels_kernels, data_kernels)
    for name, kernel in vars(module).items()
    if name.endswith("_kernel")
}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


class Launch(NamedTuple):
    """What decides the machine code of a kernel."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[int, ...]  # positions of arguments that 16 divides
    warps: int

    @classmethod
    def of(cls, kernel, arguments, constants, warps):
        """As Triton specialises it: a None, a 1 and whether 16 divides a pointer or a number are compiled in."""
        signature, divisible = [], []
        for position, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
            specialised = name not in kernel.do_not_specialize
            if value is None or (type(value) is int and value == 1 and specialised):
                constants[name] = value
                signature.append((name, "constexpr"))
                continue
            if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0 and specialised):
                divisible.append(position)
            signature.append((name, _type_of(value)))
        signature += [(name, "constexpr") for name in kernel.arg_names[len(arguments) :]]
        return cls(kernel.__name__, tuple(signature), tuple(constants.items()), tuple(divisible), warps)


def _type_of(value):
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if value < 2**31 else "i64"


class _Recorder:
    """Stands in for a kernel and notes its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, **constants):
            self.launches.setdefault(Launch.of(self.kernel, arguments, constants, num_warps))

        return launch


def launches() -> list[Launch]:
    """Every entry of the table as in training with common options, and every option on a tensor of each kind."""
    found: dict[Launch, None] = {}
    multiprocessors = launchers._multiprocessors
    try:
        launchers._multiprocessors = lambda device: MULTIPROCESSORS
        for name, (module, kernel) in _KERNELS.items():
            setattr(module, name, _Recorder(kernel, found))
        for case in _cases():
            _train_and_back(_tensor(*case))
        for x in _tensors_of_every_kind():
            _run_every_option(x)
        _run_optimizers()
        _run_levels()
        _run_windows()
    finally:
        launchers._multiprocessors = multiprocessors
        for name, (module, kernel) in _KERNELS.items():
            setattr(module, name, kernel)
    return list(found)


def _cases() -> Iterator[tuple[tuple[int, ...], bool, torch.dtype]]:
    """A shape for each entry of the table, and two with more rows or columns than 32 bits can count."""
    yield (2**31 + 16, 64), True, torch.bfloat16
    yield (1, 2, 2**31 + 16), False, torch.bfloat16
    for key in dict.fromkeys(Key("", *key[1:]) if "small" not in key.kernel else key for key in table()):
        for dtype in (torch.float32,) if key.itemsize == 4 else (torch.bfloat16, torch.float16):
            if key.kernel:
                yield (key.size, 64), True, dtype
                yield (1, 64, key.size), False, dtype
            elif key.channels_last:
                yield (64, key.size, 32, 32), True, dtype
            else:
                yield (512, 64, key.size), False, dtype


def _tensors_of_every_kind() -> Iterator[torch.Tensor]:
    """For both families of kernels in both layouts, and for sizes of 1, which are compiled in."""
    half = torch.bfloat16
    yield _tensor((64, 64, 32, 32), True, half)
    yield _tensor((512, 64, 16), False, half)
    yield _tensor((64, 64), True, half)
    yield _tensor((2, 64, 64), False, half)
    yield _tensor((2, 1, 10007), False, half)
    yield _tensor((64, 4), False, half).t()


def _tensor(shape, channels_last, dtype):
    x = torch.empty(shape, dtype=dtype, device="meta")
    return laid_out(x, channels_last=True) if channels_last else x


def _train_and_back(x, slope=0.2, parameters=torch.float32, momentum=0.1, groups=1):
    """A training step with everything that a layer can have."""
    channel = torch.empty(x.shape[1], dtype=parameters, device="meta")
    statistics = torch.empty(groups, x.shape[1], device="meta")
    batches = torch.zeros((), dtype=torch.int64, device="meta")
    launchers._train(x, channel, channel, channel, channel, batches, momentum, EPS, slope, groups)
    launchers._backward(x, x, statistics, statistics, channel, channel, slope, None, True, True, True)


def _run_every_option(x):
    for slope in (0.0, 1.0):
        _train_and_back(x, slope=slope)
    _train_and_back(x, parameters=x.dtype)
    _train_and_back(x, momentum=None)
    _train_and_back(x, groups=2)
    channel = torch.empty(x.shape[1], device="meta")
    # Neither parameters nor running statistics, and what the processes of a group have of their own.
    launchers._train(x, None, None, None, None, None, None, EPS, 0.2, 1)
    launchers.statistics(x, 1)
    launchers.statistics(x[:1], 1)
    for want_x, want_weight, want_bias in ((True, False, False), (False, True, False), (False, False, True)):
        for eps in (None, EPS):
            wanted = want_x, want_weight, want_bias
            launchers._backward(x, x, channel, channel, channel, channel, 0.2, eps, *wanted)
    launchers._backward(x, x, channel, channel, None, None, 0.2, None, True, False, False)
    for slope in (0.0, 0.2, 1.0):
        launchers.normalize(x, channel, channel, channel, channel, slope, EPS)


def _run_optimizers():
    """Every dtype of gradients and copies; lengths that 16 divides, others, and more than 32 bits can count.

    With the learning rate as a number, and in the device's memory.
    """
    gradients, copies = _FLOATS, (None, *_FLOATS[1:])
    alike = list(zip(gradients, copies, strict=True))
    every = list(itertools.product(gradients, copies))
    lengths = (1, alike), (1001, alike), (1 << 20, every), (2**31 + 16, alike)
    for (length, pairs), in_memory in itertools.product(lengths, (False, True)):
        for gradient, copy in pairs:
            p, g = (torch.empty(length, dtype=dtype, device="meta") for dtype in (torch.float32, gradient))
            c = copy and torch.empty(length, dtype=copy, device="meta")
            rate = p.new_zeros(()) if in_memory else 1e-3
            optimizer_kernels.rmsprop(p, g, p, c, rate, 0.99, 1e-8)
            optimizer_kernels.adam(p, g, p, p, p.new_zeros(()), c, rate, 0.9, 0.999, 1e-8)


def _run_levels():
    for length, dtype in itertools.product((1, 1001, 1 << 20, 2**31 + 16), _FLOATS):
        video_levels_kernels.tanh_to_levels(torch.empty(length, dtype=dtype, device="meta"))


def _run_windows():
    """Coloured frames; grey ones in one layer and in two, as they are and widened; small images and large ones."""
    kinds, sizes = ((3, 1, 3), (1, 1, 1), (1, 2, 3)), (16, 64)
    for (colours, layers, channels), size, dtype in itertools.product(kinds, sizes, _FLOATS):
        frames = torch.empty((100, 64, 85, colours), dtype=torch.uint8, device="meta")
        windows = torch.empty((32, layers, 16, 4), dtype=torch.int64, device="meta")
        data_kernels.read_windows(frames, windows, size, dtype, channels)


def compile_ahead(launch: Launch, architecture: int) -> dict:
    """Compile and read what the machine code needs."""
    source = ASTSource(
        fn=_KERNELS[launch.kernel][1],
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(position,): [["tt.divisibility", 16]] for position in launch.divisible},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": launch.warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    needs = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage.stdout))
    widths = re.findall(r"ld\.global[^;]*?\.(v\d)?\.?b(\d+)", compiled.asm["ptx"])
    return {
        "kernel": launch.kernel,
        "architecture": architecture,
        "constants": dict(launch.constants),
        "type": launch.signature[0][1],
        "warps": launch.warps,
        "registers": int(needs["REG"]),
        "shared": compiled.metadata.shared,
        "spilled": int(needs["STACK"]) + int(needs["LOCAL"]),
        "widest_load": max((int(vector[1:] or 1) if vector else 1) * int(bits) // 8 for vector, bits in widths),
    }


def resources(architectures=ARCHITECTURES) -> list[dict]:
    """What every launch needs on every architecture."""
    jobs = [(launch, architecture) for launch in launches() for architecture in architectures]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(compile_ahead, *zip(*jobs, strict=True), chunksize=8))


def main(json_lines: bool = False) -> None:
    """Print a line for every kernel and architecture.

    Args:
        json_lines: print JSON, one object a line, with everything that is known.
    """
    found = resources()
    for entry in found:
        if json_lines:
            print(json.dumps(entry))
        else:
            constants = entry["constants"]
            print(
                f"sm_{entry['architecture']:<4}{entry['kernel']:28}{entry['type']:6}"
                f"{constants.get('BLOCK_ROWS', ''):>5} x {constants.get('BLOCK_COLS', ''):<5}{entry['warps']:2} warps  "
                f"{entry['registers']:4} registers  {entry['shared']:6} B shared  {entry['spilled']:4} B spilled  "
                f"loads of up to {entry['widest_load']:2} B"
            )
    if not json_lines:
        spilling = sum(entry["spilled"] > 0 for entry in found)
        print(f"{len(found)} kernels, {spilling} of them spill registers")


if __name__ == "__main__":
    tyro.cli(main)
