"""The loop as a library function: files of a run folder, exact resumption, and stopping."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tgan_fast.data import MovingDigits
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.training import TrainingConfig, train
from tgan_fast.training.checkpoint import CheckpointFolder, find, read_run
from tgan_fast.training.run_folder import RunFolder

CONFIG = TrainingConfig(
    width=0.03125,
    latent_dim=4,
    channels=1,
    frames=8,
    image_size=16,
    digits=1,
    batch_size=2,
    steps=7,
    workers=1,
    device="cpu",
    precision="fp32",
    log_interval=2,
    sample_interval=4,
    checkpoint_interval=3,
    keep_checkpoints=2,
)


# Height of a line of text in a GIF of samples.
STRIP = 15
# What these settings train on, opened once.
DATA = {"digits": 1, "seed": CONFIG.seed, "clip_frames": CONFIG.frames, "image_size": CONFIG.image_size}
DIGITS = MovingDigits(**DATA)


def changed(**values):
    return CONFIG.model_copy(update=values)


def trained(out, *, resume=None, dataset=DIGITS, **changes):
    return train(changed(**changes), out, dataset=dataset, resume=resume)


def state_of(folder):
    """All state of a run's newest checkpoint, but for the config."""
    return read_run(CheckpointFolder(folder / "checkpoints", keep=1).latest())["step"]


def stats_of(folder):
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def assert_same_state(left, right):
    torch.testing.assert_close(state_of(left), state_of(right), rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Train without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    train(CONFIG, folder)
    return folder


def test_a_run_folder_has_all_that_it_should(whole):
    assert {path.name for path in whole.iterdir()} == {
        ".lock", "checkpoints", "config.yaml", "environment.jsonl", "loss.png", "samples", "stats.jsonl", "tensorboard"
    }  # fmt: skip
    assert TrainingConfig(**yaml.safe_load((whole / "config.yaml").read_text())) == CONFIG
    environment = json.loads((whole / "environment.jsonl").read_text())
    assert environment["torch"] == torch.__version__
    assert {"iteration", "tgan_fast", "commit", "cuda", "python", "platform", "device"} < environment.keys()
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == [
        "iteration-00000006.pt", "iteration-00000007.pt"
    ]  # fmt: skip
    assert sorted(path.name for path in (whole / "samples").iterdir()) == ["00000004.gif", "00000007.gif"]
    with Image.open(whole / "samples" / "00000007.gif") as gif:
        assert gif.size == (4 * 64, 5 * 64 + 2 * STRIP)
    with Image.open(whole / "loss.png") as plot:
        assert np.asarray(plot.convert("L")).std() > 5


def test_the_statistics_are_complete_and_in_tensorboard_too(whole):
    stats = stats_of(whole)
    assert [line["iteration"] for line in stats] == [2, 4, 6, 7]
    assert all(np.isfinite(list(line.values())).all() for line in stats)
    assert all(line["videos_per_second"] > 0 for line in stats)
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    for name in ("loss_discriminator", "loss_generator", "score_real", "score_fake", "videos_per_second"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(line["iteration"], pytest.approx(line[name], rel=1e-6)) for line in stats]


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_resumed_run_ends_like_an_uninterrupted_one_bit_for_bit(whole, tmp_path, steps):
    trained(tmp_path, steps=steps)
    checkpoint = CheckpointFolder(tmp_path / "checkpoints", keep=1).latest()
    trained(tmp_path, resume=checkpoint)
    assert_same_state(tmp_path, whole)
    last, expected = stats_of(tmp_path)[-1], stats_of(whole)[-1]
    assert last["iteration"] == expected["iteration"] == 7
    assert last["score_real"] == expected["score_real"]
    started = [json.loads(line)["iteration"] for line in (tmp_path / "environment.jsonl").read_text().splitlines()]
    assert started == [0, steps]


def test_resuming_with_an_average_and_shared_fakes_is_exact_too(tmp_path):
    options = {"ema_decay": 0.5, "shared_fakes": True, "steps": 4, "workers": 3}
    trained(tmp_path / "whole", **options)
    trained(tmp_path / "parts", **(options | {"steps": 2}))
    checkpoint = CheckpointFolder(tmp_path / "parts" / "checkpoints", keep=1).latest()
    trained(tmp_path / "parts", resume=checkpoint, **options)
    assert_same_state(tmp_path / "parts", tmp_path / "whole")


def test_what_was_recorded_after_the_checkpoint_is_dropped_and_a_torn_line_too(tmp_path):
    trained(tmp_path, steps=3)
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"iteration": 99, "seconds": 1e9}\n{"iteration": 100, "sec')
    trained(tmp_path, resume=tmp_path / "checkpoints" / "iteration-00000003.pt")
    assert [line["iteration"] for line in stats_of(tmp_path)] == [2, 3, 4, 6, 7]
    seconds = [line["seconds"] for line in stats_of(tmp_path)]
    assert seconds == sorted(seconds)
    assert seconds[-1] < 1e8


def test_a_run_resumes_in_another_folder_but_not_behind_a_newer_checkpoint(whole, tmp_path):
    older = whole / "checkpoints" / "iteration-00000006.pt"
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"has a newer checkpoint, iteration-00000007\.pt"):
        trained(whole, resume=older, steps=9)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
    trained(tmp_path, resume=older)
    assert_same_state(tmp_path, whole)


