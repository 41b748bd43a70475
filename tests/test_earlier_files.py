"""Files of version 0.1.0 at commit b25d8c8 still load and mean the same: a run, its clip store, benchmark results.

Made there with

    tgan_fast prepare clips store --size 20
    tgan_fast.train --data store --frames 8 --image-size 16 --width 0.02 --latent-dim 8 --batch-size 2 --steps 4
        --seed 1 --crop centre --flip --ema-decay 0.9 --optimizer adam --learning-rate 7e-4 --conditional
        --temporal-generator gru --constraint spectral-norm --log-interval 1 --checkpoint-interval 4 --device cpu
    tgan_fast sample --checkpoint run --grid 2 --out sample.npy
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.commands import finish, start

from benchmarks.render import print_tables

EARLIER = Path(__file__).parent / "earlier_files"
# Of the two iterations that b25d8c8 did after these.
CONTINUED = [
    {"iteration": 5, "loss_discriminator": -0.192444, "loss_generator": 0.548441, "score_real": -0.279266},
    {"iteration": 6, "loss_discriminator": -0.122753, "loss_generator": 0.448148, "score_real": -0.280516},
]


def tgan_fast(*arguments, folder):
    code, out, err = finish(start(*arguments, folder=folder))
    assert code == 0, err
    return out


def test_a_run_continues_on_its_clip_store_as_it_would_have(tmp_path):
    run, store = shutil.copytree(EARLIER / "run", tmp_path / "run"), EARLIER / "store"
    tgan_fast("train", "--resume", run, "--data", store, "--steps", 6, folder=tmp_path)
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line, expected in zip(lines[4:], CONTINUED, strict=True):
        assert {name: line[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_its_generator_samples_the_same_videos(tmp_path):
    tgan_fast("sample", "--checkpoint", EARLIER / "run", "--grid", 2, "--out", "sample.npy", folder=tmp_path)
    found, expected = (np.load(folder / "sample.npy").astype(int) for folder in (tmp_path, EARLIER))
    assert np.abs(found - expected).max() <= 1


def test_its_report_and_its_settings_in_yaml_are_read(tmp_path):
    run = shutil.copytree(EARLIER / "run", tmp_path / "run")
    tgan_fast("report", run, folder=tmp_path)
    page = (run / "report.html").read_text()
    assert "spectral-norm" in page
    assert "centre" not in page, "its crop is the default, which is now spelled center"
    store = EARLIER / "store"
    tgan_fast("train", "--config", run / "config.yaml", "--data", store, "--out", "new", "--steps", 1, folder=tmp_path)


def test_a_clip_store_is_undamaged(tmp_path):
    assert tgan_fast("store", "verify", EARLIER / "store", folder=tmp_path).startswith("undamaged: 6 videos")


def test_benchmark_results_are_rendered(tmp_path, capsys):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    shutil.copy(EARLIER / "results.json", folder)
    print_tables(tmp_path)
    tables = capsys.readouterr().out
    assert "with clipping" in tables
    assert "rmsprop, float32" in tables
