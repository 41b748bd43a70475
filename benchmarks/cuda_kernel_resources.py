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

from tgan_fast.ops.cuda_extension import extension

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90, 100)
SIDE = 512
USAGE = (
    r"entry function '_ZN\d+tgan_fast\d+([a-z_]+_kernel)(?:ILi(\d+)E)?\w*' for 'sm_\d+'.*?(\d+) bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
)


def main() -> None:
    """Print a JSON object for every kernel and architecture, one a line."""
    setup = run_path(str(ROOT / "setup.py"))
    if reason := setup["why_without_cuda"]():
        sys.exit(f"the CUDA extension cannot be built here: {reason}")
    shared = dict(extension().shared_bytes(SIDE))
    source, command = ROOT / "csrc" / "singular_value_clip.cu", [setup["find_nvcc"](), *setup["COMPILE_FLAGS"]]
    for architecture in ARCHITECTURES:
        with tempfile.NamedTemporaryFile(suffix=".o") as file:
            options = [f"-arch=sm_{architecture}", "-Xptxas", "-v", "-c", "-o", file.name, str(source)]
            result = subprocess.run([*command, *options], capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr)
        for name, width, *spilled, registers in re.findall(USAGE, result.stderr, flags=re.DOTALL):
            kernel = f"{name}<{width}>" if width else name
            needs = {"registers": int(registers), "shared": shared[kernel], "spilled": sum(map(int, spilled))}
            print(json.dumps({"kernel": kernel, "architecture": architecture, **needs}))


if __name__ == "__main__":
    main()