def test_the_global_random_state_is_neither_used_nor_changed(whole, tmp_path):
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    train(CONFIG, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(tmp_path, whole)


def test_samples_do_not_disturb_training(whole, tmp_path):
    trained(tmp_path, sample_interval=1, checkpoint_interval=1, log_interval=1)
    assert_same_state(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_returns(whole, tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def interrupt():
        while not (tmp_path / "stats.jsonl").exists() or not stats_of(tmp_path):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    step = trained(tmp_path, steps=100_000)
    assert 2 <= step.iteration < 100_000
    assert state_of(tmp_path)["iteration"] == step.iteration
    assert (tmp_path / "loss.png").exists()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


def test_a_non_finite_loss_stops_the_run_and_names_iteration_and_checkpoint(tmp_path):
    # The first update makes weights whose products overflow.
    with pytest.raises(
        NonFiniteError, match=r"is (nan|inf|-inf) in iteration \d+: .* no checkpoint had been written yet"
    ):
        trained(tmp_path, learning_rate=1e38, clip_interval=0)
    assert not CheckpointFolder(tmp_path / "checkpoints", keep=1).paths()


def test_a_weight_that_the_constraint_finds_broken_stops_the_run_at_the_next_log(tmp_path):
    # With shared fakes both losses of an iteration are computed before its updates break the weights.
    with pytest.raises(NonFiniteError, match="a weight of the discriminator is no longer finite after 1 iteration:"):
        trained(tmp_path, learning_rate=1e38, shared_fakes=True, clip_interval=1, log_interval=1)


def test_weights_that_break_later_keep_the_last_good_checkpoint(tmp_path):
    trained(tmp_path, steps=3)
    checkpoint = tmp_path / "checkpoints" / "iteration-00000003.pt"
    before = checkpoint.read_bytes()
    with pytest.raises(NonFiniteError) as caught:
        trained(tmp_path, resume=checkpoint, learning_rate=1e38, clip_interval=0)
    assert f"the last good checkpoint is {checkpoint}: continue with --resume {tmp_path}" in str(caught.value)
    assert checkpoint.read_bytes() == before
    assert CheckpointFolder(tmp_path / "checkpoints", keep=1).paths() == [checkpoint]


def test_a_run_that_diverges_warns_once_and_keeps_the_checkpoint_before(tmp_path, capsys):
    trained(tmp_path, steps=6)
    checkpoints = tmp_path / "checkpoints"
    before = (checkpoints / "iteration-00000006.pt").read_bytes()
    capsys.readouterr()
    trained(tmp_path, resume=checkpoints / "iteration-00000006.pt", steps=20, learning_rate=100.0)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    kept = checkpoints / "before-divergence.pt"
    assert re.fullmatch(
        r"warning: the run diverges, with a weight of \d\.\de\+\d+ after 8 iterations: try a lower learning_rate; "
        rf"{kept} is an earlier checkpoint",
        warning,
    )
    assert kept.read_bytes() == before
    # The resumed run warns again, but does not replace the checkpoint that was kept.
    trained(tmp_path, resume=checkpoints / "iteration-00000020.pt", steps=22, learning_rate=100.0)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert re.fullmatch(
        r"warning: the checkpoint has diverged, with a weight of \d\.\de\+\d+: resume an earlier one", warning
    )
    assert kept.read_bytes() == before
    assert trained(tmp_path / "new", resume=kept, steps=8).iteration == 8


def test_the_checkpoint_before_a_divergence_is_kept_when_it_is_the_only_one(tmp_path, capsys):
    options = {"log_interval": 6, "checkpoint_interval": 1, "keep_checkpoints": 1}
    trained(tmp_path, steps=2, **options)
    before = (tmp_path / "checkpoints" / "iteration-00000002.pt").read_bytes()
    capsys.readouterr()
    trained(
        tmp_path, resume=tmp_path / "checkpoints" / "iteration-00000002.pt", steps=6, learning_rate=100.0, **options
    )
    assert "after 3 iterations: try a lower learning_rate" in capsys.readouterr().err
    assert {path.name: path.read_bytes() == before for path in (tmp_path / "checkpoints").iterdir()} == {
        "before-divergence.pt": True, "iteration-00000006.pt": False
    }  # fmt: skip


def test_a_conditional_run_resumes_with_the_config_that_it_was_started_with(tmp_path):
    config = changed(conditional=True, steps=2)
    train(config, tmp_path)
    assert train(config, tmp_path, resume=tmp_path / "checkpoints" / "iteration-00000002.pt").iteration == 2


def test_a_folder_with_a_best_checkpoint_alone_can_be_used_again(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"PK")
    trained(tmp_path, steps=1)
    assert "best.pt of an earlier run, which has no other checkpoint, was renamed: " in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "best.pt.earlier").read_bytes() == b"PK"


def test_a_folder_is_written_to_by_one_process_and_a_dead_one_does_not_keep_it(tmp_path):
    program = (
        "import sys, time; from tgan_fast.files import lock\n"
        "file = open(sys.argv[1], 'w')\n"
        "print(lock(file.fileno()), flush=True)\n"
        "time.sleep(1000)"
    )
    arguments = [sys.executable, "-c", program, tmp_path / ".lock"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"True\n"
            with pytest.raises(InputError, match=r"another process trains in .*: wait for it, or choose another --out"):
                trained(tmp_path, steps=2)
        finally:
            holder.kill()
    assert trained(tmp_path, steps=2).iteration == 2
    # Let go at the end, in the same process too.
    assert trained(tmp_path, resume=tmp_path / "checkpoints" / "iteration-00000002.pt").iteration == 7


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_resumes_from_the_one_before(whole, tmp_path, capsys):
    trained(tmp_path, steps=6)
    newest = tmp_path / "checkpoints" / "iteration-00000006.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"PK")
    with (tmp_path / "stats.jsonl").open("ab") as file:
        file.write(b"\0\0\0\xff\n")
    trained(tmp_path, resume=tmp_path / "checkpoints" / "iteration-00000003.pt")
    assert_same_state(whole, tmp_path)
    assert "a damaged checkpoint was renamed" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "best.pt.damaged", "iteration-00000006.pt", "iteration-00000006.pt.damaged", "iteration-00000007.pt"
    }  # fmt: skip
    assert [line["iteration"] for line in stats_of(tmp_path)] == [2, 4, 6, 7]


def test_what_changed_since_the_checkpoint_is_one_line(whole, tmp_path, capsys):
    checkpoint = whole / "checkpoints" / "iteration-00000007.pt"
    trained(tmp_path / "same", resume=checkpoint)
    assert "changed since" not in capsys.readouterr().err
    config = changed(steps=8, learning_rate=1e-4, batch_size=4, constraint="weight-clip", digits=2)
    train(config, tmp_path / "other", resume=checkpoint)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "changed since" in line]
    assert line == (
        "changed since the checkpoint: digits 1 → 2, batch_size 2 → 4, steps 7 → 8, constraint svc → weight-clip, "
        "learning_rate 5e-05 → 0.0001"
    )


class FillsTheDisk(MovingDigits):
    """Data set that fills the disk: once training has asked for a clip, the next checkpoint finds it full."""

    trap = None

    def __getitem__(self, index):
        if self.trap is not None and self.trap.parent.exists() and not self.trap.is_symlink():
            self.trap.symlink_to("/dev/full")
        return super().__getitem__(index)


def test_a_full_disk_is_named_and_older_checkpoints_survive(tmp_path):
    dataset = FillsTheDisk(**DATA)
    trained(tmp_path, dataset=dataset, steps=3)
    checkpoint = tmp_path / "checkpoints" / "iteration-00000003.pt"
    dataset.trap = tmp_path / "checkpoints" / ".iteration-00000006.pt.partial"
    with pytest.raises(InputError, match=r"stopped after 6 iterations: No space left on device: .*00000006") as caught:
        trained(tmp_path, dataset=dataset, resume=checkpoint)
    assert f"the last good checkpoint is {checkpoint}" in str(caught.value)
    assert CheckpointFolder(tmp_path / "checkpoints", keep=1).paths() == [checkpoint]
    trained(tmp_path, resume=checkpoint)
    assert state_of(tmp_path)["iteration"] == 7


def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_a_folder_that_can_be_used_again(tmp_path):
    dataset = FillsTheDisk(**DATA)
    dataset.trap = tmp_path / "checkpoints" / ".iteration-00000003.pt.partial"
    with pytest.raises(InputError, match=r"No space left on device.*no checkpoint had been written yet"):
        trained(tmp_path, dataset=dataset)
    with pytest.raises(InputError, match=r"there is no checkpoint in .*: start it again with the same --out"):
        find(tmp_path)
    assert trained(tmp_path).iteration == 7
    assert [line["iteration"] for line in stats_of(tmp_path)] == [2, 4, 6, 7]


class Clips:
    """Clips of any shape and dtype."""

    def __init__(self, shape, dtype, count=10):
        self.clip, self.count = np.zeros(shape, dtype), count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.clip, 0


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Clips((8, 16, 16, 3), np.uint8), r"takes clips of uint8 \[8, 16, 16, 1\].*yields uint8 \[8, 16, 16, 3\]"),
        (Clips((8, 16, 16, 1), np.float32), r"yields float32 \[8, 16, 16, 1\]"),
        (Clips((7, 16, 16, 1), np.uint8), r"yields uint8 \[7, 16, 16, 1\]"),
        (Clips((8, 16, 21, 1), np.uint8), r"yields uint8 \[8, 16, 21, 1\]"),
        (Clips((8, 16, 16, 1), np.uint8, 0), "the data set has no clips"),
        (Clips((8, 16, 16, 1), np.uint8, 1), "1 clips, fewer than a batch of 2"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, dataset, message):
    with pytest.raises(InputError, match=message):
        trained(tmp_path / "run", dataset=dataset)
    assert not (tmp_path / "run").exists()


