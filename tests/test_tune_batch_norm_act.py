"""Measuring block sizes anew: runs on a GPU or in Triton's interpreter; what it finds is its own business."""

import pytest

pytest.importorskip("triton")

from benchmarks import tune_batch_norm_act as tuner
from tgan_fast.ops.batch_norm import tiles

KERNELS = {key.kernel: key for key in reversed(tiles.table()) if key.itemsize == 4}


@pytest.mark.slow
@pytest.mark.parametrize("key", KERNELS.values(), ids=KERNELS)
def test_an_entry_is_measured_with_tiles_that_compute_the_same(key, monkeypatch, triton_device):
    small = {"TENSOR": 1 << 12, "CHANNELS": 4, "ROUNDS": 2, "WARPS": (1, 4), "PROGRAMS": (2,)}
    for name, value in {**small, "ELEMENTS": (1024,), "SMALL_COLUMNS": {True: (8,), False: (2,)}}.items():
        monkeypatch.setattr(tuner, name, value)
    monkeypatch.setattr("benchmarks.harness.input_set_count", lambda nbytes, device: 1)
    present = tiles.table()[key]
    candidates = tuner.candidates_for(key)
    assert len(set(candidates)) > 1
    assert tuner.usable(key, candidates, tuner.inputs_for(key, triton_device.type)) == candidates
    tile, gain = tuner.tune(key, triton_device.type)
    assert gain >= 1
    assert (tile == present) == (gain == 1)
    assert tiles.table()[key] == present


def test_a_written_table_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "TABLE", tmp_path / "tiles.json")
    tuner.write(tiles.TABLE, tiles.table(), "a GPU")
    assert tiles.table.__wrapped__() == tiles.table()
