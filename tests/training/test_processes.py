"""Several processes train what one trains: here two on a CPU, through gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from two_processes import outcomes_of_two

from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.data.order import BatchOrder
from tgan_fast.errors import InputError
from tgan_fast.training import PRESETS, TrainingConfig, TrainingStep, train
from tgan_fast.training.checkpoint import read_run
from tgan_fast.training.objectives import Vanilla
from tgan_fast.training.optimizers import Adam
from tgan_fast.training.processes import Processes, joined

WIDTH, LATENT, BATCH, ITERATIONS = 0.03125, 6, 4, 4
CASES = {
    "synchronised": {"sync_batch_norm": True},
    "shared fakes": {"sync_batch_norm": True, "shared_fakes": True, "ema_decay": 0.5, "optimizer": Adam},
    "critics": {
        "sync_batch_norm": True,
        "critic_steps": 2,
        "objective": Vanilla(),
        "input_noise": 0.3,
        "decay_steps": ITERATIONS,
    },
    "own statistics": {},
}


def step_of(processes, **options):
    """In float64, so that nothing hides behind rounding."""
    torch.manual_seed(0)
    generator, discriminator = VideoGenerator(WIDTH, LATENT, 1).double(), VideoDiscriminator(WIDTH, 1).double()
    # A batch norm's running variance must not be what it is at the start, or the constraint would hide differences.
    return TrainingStep(generator, discriminator, clip_interval=2, processes=processes, seed=3, **options)


def trained(processes, **options):
    """Losses and the state after some iterations on this process's part of every batch."""
    step, random, losses = step_of(processes, **options), torch.Generator().manual_seed(1), []
    parts = options.get("critic_steps", 1)
    order = BatchOrder(BATCH, BATCH // parts, parts=parts, rank=processes.rank, world_size=processes.size)
    for _ in range(ITERATIONS):
        videos = torch.rand(BATCH, 1, 16, 64, 64, generator=random, dtype=torch.float64) * 2 - 1
        step(videos[order.part])
        losses.append(step.scalars.clone())
    step.check_equality()
    return torch.stack(losses), step.state_dict()


def outcome(rank):
    torch.set_num_threads(1)
    processes = Processes(dist.group.WORLD)
    results = {name: trained(processes, **options) for name, options in CASES.items()}
    step = step_of(processes)
    if rank == 1:
        with torch.no_grad():
            next(step.generator.parameters())[0] += 1e-9
    try:
        step.check_equality()
    except RuntimeError as error:
        results["error"] = str(error)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return outcomes_of_two(outcome, tmp_path_factory.mktemp("processes"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_processes_end_with_the_same_bits(results, name):
    (losses, state), (other_losses, other_state) = (result[name] for result in results)
    assert torch.equal(losses, other_losses)
    torch.testing.assert_close(state, other_state, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synchronised", "shared fakes", "critics"])
def test_with_synchronised_batch_norm_they_train_as_one_process_does(results, name):
    losses, state = results[0][name]
    expected_losses, expected = trained(Processes(), **CASES[name])
    torch.testing.assert_close(losses, expected_losses, rtol=1e-9, atol=1e-12)
    for network in ("generator", "discriminator"):
        for key, value in expected[network].items():
            # A convolution's bias in front of a batch norm has rounding for a gradient, which optimisers enlarge.
            torch.testing.assert_close(state[network][key], value, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.slow
def test_without_it_statistics_differ_from_those_of_one_process(results):
    """So that the test above shows something."""
    expected, _ = trained(Processes())
    assert (results[0]["own statistics"][0] - expected).abs().max() > 1e-4


@pytest.mark.slow
def test_processes_that_have_drifted_apart_are_named(results):
    for result in results:
        assert "the networks of the processes [1] are no longer those of process 0" in result["error"]


CONFIG = {
    "width": 0.03125,
    "latent_dim": 4,
    "channels": 1,
    "digits": 1,
    "batch_size": 4,
    "learning_rate": 5e-5,
    "ema_decay": 0.5,
    "sync_batch_norm": True,
    "workers": 1,
    "device": "cpu",
    "log_interval": 2,
    "checkpoint_interval": 2,
    "sample_interval": 100,
}


def torchrun(folder, *arguments, processes=2, program=("-m", "tgan_fast.train")):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in CONFIG.items() if value is not True]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [*program, *options, "--sync-batch-norm", "--out", str(folder), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return {line["iteration"]: (line["loss_discriminator"], line["loss_generator"]) for line in lines}


@pytest.mark.slow
def test_a_folder_that_is_refused_ends_all_processes_in_a_sentence(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "iteration-00000001.pt").touch()
    result = torchrun(tmp_path, "--steps=2")
    assert result.returncode != 0
    assert f"error: {tmp_path} holds another run: continue it with --resume" in result.stderr
    assert "error of process 1: process 0 cannot begin, and says why" in result.stderr
    assert "gloo" not in result.stderr


@pytest.mark.slow
def test_torchrun_trains_as_one_process_does_and_resumes_exactly(tmp_path):
    for steps in (2, 6):
        resume = ["--resume", str(tmp_path / "parts")] if steps == 6 else []
        result = torchrun(tmp_path / "parts", f"--steps={steps}", *resume)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("done: ") == 1
    result = torchrun(tmp_path / "whole", "--steps=6")
    assert result.returncode == 0, result.stderr[-3000:]
    states = [
        read_run(tmp_path / name / "checkpoints" / "iteration-00000006.pt")["step"] for name in ("parts", "whole")
    ]
    torch.testing.assert_close(*states, rtol=0, atol=0)

    train(TrainingConfig(**(PRESETS["tiny"] | CONFIG | {"steps": 6})), tmp_path / "one")
    expected, got = losses_of(tmp_path / "one"), losses_of(tmp_path / "whole")
    assert got.keys() == expected.keys() == {2, 4, 6}
    for iteration, losses in expected.items():
        assert got[iteration] == pytest.approx(losses, rel=1e-3, abs=1e-4)


TRAINING_THEN_THREADS = """
import sys
from pathlib import Path
from tgan_fast.cli.train import main
main(sys.argv[1:])
names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
print(f"threads of gloo: {sum('gloo' in name for name in names)} of {len(names)}")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed in Linux's /proc")
def test_no_thread_of_the_group_is_left_when_python_ends(tmp_path):
    """It would be ended in the midst of C++ code, which now and then aborts the process."""
    program = tmp_path / "program.py"
    program.write_text(TRAINING_THEN_THREADS)
    result = torchrun(tmp_path / "run", "--steps=2", program=[str(program)])
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("threads of gloo: 0 of ") == 2


@pytest.mark.slow
def test_errors_of_several_processes_are_sentences(tmp_path):
    result = torchrun(tmp_path / "run", "--batch-size=5")
    assert result.returncode != 0
    assert "error: batch_size is 5, but 2 processes share it evenly: choose a multiple" in result.stderr
    assert not (tmp_path / "run").exists()


def test_one_process_is_alone():
    with joined("cpu") as (processes, device):
        assert (processes.rank, processes.size, processes.group, processes.backend) == (0, 1, None, None)
        assert device == torch.device("cpu")
        assert processes.gather(7, device) == [7]
        tensor = torch.ones(3)
        processes.average_(tensor)
        assert tensor.tolist() == [1, 1, 1]


def test_a_missing_device_is_named():
    with pytest.raises(InputError, match="there is no device 'gpu'"), joined("gpu"):
        pass
