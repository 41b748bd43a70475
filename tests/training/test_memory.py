"""How large a batch fits: the estimate against what is really used."""

import pytest
import torch

from benchmarks import peak_memory
from tgan_fast.errors import InputError
from tgan_fast.training import TrainingConfig, memory, train
from tgan_fast.training.build import build_step
from tgan_fast.training.memory import bytes_needed, out_of_memory, refuse_too_large_a_batch

CONFIG = TrainingConfig(
    width=0.0625, latent_dim=8, channels=1, digits=1, batch_size=100_000, device="cpu", precision="fp32", workers=1
)

WIDER = TrainingConfig(width=0.25, channels=1, precision="fp32", clip_interval=0)


def reported_growth(batch_size):
    step = build_step(WIDER, torch.device("cpu"))
    step(torch.zeros(2, 1, 16, 64, 64))
    return peak_memory.growth(lambda: step(torch.zeros(batch_size, 1, 16, 64, 64)))


@pytest.mark.slow
def test_the_need_on_a_cpu_is_about_what_the_system_reports():
    batch_size = 64
    (reported,) = peak_memory.in_processes(reported_growth, [batch_size])
    step = build_step(WIDER, torch.device("cpu"))
    counted = bytes_needed(step, batch_size) - bytes_needed(step, 2)
    # What oneDNN takes for itself is not counted.
    assert 0.6 < counted / reported < 1.2


def test_the_need_grows_in_proportion_to_the_videos():
    step = build_step(CONFIG.model_copy(update={"clip_interval": 0}), torch.device("cpu"))
    needs = [bytes_needed(step, videos) for videos in (16, 32, 64)]
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
