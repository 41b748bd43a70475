"""Training in several processes equals training in one: two on a CPU, joined by gloo."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.two_processes import outcomes_of_two, torchrun

from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.data.order import BatchOrder
from tgan_fast.errors import InputError
from tgan_fast.processes import Processes, joined
from tgan_fast.training import PRESETS, TrainingConfig, TrainingStep, train
from tgan_fast.training.checkpoint import read_run
from tgan_fast.training.objectives import Vanilla
from tgan_fast.training.optimizers import Adam

WIDTH, LATENT, BATCH, ITERATIONS = 0.03125, 6, 4, 4
SIZES = {"clip_frames": 8, "image_size": 16}
CASES = {
    "synchronized": {"sync_batch_norm": True},
    "shared fakes": {"sync_batch_norm": True, "shared_fakes": True, "ema_decay": 0.5, "optimizer": Adam},
    "critics": {
        "sync_batch_norm": True,
        "critic_steps": 2,
        "objective": Vanilla(),
        "input_noise": 0.3,
        "decay_steps": ITERATIONS,
    },
    "augmented": {"sync_batch_norm": True, "augment": ("color", "translation", "cutout")},
    "own statistics": {},
}


def step_of(processes, **options):
    """Return a step in float64, so that rounding hides nothing."""
    torch.manual_seed(0)
    networks = VideoGenerator(WIDTH, LATENT, 1, **SIZES).double(), VideoDiscriminator(WIDTH, 1, **SIZES).double()
    # A batch norm's running variance must not be what it is at the start, or the constraint would hide differences.
    return TrainingStep(*networks, clip_interval=2, processes=processes, seed=3, **options)


def trained(processes, **options):
    """Losses and the state after some iterations on this process's part of every batch."""
    step, random, losses = step_of(processes, **options), torch.Generator().manual_seed(1), []
    batches = options.get("critic_steps", 1)
    order = BatchOrder(
        BATCH, BATCH // batches, batches_per_step=batches, rank=processes.rank, world_size=processes.size
    )
    for _ in range(ITERATIONS):
        videos = torch.rand(BATCH, 1, 8, 16, 16, generator=random, dtype=torch.float64) * 2 - 1
        step(videos[order.rank_rows])
        losses.append(step.scalars.clone())
    step.check_equality()
    return torch.stack(losses), step.state_dict()


CONFIG = {
    "width": 0.03125,
    "latent_dim": 4,
    "channels": 1,
    "frames": 8,
    "image_size": 16,
    "digits": 1,
    "batch_size": 4,
    "learning_rate": 5e-5,
    "discriminator_learning_rate": None,
    "ema_decay": 0.5,
    "sync_batch_norm": True,
    "workers": 1,
    "device": "cpu",
    "log_interval": 2,
    "checkpoint_interval": 2,
    "sample_interval": 100,
}


def config_of(**values):
    return TrainingConfig(**(PRESETS["tiny"] | CONFIG | values))


def error_of(function, *arguments):
    """Return the message of the error that a function raises."""
    try:
        function(*arguments)
    except (InputError, RuntimeError) as error:
        return str(error)


