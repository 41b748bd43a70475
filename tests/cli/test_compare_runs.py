"""`python -m tgan_fast compare`: several runs' scores side by side."""

import pytest
from PIL import Image
from support.run_folders import evaluation_line, write_run

from tgan_fast.cli import compare as command
from tgan_fast.errors import InputError


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """`svc` and `none`, in the folder in which the command runs."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "svc")
    write_run(tmp_path / "none", [evaluation_line(10, 1.0, 950.0)], config={"clip_interval": 0, "log_interval": 7})
    return tmp_path


def row(text, title):
    return next(line for line in text.splitlines() if line.startswith(title)).removeprefix(title).split()


def test_the_best_and_the_last_scores_and_what_sets_the_runs_apart(runs, capsys):
    command.main(["svc", "none"])
    out = capsys.readouterr().out
    assert row(out, "protocol") == ["plain,", "1", "×", "64", "samples;", "classifier", "0123456789ab"]
    assert row(out, "Inception score, best") == ["3.500", "1.000"]
    assert row(out, "  at iteration") == ["20", "10"]
    assert row(out, "  last") == ["2.000", "1.000"]
    assert row(out, "Fréchet distance, best") == ["70.50", "950.0"]
    assert row(out, "clip_interval") == ["5", "0"]
    assert "log_interval" not in out
    assert Image.open(runs / "compare.png").size[0] > 1000


def test_one_run_alone_and_vector_graphics(runs, capsys):
    command.main(["svc", "--out", "one.svg"])
    assert "curves: one.svg" in capsys.readouterr().out
    assert (runs / "one.svg").read_bytes().startswith(b"<?xml")


def test_runs_of_the_same_name_are_distinguished_by_their_paths(runs, capsys):
    write_run(runs / "other" / "svc")
    command.main(["svc", "other/svc"])
    assert "other/svc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one run folder to compare"),
        (["svc", "nothing"], "nothing does not exist"),
        (["svc", "plain"], "plain has no evaluations to compare: train with --evaluate-every N --classifier FILE"),
        (["svc", "scored"], "scores of svc and scored cannot be compared: the classifier of the first is 0123456789ab"),
        (["svc", "./svc"], "svc is given twice"),
        (["svc", "--out", "x.gif"], r"cannot write x\.gif: its name must end in \.png or \.svg"),
        (["svc", "--out", "nowhere/x.png"], r"cannot write nowhere/x\.png: there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(runs, arguments, message):
    write_run(runs / "plain", ())
    write_run(runs / "scored", [evaluation_line(10, 1.0, 2.0, classifier="other")])
    before = sorted(runs.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        command.main(arguments)
    assert "\n" not in str(caught.value)
    assert sorted(runs.rglob("*")) == before
