"""`python -m tgan_fast gam` as its users run it."""

import math
import re
from pathlib import Path

import pytest
from support.run_folders import write_filled

from tgan_fast.cli import gam as command
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.training import TrainingConfig, train

VALUES = {"width": 0.0625, "latent_dim": 6, "channels": 1, "digits": 1, "batch_size": 2, "device": "cpu"}
LAST = Path("checkpoints", "iteration-00000005.pt")
QUICK = ("--samples", "24", "--device", "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")]
    # Of one seed, and so of the same clips, which are the first checkpoint's.
    for learning_rate, folder in zip((0.003, 0.001), folders, strict=True):
        train(TrainingConfig(**VALUES, steps=5, learning_rate=learning_rate), folder)
    return folders


def numbers_of(text, name):
    return [float(number) for number in re.findall(r"[\d.]+", re.search(rf"^{name}.*$", text, re.MULTILINE)[0])]


def test_a_battle_and_its_return_match_mirror_each_other(runs, tmp_path, capsys):
    # All of its scores are zero, so that it takes every video for real.
    zeros = {"conv2d.weight": 0, "conv2d.bias": 0}
    first = str(runs[0])
    second = str(write_filled(tmp_path / "blind.pt", runs[1] / LAST, "discriminator", zeros))
    command.main([first, second, *QUICK])
    there = capsys.readouterr().out
    command.main([second, first, *QUICK])
    back = capsys.readouterr().out
    for name in ("r_test", "r_samples"):
        value, percent, low, high = numbers_of(there, name)
        mirrored = numbers_of(back, name)
        assert percent == 95
        assert low <= value <= high
        # Printed with four significant digits.
        assert value == pytest.approx(1 / mirrored[0], rel=1.1e-3)
    assert f"{second}: wrong about 0.0 % of unseen real clips, 100.0 % of the other's videos" in there.splitlines()
    assert there.splitlines()[-1] == back.splitlines()[-1]


def test_a_gan_does_not_win_against_itself(runs, capsys):
    command.main([str(runs[0]), str(runs[0]), *QUICK])
    out = capsys.readouterr().out
    assert numbers_of(out, "r_samples")[0] == numbers_of(out, "r_test")[0] == 1
    assert out.splitlines()[-1] == "neither wins"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], "--samples is 1, but must be at least 2"),
        (["--samples", str(10**12)], "--samples is 10+, but must be at most 1,000,000"),
        (["--seed", "-1"], "--seed is -1, but must be at least 0"),
        (["--seed", str(10**20)], "--seed is 10+, but must be at most"),
        (["--data", "nothing"], "there is no nothing"),
        (["--test-data", "nothing"], "there is no nothing"),
        (["--device", "cuda:99"], "cuda:99 cannot be used"),
    ],
)
def test_bad_input_is_one_sentence(runs, arguments, message):
    with pytest.raises(InputError, match=message):
        command.main([*map(str, runs), "--device", "cpu", *arguments])


@pytest.mark.parametrize(
    ("network", "name", "message"),
    [
        ("generator", "model.0.weight", r"broken\.pt cannot be used, because model\.0\.weight is not finite"),
        (
            "discriminator",
            "model3d.0.weight",
            "the scores of a discriminator are not finite: choose an earlier checkpoint",
        ),
    ],
)
def test_broken_networks_are_refused(runs, tmp_path, network, name, message):
    broken = write_filled(tmp_path / "broken.pt", runs[1] / LAST, network, {name: math.nan})
    with pytest.raises(NonFiniteError, match=message):
        command.main([str(runs[0]), str(broken), *QUICK])


def test_runs_on_other_data_are_refused(runs, tmp_path):
    train(TrainingConfig(**VALUES | {"channels": 3}, steps=1), tmp_path / "colored")
    with pytest.raises(InputError, match="the two generators make videos of 1 and 3 channels"):
        command.main([str(runs[0]), str(tmp_path / "colored"), *QUICK])
    with pytest.raises(InputError, match=r"there is no checkpoint nothing\.pt"):
        command.main([str(runs[0]), "nothing.pt", *QUICK])
