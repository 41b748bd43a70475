"""Registers, shared memory and spills of the CUDA kernels in csrc/, without a GPU.

    python -m benchmarks.cuda_kernel_resources

Each is compiled with the flags of setup.py; shared memory is what a launch for TGAN's largest weight asks for.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from runpy import run_path

import tyro

from tgan_fast.ops.cuda_extension import extension

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90, 100)
SIDE = 512
SETUP = run_path(str(ROOT / "setup.py"))


def resources(nvcc: str, architecture: int) -> list[dict]:
    """What every kernel needs on one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *SETUP["COMPILE_FLAGS"], f"-arch=sm_{architecture}", "-Xptxas", "-v", "-c"]
        command += [str(ROOT / "csrc" / "singular_value_clip.cu"), "-o", str(Path(folder, "kernels.o"))]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)
    shared = dict(extension().shared_bytes(SIDE))
    entries = re.findall(
        r"entry function '(\w+)' for 'sm_\d+'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        result.stderr,
        flags=re.DOTALL,
    )
    return [
        {
            "kernel": (kernel := _name(mangled)),
            "architecture": architecture,
            "registers": int(registers),
            "shared": shared[kernel],
            "spilled": int(stack) + int(stores) + int(loads),
        }
        for mangled, stack, stores, loads, registers in entries
    ]


def _name(mangled):
    name, width = re.match(r"_ZN\d+tgan_fast\d+([a-z_]+_kernel)(?:ILi(\d+)E)?", mangled).groups()
    return f"{name}<{width}>" if width else name


def main(json_lines: bool = False) -> None:
    """Print a line for every kernel and architecture.

    Args:
        json_lines: print JSON, one object a line.
    """
    if reason := SETUP["why_without_cuda"]():
        sys.exit(f"the CUDA extension cannot be built here: {reason}")
    nvcc = SETUP["find_nvcc"]()
    for architecture in ARCHITECTURES:
        for entry in resources(nvcc, architecture):
            if json_lines:
                print(json.dumps(entry))
                continue
            print(
                f"sm_{architecture:<4}{entry['kernel']:18}{entry['registers']:4} registers  "
                f"{entry['shared']:6} B shared  {entry['spilled']:3} B spilled"
            )


if __name__ == "__main__":
    tyro.cli(main)