def test_any_data_set_of_clips_can_be_trained_on(tmp_path):
    step = trained(tmp_path, dataset=Clips((8, 16, 16, 1), np.uint8), steps=2)
    assert step.iteration == 2


class RandomClips:
    """Clips of random pixels, with any labels."""

    classes = 3

    def __init__(self, count, size=16, channels=1, label=0):
        self.clips = np.random.default_rng(0).integers(256, size=(count, 8, size, size, channels), dtype=np.uint8)
        self.label = label

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        return self.clips[index], self.label


def frames_of(gif):
    """Frames [T, H, W] of a gray GIF, or [T, H, W, 3] of a GIF with palettes."""
    frames = []
    with Image.open(gif) as image:
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image if image.mode == "L" else image.convert("RGB")))
    return np.stack(frames)


def cells_of(frames, top, size):
    """Clips [4, T, size, size, ...] in the row of cells of 64 pixels whose first line is `top`."""
    step = 64 // size
    return [frames[:, top : top + 64 : step, left : left + 64 : step] for left in range(0, 256, 64)]


@pytest.mark.parametrize(("size", "count"), [(16, 9), (32, 9), (64, 9), (16, 2)])
def test_samples_show_real_clips_in_their_first_row(tmp_path, size, count):
    # Labels that nothing reads may be anything.
    dataset = RandomClips(count, size, label=None)
    trained(tmp_path, dataset=dataset, image_size=size, steps=2, sample_interval=1)
    first, second = (frames_of(tmp_path / "samples" / f"{number:08}.gif") for number in (1, 2))
    assert first.shape == (8, 5 * 64 + 2 * STRIP, 256)
    cells = cells_of(first, STRIP, size)
    found = [index for cell in cells for index, clip in enumerate(dataset.clips) if np.array_equal(cell, clip[..., 0])]
    assert len(set(found)) == min(count, 4)
    assert all(not cell.any() for cell in cells[count:])
    # The real clips stay the same, and the titles name the real clips and the iteration of the generated ones.
    begin = STRIP + 64
    assert np.array_equal(first[:, :begin], second[:, :begin])
    assert not np.array_equal(first[:, begin : begin + STRIP], second[:, begin : begin + STRIP])
    for top in (0, begin):
        assert first[:, top : top + STRIP].max() > 200


