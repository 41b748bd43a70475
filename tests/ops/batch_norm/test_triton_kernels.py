"""All Triton kernels compile ahead of time for three GPU architectures, without a GPU."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from tgan_fast.choices import ActivationName
from tgan_fast.ops.batch_norm.tiles import table

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]
REGISTERS_OF_A_MULTIPROCESSOR = 65536


@pytest.fixture(scope="module")
def resources():
    """Compile in another process, because this one may use Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "triton"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_every_kernel_compiles_within_the_registers(resources):
    assert {entry["architecture"] for entry in resources} == {80, 90, 100}
    for entry in resources:
        assert entry["spilled"] == 0, entry
        assert entry["registers"] * entry["warps"] * 32 <= REGISTERS_OF_A_MULTIPROCESSOR, entry
        assert entry["shared"] <= 48 * 1024, entry


@pytest.mark.slow
def test_every_entry_of_the_table_was_compiled(resources):
    compiled = {
        (
            entry["kernel"],
            entry["type"] == "*fp32",
            entry["constants"].get("CHANNELS_LAST"),
            entry["constants"]["BLOCK_ROWS"],
            entry["constants"]["BLOCK_COLS"],
            entry["warps"],
        )
        for entry in resources
        if "BLOCK_ROWS" in entry["constants"]
    }
    for key, tile in table().items():
        layout = None if "small" in key.kernel else key.channels_last
        wanted = f"{key.kernel}_kernel", key.itemsize == 4, layout, tile.rows, tile.columns, tile.warps
        assert wanted in compiled, key


@pytest.mark.slow
def test_every_option_was_compiled(resources):
    """Triton compiles the kernels anew for each option, and its interpreter accepts more than its compiler."""

    def options(kernel, name):
        return {entry["constants"].get(name, "given") for entry in resources if entry["kernel"] == kernel}

    slopes, activations = {0.0, 0.2, 1.0}, set(get_args(ActivationName))
    for kernel in ("normalize", "gradient_sums", "input_gradient", "small_forward", "small_backward"):
        assert options(f"{kernel}_kernel", "NEGATIVE_SLOPE") == slopes, kernel
        assert options(f"{kernel}_kernel", "ACTIVATION") == activations, kernel
        assert options(f"{kernel}_kernel", "weight") == {None, "given"}
    for kernel in ("normalize", "gradient_sums", "small_forward", "small_backward"):
        found = {
            (entry["constants"]["ACTIVATION"], "residual" in entry["constants"])
            for entry in resources
            if entry["kernel"] == f"{kernel}_kernel"
        }
        assert found == set(product(activations, (True, False))), kernel
    for kernel in ("normalize", "gradient_sums", "input_gradient", "combine_statistics", "combine_gradients"):
        for name in ("rstd", "var"):
            assert options(f"{kernel}_kernel", name) == {None, "given"}, (kernel, name)
    for kernel in ("combine_statistics", "small_forward"):
        for name in ("running_mean", "batches", "momentum"):
            assert options(f"{kernel}_kernel", name) == {None, "given"}, (kernel, name)
    for kernel in ("combine_statistics", "combine_gradients", "small_forward", "small_backward"):
        assert options(f"{kernel}_kernel", "groups") == {1, "given"}, kernel
    for kernel in ("combine_gradients", "small_backward"):
        for name in ("dweight", "dbias"):
            assert options(f"{kernel}_kernel", name) == {None, "given"}, (kernel, name)
    assert options("small_backward_kernel", "dx") == {None, "given"}
    assert options("input_gradient_kernel", "sums") == {None, "given"}


@pytest.mark.slow
def test_large_tensors_are_read_sixteen_bytes_at_a_time(resources):
    walking = {"statistics_kernel", "normalize_kernel", "gradient_sums_kernel", "input_gradient_kernel"}
    for entry in resources:
        # The largest number that divides all rows and strides: four channels in half precision are eight bytes.
        alignment = entry["constants"].get("ALIGNMENT", 0) * (4 if entry["type"] == "*fp32" else 2)
        if entry["kernel"] in walking and alignment >= 16:
            assert entry["widest_load"] == 16, entry
