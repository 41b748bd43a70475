"""Measuring block sizes anew: runs on a GPU or in Triton's interpreter; what it finds is its own business."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgan_fast.ops.batch_norm.tiles import table

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, **environment):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.slow
def test_tuning_of_tiles(tmp_path):
    """Two candidates on tiny tensors, on a GPU or in Triton's interpreter."""
    pytest.importorskip("triton")
    out = tmp_path / "tiles.json"
    result = run("benchmarks.tune_batch_norm_act", "--smoke", "--out", out)
    assert result.returncode == 0, result.stderr[-3000:]
    entries = json.loads(out.read_text())["tiles"]
    assert len(entries) == len(table())
    assert set(entries[0]) == {"kernel", "itemsize", "channels_last", "size", "rows", "columns", "warps", "programs"}


@pytest.mark.slow
def test_tuning_refuses_what_would_spoil_the_table():
    pytest.importorskip("triton")
    result = run("benchmarks.tune_batch_norm_act", "--smoke")
    assert result.returncode == 1
    assert "give an --out other than the table in use" in result.stderr
