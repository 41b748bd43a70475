"""What the kernels become on GPUs that need not be there: compiled ahead of time for three of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgan_fast.ops.batch_norm.tiles import table

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]
REGISTERS_OF_A_MULTIPROCESSOR = 65536


@pytest.fixture(scope="module")
def resources():
    """In a process of its own, since this one may have decided for Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "--json-lines"]
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
        (entry["kernel"], entry["type"] == "*fp32", entry["constants"]["BLOCK_ROWS"], entry["constants"]["BLOCK_COLS"])
        for entry in resources
        if "BLOCK_ROWS" in entry["constants"]
    }
    for key, tile in table().items():
        assert (f"{key.kernel}_kernel", key.itemsize == 4, tile.rows, tile.columns) in compiled, key


@pytest.mark.slow
def test_large_tensors_are_read_sixteen_bytes_at_a_time(resources):
    walking = {"statistics_kernel", "normalize_kernel", "gradient_sums_kernel", "input_gradient_kernel"}
    for entry in resources:
        # Four channels in half precision are eight bytes, and then comes the next row.
        whole = entry["constants"].get("BLOCK_COLS", 0) * (4 if entry["type"] == "*fp32" else 2) >= 16
        if entry["kernel"] in walking and whole:
            assert entry["widest_load"] == 16, entry
