"""`python -m tgan_fast gam` as its users run it."""

import re

import pytest
import torch

from tgan_fast.cli import gam as command
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.training import TrainingConfig, train

VALUES = {"width": 0.0625, "latent_dim": 6, "channels": 1, "digits": 1, "batch_size": 2, "device": "cpu"}
QUICK = ("--samples", "24", "--device", "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")]
    for seed, folder in enumerate(folders):
        train(TrainingConfig(**VALUES, steps=5, learning_rate=0.003, seed=seed), folder)
    return folders


def numbers_of(text, name):
    return [float(number) for number in re.findall(r"[\d.]+", re.search(rf"^{name}.*$", text, re.MULTILINE)[0])]


def test_a_battle_and_its_return_match_mirror_each_other(runs, capsys):
    first, second = map(str, runs)
    command.main([first, second, *QUICK])
    there = capsys.readouterr().out
    command.main([second, first, *QUICK])
    back = capsys.readouterr().out
    for name in ("r_test", "r_samples"):
        value, percent, low, high = numbers_of(there, name)
        mirrored = numbers_of(back, name)
        assert percent == 95
        assert low <= value <= high
        # Printed with three digits.
        assert mirrored[0] == pytest.approx(1 / value, rel=0.01)
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
        ("generator", "model.0.weight", r"broken\.pt is of no use, because model\.0\.weight is not finite"),
        ("discriminator", None, "the scores of a discriminator are not finite: choose an earlier checkpoint"),
    ],
)
def test_broken_networks_are_refused(runs, tmp_path, network, name, message):
    content = torch.load(runs[1] / "checkpoints" / "iteration-00000005.pt", weights_only=True)
    state = content["step"][network]
    state[name or next(iter(state))].fill_(torch.nan)
    torch.save(content, tmp_path / "broken.pt")
    with pytest.raises(NonFiniteError, match=message):
        command.main([str(runs[0]), str(tmp_path / "broken.pt"), *QUICK])


def test_runs_on_other_data_are_refused(runs, tmp_path):
    train(TrainingConfig(**VALUES | {"channels": 3}, steps=1), tmp_path / "coloured")
    with pytest.raises(InputError, match="the two make videos of 1 and 3 channels"):
        command.main([str(runs[0]), str(tmp_path / "coloured"), *QUICK])
    with pytest.raises(InputError, match=r"there is no checkpoint nothing\.pt"):
        command.main([str(runs[0]), "nothing.pt", *QUICK])