def test_the_classes_of_a_conditional_run_stand_above_its_clips(tmp_path):
    dataset = RandomClips(2, label=2)
    trained(tmp_path, dataset=dataset, steps=1, conditional=True)
    frames = frames_of(tmp_path / "samples" / "00000001.gif")
    assert frames.shape == (8, 2 * STRIP + 5 * (STRIP + 64), 256)
    left, right, *empty = cells_of(frames, 2 * STRIP, 16)
    assert sorted(map(bytes, (left, right))) == sorted(map(bytes, dataset.clips))
    captions = frames[0, STRIP : 2 * STRIP]
    assert captions.max() > 200
    assert np.array_equal(captions[:, :64], captions[:, 64:128])
    assert not captions[:, 128:].any()
    assert not np.any(empty)


@pytest.mark.parametrize(("of_data", "of_run", "axes"), [(1, 3, 4), (1, 2, 3), (2, 2, 3)])
def test_samples_of_any_number_of_channels_can_be_looked_at(tmp_path, of_data, of_run, axes):
    dataset = RandomClips(2, channels=of_data)
    trained(tmp_path, dataset=dataset, steps=1, channels=of_run)
    frames = frames_of(tmp_path / "samples" / "00000001.gif")
    assert frames.ndim == axes
    if axes == 3:
        cells = cells_of(frames, STRIP, 16)[:2]
        assert sorted(map(bytes, cells)) == sorted(clip[..., 0].tobytes() for clip in dataset.clips)


