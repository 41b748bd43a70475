"""Tests of csrc/cuda compiled with nvcc, where nvcc is installed; no GPU is needed."""

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
import torch

from tgan_fast.ops import BackendError, backends, singular_value_clip_
from tgan_fast.ops.cuda_extension import extension

ROOT = Path(__file__).resolve().parents[2]
BUILD = run_path(str(ROOT / "setup.py"))
REGISTERS_OF_A_MULTIPROCESSOR = 65536
# threads per block, and blocks per multiprocessor that its registers must leave room for
LAUNCHES = {
    "quantize_kernel": (1024, 2),
    "gram_kernel": (256, 1),
    "shrinkage_kernel": (256, 1),
    "apply_kernel<64>": (256, 1),
    "apply_kernel<32>": (128, 1),
}

needs_extension = pytest.mark.skipif(
    BUILD["why_without_cuda"]() is not None, reason=f"built without the extension: {BUILD['why_without_cuda']()}"
)


@needs_extension
@pytest.mark.slow
def test_no_kernel_spills_and_all_fit():
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "cuda"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {(entry["kernel"], entry["architecture"]) for entry in found} == {
        (kernel, architecture) for kernel in LAUNCHES for architecture in (80, 86, 89, 90, 100, 120)
    }
    for entry in found:
        threads, blocks = LAUNCHES[entry["kernel"]]
        assert entry["spilled"] == 0, entry
        assert entry["registers"] * threads * blocks <= REGISTERS_OF_A_MULTIPROCESSOR, entry
        assert entry["shared"] <= 163 * 1024, entry  # what a block on sm_80 may have


@needs_extension
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_driver_the_extension_loads_and_a_call_says_what_is_missing():
    *_, error = extension().prepare(0)
    assert error
    if not has_driver():
        assert error == "no CUDA driver is installed"
    assert backends()["singular_value_clip"]["cuda"] == f"the CUDA extension finds no GPU: {error}"
    with pytest.raises(BackendError, match=f"backend 'cuda' cannot be used: the CUDA extension finds no GPU: {error}"):
        singular_value_clip_([torch.ones(2, 2)], backend="cuda")


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        pytest.param(
            ["tgan_fast"],
            "the {kind} extension was not built: install tgan_fast again with {needs}, and TGAN_FAST_NO_{kind} unset",
            id="installed",
        ),
        pytest.param(
            ["tgan_fast", "csrc"],
            "Python imports tgan_fast from the source tree {tree}, where the {kind} extension was not built: run "
            "`pip install --no-build-isolation -e .` there with {needs}, and TGAN_FAST_NO_{kind} unset, or run from "
            "another folder if tgan_fast is installed elsewhere",
            id="source tree",
        ),
    ],
)
def test_without_the_extensions_the_error_names_the_remedy(tmp_path, folders, reason):
    """The package is copied to a folder that Python finds before the installed one."""
    for folder in folders:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    program = (
        "import sys, torch; sys.modules['tgan_fast._cpu'] = sys.modules['tgan_fast._cuda'] = None\n"
        "from tgan_fast.ops import backends, batch_norm_act, singular_value_clip\n"
        "print(backends()['batch_norm_act']['cpu'])\n"
        "print(backends()['singular_value_clip']['cuda'])\n"
        "assert batch_norm_act(torch.randn(64, 4, 8, 8), None, None).isfinite().all()\n"
        "print(torch.linalg.svdvals(singular_value_clip(torch.eye(3) * 2)).max().item())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    needs = {"CPU": "a C++ compiler on PATH or in CXX and Python's headers", "CUDA": "nvcc on PATH or CUDA_HOME set"}
    expected = [reason.format(kind=kind, needs=needs[kind], tree=tmp_path) for kind in needs]
    assert result.stdout.splitlines() == [*expected, "1.0"]