def outcome(runs, rank):
    torch.set_num_threads(1)
    processes = Processes(dist.group.WORLD)
    results = {name: trained(processes, **options) for name, options in CASES.items()}
    step = step_of(processes)
    if rank == 1:
        with torch.no_grad():
            next(step.generator.parameters())[0] += 1e-9
    results["drifted"] = error_of(step.check_equality)
    train(config_of(steps=6), runs / "whole")
    train(config_of(steps=2), runs / "parts")
    results["uneven batch"] = error_of(train, config_of(batch_size=5), runs / "refused")
    return results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Create a folder for the runs that two processes make."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def results(runs, tmp_path_factory):
    return outcomes_of_two(partial(outcome, runs), tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", CASES)
def test_all_processes_end_with_the_same_bits(results, name):
    (losses, state), (other_losses, other_state) = (result[name] for result in results)
    assert torch.equal(losses, other_losses)
    torch.testing.assert_close(state, other_state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["synchronized", "shared fakes", "critics", "augmented"])
def test_with_synchronized_batch_norm_they_train_as_one_process_does(results, name):
    losses, state = results[0][name]
    expected_losses, expected = trained(Processes(), **CASES[name])
    torch.testing.assert_close(losses, expected_losses, rtol=1e-9, atol=1e-12)
    for network in ("generator", "discriminator"):
        for key, value in expected[network].items():
            # A convolution's bias in front of a batch norm has rounding for a gradient, which optimizers enlarge.
            torch.testing.assert_close(state[network][key], value, rtol=1e-6, atol=1e-6, msg=key)


def test_without_it_statistics_differ_from_those_of_one_process(results):
    """Otherwise the test above would show nothing."""
    expected, _ = trained(Processes())
    assert (results[0]["own statistics"][0] - expected).abs().max() > 1e-4


def test_processes_that_have_drifted_apart_are_named(results):
    for result in results:
        assert "the networks of the processes [1] are no longer equal to those of process 0" in result["drifted"]


def test_a_batch_that_processes_cannot_share_is_refused(results, runs):
    for result in results:
        assert "batch_size is 5, but 2 processes must share it evenly: choose a multiple" in result["uneven batch"]
    assert not (runs / "refused").exists()


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return {line["iteration"]: (line["loss_discriminator"], line["loss_generator"]) for line in lines}


def state_of(folder):
    return read_run(folder / "checkpoints" / "iteration-00000006.pt")["step"]


def test_two_processes_train_as_one_does(results, runs, tmp_path):
    train(config_of(steps=6), tmp_path)
    expected, got = losses_of(tmp_path), losses_of(runs / "whole")
    assert got.keys() == expected.keys() == {2, 4, 6}
    for iteration, losses in expected.items():
        assert got[iteration] == pytest.approx(losses, rel=1e-3, abs=1e-4)


# The group's threads would be ended in the middle of C++ code, which sometimes aborts the process.
TRAINING_THEN_THREADS = """
import sys
from pathlib import Path
from tgan_fast.cli.train import main
main(sys.argv[1:])
names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
print(f"threads of gloo: {sum('gloo' in name for name in names)} of {len(names)}")
"""


@pytest.mark.slow
def test_torchrun_resumes_exactly_and_leaves_no_thread_of_the_group(results, runs, tmp_path):
    shutil.copytree(runs / "parts", tmp_path / "parts")
    program = tmp_path / "program.py"
    program.write_text(TRAINING_THEN_THREADS)
    result = torchrun([program], "--steps=6", "--resume", tmp_path / "parts")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("done: ") == 1
    torch.testing.assert_close(state_of(tmp_path / "parts"), state_of(runs / "whole"), rtol=0, atol=0)
    # Only Linux lists threads there.
    if Path("/proc/self/task").exists():
        assert result.stdout.count("threads of gloo: 0 of ") == 2


@pytest.mark.slow
def test_a_folder_that_is_refused_ends_all_processes_of_torchrun_in_a_sentence(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "iteration-00000001.pt").touch()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in CONFIG.items() if value is not True]
    result = torchrun(["-m", "tgan_fast.train"], *options, "--sync-batch-norm", "--steps=2", "--out", tmp_path)
    assert result.returncode != 0
    assert f"error: {tmp_path} holds another run: continue it with --resume" in result.stderr
    assert "error of process 1: process 0 cannot start; its own error says why" in result.stderr
    assert "gloo" not in result.stderr


def test_one_process_is_alone():
    with joined("cpu") as (processes, device):
        assert (processes.rank, processes.size, processes.group, processes.backend) == (0, 1, None, None)
        assert device == torch.device("cpu")
        assert processes.gather(7) == [7]
        tensor = torch.ones(3)
        processes.average_(tensor)
        assert tensor.tolist() == [1, 1, 1]


def test_a_missing_device_is_named():
    with pytest.raises(InputError, match="there is no device 'gpu'"), joined("gpu"):
        pass