def test_what_was_written_is_told_and_the_losses_are_drawn_while_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dataset, out = FillsTheDisk(**DATA), Path("my run")
    dataset.trap = out / "checkpoints" / ".iteration-00000006.pt.partial"
    # The process ends before the end of the run, at which the losses would be drawn again.
    with pytest.raises(InputError, match="stopped after 6 iterations: No space left on device"):
        trained(out, dataset=dataset, sample_interval=2, checkpoint_interval=6)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("iteration ")]
    assert lines == [f"iteration {number}: my run/samples/{number:08}.gif" for number in (2, 4, 6)]
    assert (out / "loss.png").stat().st_mtime_ns > (out / "samples" / "00000006.gif").stat().st_mtime_ns


def test_curves_for_which_the_disk_is_full_stop_the_run_with_a_remedy(tmp_path):
    dataset = FillsTheDisk(**DATA)
    dataset.trap = tmp_path / ".loss.png.partial"
    with pytest.raises(InputError, match=r"stopped after 4 iterations: No space left on device: .*loss\.png") as caught:
        trained(tmp_path, dataset=dataset)
    assert "the last good checkpoint is " in str(caught.value)


def test_curves_are_drawn_again_only_if_there_is_something_new(tmp_path):
    folder = RunFolder(tmp_path, keep=1)
    plot = tmp_path / "loss.png"
    line = {"iteration": 1, "seconds": 1.0, "videos_per_second": 1.0}
    folder.record({**line, "loss_discriminator": 1.0, "loss_generator": 1.0, "score_real": 1.0, "score_fake": 1.0})
    times = []
    for _ in range(2):
        folder.plot()
        times.append(plot.stat().st_mtime_ns)
    folder.record({**line, "iteration": 2, "inception_score": 2.0, "protocol": "p", "classifier": "c"})
    folder.plot()
    folder.close()
    assert times[0] == times[1] < plot.stat().st_mtime_ns
    assert (tmp_path / "scores.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"width": 0.0625},
            r"width cannot change on resume: the checkpoint has 0\.03125, not 0\.0625; leave it out",
        ),
        ({"seed": 7}, "seed cannot change on resume: the checkpoint has 0, not 7"),
        (
            {"discriminator": "frames2d"},
            "discriminator cannot change on resume",
        ),
        ({"optimizer": "adam"}, "optimizer cannot change on resume"),
        (
            {"constraint": "spectral-norm"},
            "constraint cannot change on resume",
        ),
        ({"ema_decay": 0.5}, "has no averaged weights, so ema_decay cannot be set now: leave it out"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(whole, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        trained(tmp_path / "run", resume=whole / "checkpoints" / "iteration-00000007.pt", **changes)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to the output folder .*file/run: Not a directory"):
        trained(tmp_path / "file" / "run")


@pytest.mark.gpu
def test_a_run_on_a_gpu_resumes_and_its_checkpoint_is_refused_on_the_cpu(tmp_path):
    trained(tmp_path, device="cuda", steps=3)
    checkpoint = tmp_path / "checkpoints" / "iteration-00000003.pt"
    assert trained(tmp_path, resume=checkpoint, device="cuda").iteration == 7
    with pytest.raises(InputError, match="was made on cuda and does not resume on cpu: choose --device cuda"):
        trained(tmp_path / "cpu", resume=checkpoint)
