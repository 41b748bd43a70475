"""Registers, shared memory and spills of the CUDA kernels in csrc/, without a GPU.

    python -m benchmarks.cuda_kernel_resources

Each is compiled with the flags of setup.py; shared memory is what a launch for TGAN's largest weight asks for.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

from tgan_fast.ops.cuda_extension import extension

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90, 100)
SIDE = 512


def resources(flags: list[str], nvcc: str) -> Iterator[dict]:
    """Yield the needs of every kernel on every architecture."""
    shared = dict(extension().shared_bytes(SIDE))
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            command = [nvcc, *flags, f"-arch=sm_{architecture}", "-Xptxas", "-v", "-c", "-o", f"{folder}/kernels.o"]
            command.append(str(ROOT / "csrc" / "singular_value_clip.cu"))
            result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(result.stderr)
        found = re.findall(
            r"entry function '_ZN\d+tgan_fast\d+([a-z_]+_kernel)(?:ILi(\d+)E)?\w*' for 'sm_\d+'.*?(\d+) bytes stack "
            r"frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
            result.stderr,
            flags=re.DOTALL,
        )
        for name, width, *spilled, registers in found:
            kernel = f"{name}<{width}>" if width else name
            needs = {"registers": int(registers), "shared": shared[kernel], "spilled": sum(map(int, spilled))}
            yield {"kernel": kernel, "architecture": architecture, **needs}


def main() -> None:
    """Print a JSON object for every kernel and architecture, one a line."""
    setup = run_path(str(ROOT / "setup.py"))
    if reason := setup["why_without_cuda"]():
        sys.exit(f"the CUDA extension cannot be built here: {reason}")
    for entry in resources(setup["COMPILE_FLAGS"], setup["find_nvcc"]()):
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
