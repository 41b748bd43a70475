"""`python -m tgan_fast.train` as its users run it."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from support import commands
from support.commands import finish

from tgan_fast.cli import evaluate, report, sample
from tgan_fast.cli import train as command
from tgan_fast.errors import InputError
from tgan_fast.training.checkpoint import CheckpointFolder, read_run

SMALL = [
    *("--preset", "tiny", "--width", "0.03125", "--latent-dim", "4", "--frames", "8", "--image-size", "16"),
    *("--batch-size", "2", "--device", "cpu", "--log-interval", "2", "--sample-interval", "50"),
]


def start(arguments, folder):
    return commands.start("train", *arguments, folder=folder)


def checkpoints(folder):
    return CheckpointFolder(folder / "checkpoints", keep=1)


def wait_for_checkpoint(folder, newer_than, process):
    while (checkpoints(folder).latest() or newer_than) == newer_than:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def wait_for_line(path, process):
    while not path.exists() or "\n" not in path.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call the command line's main function in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command.main([*SMALL, *arguments])


def random_clips():
    return np.random.default_rng(0).integers(256, size=(4, 8, 16, 16, 1), dtype=np.uint8)


def test_a_run_from_start_to_end_and_its_resumption_with_more_steps(run, tmp_path, capsys):
    run("--steps", "4")
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "done: 4 iterations; look at runs/00000-tiny/samples/00000004.gif and runs/00000-tiny/loss.png",
        "next, sample more videos, or score them:",
        "  python -m tgan_fast sample --checkpoint runs/00000-tiny --out videos.gif",
        "  python -m tgan_fast evaluate --checkpoint runs/00000-tiny",
    ]
    assert (tmp_path / "runs" / "00000-tiny" / "samples" / "00000004.gif").exists()
    assert "iteration 4: runs/00000-tiny/samples/00000004.gif\n" in err
    assert re.search(r"runs/00000-tiny: 100%.* 4/4 \[.*step/s, D=.*, G=.*, videos=", err)

    command.main(["--resume", "auto", "--steps", "6"])
    assert read_run(checkpoints(tmp_path / "runs" / "00000-tiny").latest())["step"]["iteration"] == 6
    capsys.readouterr()

    run("--steps", "2")
    assert "look at runs/00001-tiny/samples/00000002.gif" in capsys.readouterr().out


@pytest.mark.parametrize("data", [[], ["--data", "clips.npy"]], ids=["digits", "videos"])
def test_the_commands_that_are_told_at_the_end_can_be_pasted(run, tmp_path, capsys, monkeypatch, data):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.save("clips.npy", np.zeros((4, 8, 16, 16, 1), np.uint8))
    run("--steps", "1", "--out", "my run", *data)
    *_, first, second = capsys.readouterr().out.splitlines()
    # Scores of videos need a classifier.
    last = (report, []) if data else (evaluate, ["--samples", "16", "--runs", "1", "--real-clips", "256"])
    for (module, quick), line in (((sample, []), first), (last, second)):
        python, _, package, name, *arguments = shlex.split(line)
        assert (python, package, name) == ("python", "tgan_fast", module.__name__.split(".")[-1])
        module.main([*arguments, *quick])
    assert (tmp_path / "videos.gif").exists()
    assert (tmp_path / "my run" / ("report.html" if data else "scores.jsonl")).exists()


@pytest.mark.parametrize(("option", "calls"), [([], 1), (["--no-keep-memory"], 0)])
def test_memory_is_kept_unless_it_must_not_and_checkpoints_do_not_tell(run, tmp_path, keep_memory, option, calls):
    run("--steps", "1", "--out", "run", *option)
    assert keep_memory.call_count == calls
    assert "keep_memory" not in read_run(checkpoints(tmp_path / "run").latest())["config"]


def test_a_signal_ends_with_0_and_the_command_that_resumes(run, tmp_path, capsys):
    process = start([*SMALL, "--steps", "100000", "--out", "my run"], tmp_path)
    wait_for_line(tmp_path / "my run" / "stats.jsonl", process)
    with pytest.raises(InputError, match="another process trains in my run: wait"):
        run("--steps", "100000", "--out", "my run")
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 0, err
    line = out.splitlines()[-1].strip()
    assert line == "python -m tgan_fast.train --resume 'my run'"
    stopped = read_run(checkpoints(tmp_path / "my run").latest())["step"]["iteration"]

    command.main([*shlex.split(line)[3:], "--steps", str(stopped + 1)])
    assert f"done: {stopped + 1} iterations" in capsys.readouterr().out


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_whole_checkpoints_and_an_exact_run(run, tmp_path):
    every = ["--checkpoint-interval", "1", "--keep-checkpoints", "3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    delay, newest = random.SystemRandom(), None
    for _ in range(2):
        process = start([*SMALL, *every, "--steps", "100000", "--out", killed, "--resume", "auto"], tmp_path)
        wait_for_checkpoint(killed, newest, process)
        time.sleep(delay.uniform(0, 0.3))
        process.kill()
        finish(process)
        assert checkpoints(killed).paths()
        for path in checkpoints(killed).paths():
            read_run(path)
        newest = checkpoints(killed).latest()
    steps = read_run(newest)["step"]["iteration"] + 2
    run(*every, "--steps", str(steps), "--out", str(killed), "--resume", "auto")
    run(*every, "--steps", str(steps), "--out", str(whole))
    left, right = (read_run(checkpoints(folder).latest())["step"] for folder in (killed, whole))
    assert left["iteration"] == steps
    assert not list(killed.rglob("*.partial"))
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_runs_that_start_together_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(command._new_folder, ["tiny"] * 8))
    assert sorted(map(str, folders)) == [f"runs/{number:05d}-tiny" for number in range(8)]
    assert all(folder.is_dir() for folder in folders)


def test_a_folder_whose_name_is_no_text_is_trained_in_and_reported_on(run, tmp_path, capsys):
    out, data = (tmp_path / os.fsdecode(name) for name in (b"r\xff\n", b"d\xff.npy"))
    np.save(data, random_clips())
    run("--steps", "2", "--out", str(out), "--data", str(data))
    command.main(["--resume", str(out), "--steps", "3", "--config", str(out / "config.yaml")])
    report.main([str(out)])
    told, err = capsys.readouterr()
    # No terminal takes a surrogate.
    (told + err).encode()
    assert told.endswith("r\\xff\\n/report.html\n")
    assert "d\\udcff.npy" in (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/proc"], ids=["unset", "unwritable"])
def test_neither_a_home_nor_a_writable_working_directory_is_needed(tmp_path, home):
    environment = {"HOME": home, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = [*SMALL, "--steps", "2", "--out", tmp_path / "run"]
    code, out, err = finish(commands.start("train", *arguments, folder="/proc", environment=environment))
    assert (code, out.splitlines()[0][:19]) == (0, "done: 2 iterations;"), err


def test_a_working_directory_without_room_for_runs_is_one_sentence(run, monkeypatch):
    monkeypatch.chdir("/proc")
    with pytest.raises(InputError, match=r"^cannot make a folder for the run in runs: No such file .*; choose --out$"):
        run()


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    arguments = [sys.executable, "-m", "tgan_fast.train", "--resume", "nothing.pt"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: there is no checkpoint nothing.pt\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batchsize", "4"], "there is no option --batchsize; did you mean --batch-size"),
        (["--zzz=1"], "there is no option --zzz$"),
        (["--batch-size", "1"], "batch_size is 1, but batch norm needs at least 2 videos"),
        (["--batch-size", "many"], "--batch-size is 'many', but must be an integer"),
        (["--preset", "huge"], "--preset is 'huge', but must be one of 'auto', 'paper', "),
        (["--resume"], "--resume needs a value"),
        (["--batch-size", "0"], "batch_size is 0, but batch norm needs at least 2 videos"),
        (["--augment", "blur"], "augment has 'blur', but the transforms are color, translation, cutout"),
        (["--learning-rate", "0"], "learning_rate is 0.0, but it must be greater than 0"),
        (["--config", "nothing.yaml"], "cannot read the config file nothing.yaml"),
        (["--device", "cuda:99"], "cuda:99 cannot be used"),
        (["--device", "tpu"], "there is no device 'tpu'"),
        (["--device", "mps"], "device mps is not supported: choose auto, cpu, cuda or cuda:N"),
        (["--seed", "100000000000000000000"], "seed is 100000000000000000000, but it must be less than or equal to"),
        (["--learning-rate", "inf"], "learning_rate is inf, but it must be a finite number"),
        (["--data", "nothing"], "there is no nothing"),
        (["--out", "/proc/run"], "cannot write to the output folder /proc/run"),
        (["--resume", "nothing"], "there is no checkpoint nothing"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_written(run, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_yaml_file_is_between_preset_and_command_line(run, tmp_path):
    (tmp_path / "my.yaml").write_text("width: 0.0625\nsteps: 1\nlearning_rate: 1e-4\n")
    run("--config", "my.yaml", "--out", "run", "--width", "0.03125")
    config = read_run(checkpoints(tmp_path / "run").latest())["config"]
    assert (config["width"], config["steps"], config["learning_rate"], config["batch_size"]) == (0.03125, 1, 1e-4, 2)
    (tmp_path / "my.yaml").write_text("batchsize: 2\n")
    with pytest.raises(InputError, match=r"my\.yaml: there is no setting batchsize; did you mean batch_size"):
        run("--config", "my.yaml", "--out", "other")


def test_another_run_is_not_overwritten(run, tmp_path):
    run("--steps", "1", "--out", "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="run holds another run: continue it with --resume run, or choose another"):
        run("--steps", "1", "--out", "run")
    with pytest.raises(InputError, match=r"width cannot change on resume: the checkpoint has 0\.03125, not 0\.0625"):
        command.main(["--resume", "run", "--width", "0.0625"])
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_resuming_takes_no_other_preset_and_leaves_none_ignored(run, tmp_path):
    run("--steps", "1", "--out", "run")
    again = [*SMALL[2:], "--resume", "run"]
    with pytest.raises(InputError, match=r"--preset paper has .*, but the resumed run has .*: leave out"):
        command.main([*again, "--preset", "paper", "--steps", "2"])
    with pytest.raises(InputError, match=r"--preset tiny-lsgan has .*, but the resumed run has .*: leave out"):
        command.main([*again, "--preset", "tiny-lsgan", "--steps", "2"])
    # The same command again, as in a script that is restarted.
    for number in ("2", "3"):
        command.main([*again, "--preset", "tiny", "--steps", number])
    assert checkpoints(tmp_path / "run").latest().name == "iteration-00000003.pt"


def test_the_newest_run_that_has_a_checkpoint_is_resumed(run, tmp_path):
    run("--steps", "1")
    (tmp_path / "runs" / "00001-tiny" / "checkpoints").mkdir(parents=True)
    run("--steps", "2", "--resume", "auto")
    assert checkpoints(tmp_path / "runs" / "00000-tiny").latest().name == "iteration-00000002.pt"


def test_data_that_has_moved_gets_a_hint(run, tmp_path):
    np.save("clips.npy", random_clips())
    run("--steps", "1", "--out", "run", "--data", "clips.npy")
    Path("clips.npy").rename("moved.npy")
    with pytest.raises(InputError, match=r"there is no .*clips\.npy: if the data has moved, give its new path"):
        command.main(["--resume", "run", "--steps", "2"])
    command.main(["--resume", "run", "--steps", "2", "--data", "moved.npy"])


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in ("--preset", "--config", "--out", "--resume", "--learning-rate", "--ema-decay", "--clip-interval"):
        assert name in text
