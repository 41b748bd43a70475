"""`python -m tgan_fast train-classifier` as its users run it."""

import signal

import numpy as np
import pytest
from support import commands

from tgan_fast.cli import train_classifier as command
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.metrics.classifier_files import load_classifier

SMALL = ["--architecture", "small", "--device", "cpu"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call the command line's main function in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command.main([*SMALL, *arguments])


@pytest.fixture
def gray_clips(tmp_path_factory):
    """Ten dark videos and ten bright ones, by their labels."""
    path = tmp_path_factory.mktemp("data") / "clips.npz"
    random = np.random.default_rng(0)
    labels = np.arange(20) % 2
    clips = random.integers(100, size=(20, 18, 64, 64), dtype=np.uint8) + (155 * labels)[:, None, None, None]
    np.savez(path, clips=clips.astype(np.uint8), labels=labels)
    return path


def test_videos_with_classes(run, gray_clips, tmp_path, capsys):
    run("--data", str(gray_clips), "--steps", "10", "--batch-size", "8", "--out", "my.pt")
    classifier = load_classifier(tmp_path / "my.pt")
    assert (classifier.architecture, classifier.classes, classifier.channels) == ("small", ("0", "1"), 1)
    out, err = capsys.readouterr()
    assert out == (
        f"{gray_clips}: videos: 20; frames: 360; classes: 2; to train on: 16; held out: 4\n"
        f"accuracy {classifier.accuracy:.1%} on 4 held-out clips: my.pt\n"
    )
    assert "my.pt: 100%" in err
    assert "loss=" in err


def test_moving_digits_are_the_default(run, tmp_path, capsys):
    run("--steps", "2", "--batch-size", "4")
    classifier = load_classifier(tmp_path / "classifier.pt")
    assert (classifier.architecture, classifier.classes, classifier.channels) == ("small", tuple("0123456789"), 1)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "moving digits: 1,438 handwritings to train on, 359 others held out"
    assert out[1] == f"accuracy {classifier.accuracy:.1%} on 1,024 held-out clips: classifier.pt"


def test_settings_reach_the_training(run, gray_clips, tmp_path):
    def fingerprint(*arguments):
        run("--data", str(gray_clips), "--steps", "2", "--batch-size", "4", *arguments)
        return load_classifier(tmp_path / "classifier.pt").fingerprint

    plain = fingerprint()
    assert fingerprint("--seed", "0", "--held-out", "0.2", "--learning-rate", "3e-3") == plain
    changes = ["--seed 1", "--held-out 0.5", "--learning-rate 1e-3", "--batch-size 5", "--steps 3"]
    assert len({plain, *(fingerprint(*change.split()) for change in changes)}) == 1 + len(changes)


def test_two_digits_and_three_colors(run, tmp_path):
    run("--steps", "1", "--batch-size", "2", "--digits", "2", "--channels", "3")
    assert load_classifier(tmp_path / "classifier.pt").channels == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "4"], "there is no option --step; did you mean --steps"),
        (["--steps", "0"], "--steps is 0, but must be at least 1"),
        (["--steps", str(10**12)], "--steps is 10+, but must be at most 1,000,000"),
        (["--batch-size", "-1"], "--batch-size is -1, but must be at least 1"),
        (["--batch-size", str(10**12)], "--batch-size is 10+, but must be at most 10,000"),
        (["--learning-rate", "nan"], r"--learning-rate is nan, but must be more than 0, and at most 1\.0"),
        (["--learning-rate", "inf"], r"--learning-rate is inf, but must be more than 0, and at most 1\.0"),
        (["--learning-rate", "1e300"], r"--learning-rate is 1e\+300, but must be more than 0, and at most 1\.0"),
        (["--held-out", "nan"], "--held-out is nan, but must be more than 0 and less than 1"),
        (["--held-out", "0"], r"--held-out is 0\.0, but must be more than 0 and less than 1"),
        (["--held-out", "1"], r"--held-out is 1\.0, but must be more than 0 and less than 1"),
        (["--seed", "-1"], "--seed is -1, but must be at least 0"),
        (["--seed", str(10**20)], "--seed is 10+, but must be at most"),
        (["--device", "cuda:99"], "cuda:99 cannot be used"),
        (["--data", "nothing"], "there is no nothing"),
        (["--out", "nowhere/x.pt"], r"cannot write nowhere/x\.pt: there is no folder nowhere"),
        (["--out", "/proc/x.pt"], r"cannot write /proc/x\.pt: "),
        (["--out", "."], r"cannot write \.: it is a folder"),
    ],
)
def test_bad_input_is_one_sentence_before_any_training(run, tmp_path, capsys, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert "loss=" not in capsys.readouterr().err


@pytest.mark.parametrize("labels", [{}, {"labels": np.zeros(4, int)}], ids=["none", "one"])
def test_classes_are_needed(run, tmp_path, labels):
    np.savez(tmp_path / "clips.npz", clips=np.zeros((4, 16, 64, 64, 1), np.uint8), **labels)
    with pytest.raises(
        InputError, match=r"the videos of clips\.npz have (no classes|one class), but .* prepare a folder"
    ):
        run("--data", "clips.npz")
    assert not (tmp_path / "classifier.pt").exists()


def test_a_training_that_fails_leaves_the_older_file(run, gray_clips, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_FASTEST", 1e30)
    (tmp_path / "classifier.pt").write_bytes(b"older")
    with pytest.raises(NonFiniteError, match="is not finite: try a lower learning_rate"):
        run("--data", str(gray_clips), "--steps", "5", "--learning-rate", "1e30")
    assert (tmp_path / "classifier.pt").read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.pt"]


@pytest.mark.slow
def test_c3d_is_for_videos_warns_of_a_cpu_and_writes_nothing_after_ctrl_c(gray_clips, tmp_path):
    arguments = ["--data", gray_clips, "--steps", "100000", "--batch-size", "1", "--device", "cpu"]
    process = commands.start("train-classifier", *arguments, folder=tmp_path)
    shown = ""
    while "loss=" not in shown:
        assert process.poll() is None, process.communicate()
        shown += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    code, out, err = commands.finish(process)
    assert code == 130, err
    told = ["C3D learns too slowly on a CPU: use a GPU, or --architecture small", "interrupted; nothing was written"]
    assert out.splitlines()[-2:] == told
    # Two classes of equal chances.
    assert "loss=0.693" in shown + err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
