"""`python -m tgan_fast convert-classifier` as its users run it."""

import pytest

from tgan_fast.cli import convert_classifier as command
from tgan_fast.errors import InputError
from tgan_fast.metrics.classifier_files import load_classifier


@pytest.mark.slow
def test_weights_and_mean_become_one_file(c3d_files, c3d_classifier, tmp_path, capsys):
    weights, mean = map(str, c3d_files)
    command.main([weights, "--mean", mean, "--out", str(tmp_path / "c3d.pt")])
    assert capsys.readouterr().out == f"C3D for 101 classes: {tmp_path / 'c3d.pt'}\n"
    assert load_classifier(tmp_path / "c3d.pt").fingerprint == c3d_classifier.fingerprint
    with pytest.raises(InputError, match=r"cannot write /proc/c3d\.pt"):
        command.main([weights, "--mean", mean, "--out", "/proc/c3d.pt"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.npz", "--mean", "m.npz"], r"there is no classifier nothing\.npz"),
        (["nothing.npz", "--mean", "m.npz", "--out", "nowhere/c3d.pt"], "there is no folder nowhere"),
        (["nothing.npz", "--mean", "m.npz", "--ot", "x"], "there is no option --ot; did you mean --out"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        command.main(arguments)
