"""Measuring block sizes anew: runs on a GPU or in Triton's interpreter; what it finds is its own business."""

import json

import pytest

pytest.importorskip("triton")

from benchmarks import tune_batch_norm_act
from tgan_fast.ops.batch_norm.tiles import table


@pytest.mark.slow
def test_tuning_writes_every_entry_and_not_over_the_table_in_use(tmp_path):
    """Two candidates on tiny tensors."""
    out = tmp_path / "tiles.json"
    tune_batch_norm_act.main(out, smoke=True)
    entries = json.loads(out.read_text())["tiles"]
    assert len(entries) == len(table())
    assert set(entries[0]) == {"kernel", "itemsize", "channels_last", "size", "rows", "columns", "warps", "programs"}
    with pytest.raises(SystemExit, match="give an --out other than the table in use"):
        tune_batch_norm_act.main(smoke=True)
