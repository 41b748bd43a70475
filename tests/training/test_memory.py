"""How large a batch fits: the estimate against what is really used."""

import subprocess
import sys

import pytest
import torch

from tgan_fast.errors import InputError
from tgan_fast.training import TrainingConfig, memory, train
from tgan_fast.training.loop import build_step
from tgan_fast.training.memory import bytes_needed, out_of_memory, refuse_too_large_a_batch

CONFIG = TrainingConfig(
    width=0.0625, latent_dim=8, channels=1, digits=1, batch_size=100_000, device="cpu", precision="fp32", workers=1
)

# A process of its own. The system's record of the most memory that it had is begun anew before the iteration.
MEASURED = """
import re, sys, torch
from pathlib import Path
from tgan_fast.training import TrainingConfig
from tgan_fast.training.loop import build_step

def most():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

config = TrainingConfig(width=0.25, channels=1, precision="fp32", clip_interval=0)
step = build_step(config, torch.device("cpu"))
step(torch.zeros(2, 1, 16, 64, 64))
Path("/proc/self/clear_refs").write_text("5")
before = most()
step(torch.zeros(int(sys.argv[1]), 1, 16, 64, 64))
print(most() - before)
"""


@pytest.mark.slow
def test_the_need_on_a_cpu_is_about_what_the_system_reports():
    batch_size = 64
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, str(batch_size)], capture_output=True, text=True, check=True
    )
    reported = int(result.stdout)
    config = TrainingConfig(width=0.25, channels=1, precision="fp32", clip_interval=0)
    step = build_step(config, torch.device("cpu"))
    counted = bytes_needed(step, batch_size) - bytes_needed(step, 2)
    # What oneDNN takes for itself is not counted.
    assert 0.6 < counted / reported < 1.2


def test_the_need_grows_in_proportion_to_the_videos():
    step = build_step(CONFIG.model_copy(update={"clip_interval": 0}), torch.device("cpu"))
    needs = [bytes_needed(step, videos) for videos in (8, 16, 32)]
    assert needs[2] - needs[1] == pytest.approx(2 * (needs[1] - needs[0]), rel=0.05)


def test_a_batch_that_a_cpu_cannot_hold_is_refused_with_one_that_it_can(tmp_path):
    with pytest.raises(
        InputError, match=r"^a batch of 100000 videos does not fit into this machine's memory; about "
    ) as e:
        train(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fitting = int(str(e.value).split()[-3])
    assert 0 < fitting < 100_000
    refuse_too_large_a_batch(CONFIG.model_copy(update={"batch_size": fitting // 2}), torch.device("cpu"), build_step)


def test_systems_that_do_not_tell_what_is_free_are_asked_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "missing")
    fitting = int(out_of_memory(CONFIG, torch.device("cpu"), build_step, 1).split()[-3])
    assert 0 < fitting < 100_000


@pytest.mark.gpu
def test_a_gpu_that_runs_out_of_memory_says_what_fits_and_it_does(tmp_path):
    config = CONFIG.model_copy(update={"width": 1.0, "device": "cuda", "precision": "auto", "batch_size": 20_000})
    with pytest.raises(
        InputError, match=r"^a batch of 20000 videos does not fit into the memory of .*; about \d+ would"
    ):
        train(config, tmp_path / "run")
    fitting = int(out_of_memory(config, torch.device("cuda"), build_step, 1).split()[-3])
    step = build_step(config.model_copy(update={"cuda_graph": "off"}), torch.device("cuda"))
    step(torch.zeros(int(0.9 * fitting), 1, 16, 64, 64, device="cuda"))
