"""The search for block sizes runs on a GPU or in Triton's interpreter; its findings are not checked."""

import pytest

pytest.importorskip("triton")

from benchmarks import tune_batch_norm_act as tuner
from tgan_fast.ops.batch_norm import tiles

KERNELS = {key.kernel: key for key in reversed(tiles.table()) if key.itemsize == 4}


@pytest.fixture
def device(monkeypatch, triton_device):
    small = {"TENSOR": 1 << 12, "CHANNELS": 4, "ROUNDS": 2, "WARPS": (1, 4), "PROGRAMS": (2,), "ELEMENTS": (1024,)}
    for name, value in small.items():
        monkeypatch.setattr(tuner, name, value)
    monkeypatch.setattr("benchmarks.harness.input_set_count", lambda nbytes, device: 1)
    return triton_device.type


@pytest.mark.parametrize("key", KERNELS.values(), ids=KERNELS)
def test_tiles_compute_the_same(key, device):
    candidates = tuner.candidates_for(key)
    assert len(set(candidates)) > 1
    assert tuner.usable(key, candidates[:2], tuner.inputs_for(key, device)) == candidates[:2]


def test_an_entry_changes_only_for_a_gain(device):
    key = KERNELS["normalize"]
    present = tiles.table()[key]
    tile, gain = tuner.tune(key, device)
    assert (tile == present) == (gain == 1)
    assert tiles.table()[key] == present


def test_a_written_table_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "TABLE", tmp_path / "tiles.json")
    tuner.write_tiles(tiles.TABLE, tiles.table(), "a GPU")
    assert tiles.table.__wrapped__() == tiles.table()
