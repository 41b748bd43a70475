"""Runs that start with the networks of another run."""

import shutil

import pytest
import torch
from support.notebook import notebook_checkpoint

from tgan_fast.cli import train as command
from tgan_fast.errors import InputError
from tgan_fast.nn import WEIGHTED
from tgan_fast.training import PRESETS, TrainingConfig, train
from tgan_fast.training.build import build_step
from tgan_fast.training.checkpoint import PRETRAINED, find, open_checkpoint, read_run
from tgan_fast.training.fine_tuning import start_from

SMALL = PRESETS["tiny"] | {
    "width": 0.03125,
    "latent_dim": 4,
    "image_size": 16,
    "batch_size": 2,
    "device": "cpu",
    "steps": 2,
    "evaluate_every": 0,
    "sample_interval": 50,
}
NETWORKS = "generator", "discriminator"
# The generator in the package.
DIGITS = {"init_from": "digits", "width": 0.25, "latent_dim": 32, "image_size": 32, "conditional": True, "classes": 10}


def config_of(**settings):
    return TrainingConfig(**SMALL | settings)


def started(**settings):
    """Return a step that has just started from a checkpoint, and the notices."""
    config = config_of(**settings)
    step = build_step(config, torch.device("cpu"))
    return step, start_from(step, config)


def assert_equal(state, other):
    torch.testing.assert_close(dict(state), dict(other), rtol=0, atol=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder of a run with averaged weights."""
    folder = tmp_path_factory.mktemp("source") / "run"
    train(config_of(seed=5), folder)
    return folder


@pytest.fixture
def saved(source):
    return read_run(find(source))["step"]


def test_the_networks_are_those_of_the_checkpoint_and_the_run_is_new(source, saved):
    step, notices = started(init_from=str(source))
    assert notices == []
    state = step.state_dict()
    for network in (*NETWORKS, "ema"):
        assert_equal(state[network], saved[network])
    fresh = build_step(config_of(), torch.device("cpu")).state_dict()
    assert state["iteration"] == 0
    assert torch.equal(state["random"], fresh["random"])
    assert state["generator_optimizer"]["state"] == {}


def test_optimizers_come_along_on_request_with_the_learning_rate_of_the_new_run(source, saved):
    step, _ = started(init_from=str(source), init_optimizers=True, learning_rate=0.125)
    optimizer = step.state_dict()["generator_optimizer"]
    assert_equal(optimizer["state"][0], saved["generator_optimizer"]["state"][0])
    assert optimizer["param_groups"][0]["lr"] == 0.125


def test_options_of_optimizers_are_those_of_the_new_run(tmp_path):
    train(config_of(optimizer="adam", adam_beta1=0.25, steps=1), tmp_path / "run")
    options = {"optimizer": "adam", "adam_beta1": 0.75, "init_optimizers": True}
    step, _ = started(init_from=str(tmp_path / "run"), **options)
    optimizer = step.state_dict()["discriminator_optimizer"]
    assert optimizer["param_groups"][0]["betas"] == (0.75, 0.999)
    assert optimizer["state"][0]["step"] == 1


def test_without_averaged_weights_the_average_starts_with_the_generator(tmp_path):
    train(config_of(ema_decay=None, steps=1), tmp_path / "run")
    step, _ = started(init_from=str(tmp_path / "run"))
    assert_equal(step.state_dict()["ema"], read_run(find(tmp_path / "run"))["step"]["generator"])


def test_the_generator_in_the_package_gets_a_new_discriminator(tmp_path):
    settings = PRESETS["digits"] | {"device": "cpu", "classes": 10, "init_from": "digits"}
    config = TrainingConfig(**settings)
    step = build_step(config, torch.device("cpu"))
    fresh = step.discriminator.state_dict()
    before = {name: tensor.clone() for name, tensor in fresh.items()}
    (notice,) = start_from(step, config)
    assert notice.endswith("digits.safetensors has no discriminator, so a new one is trained")
    expected = open_checkpoint(PRETRAINED["digits"]).states["ema"]
    assert_equal(step.generator.state_dict(), expected)
    assert_equal(step.ema.state_dict(), expected)
    assert_equal(step.discriminator.state_dict(), before)


def test_the_notebooks_networks_and_optimizers(tmp_path):
    networks = notebook_checkpoint(tmp_path / "state.ckpt")
    config = TrainingConfig(init_from=str(tmp_path / "state.ckpt"), init_optimizers=True, device="cpu")
    step = build_step(config, torch.device("cpu"))
    assert start_from(step, config) == []
    for network, reference in zip((step.generator, step.discriminator), networks, strict=True):
        assert_equal(network.state_dict(), reference.state_dict())
    assert len(step.state_dict()["generator_optimizer"]["state"]) == len(list(step.generator.parameters()))


@pytest.mark.parametrize(
    ("settings", "new"),
    [
        ({"channels": 3}, ["model.6.weight, model.6.bias", "model3d.0.weight"]),
        ({"conditional": True, "classes": 10}, ["temp.model.0.weight, slow.0.weight", "model3d.0.weight"]),
        ({"temporal_generator": "gru"}, ["temp.first.weight, temp.first.bias, .* and 2 others"]),
        ({"discriminator": "frames2d"}, ["blocks.0.weight, blocks.0.bias, blocks.1.weight, .* and 0 others"]),
    ],
    ids=str,
)
def test_layers_that_do_not_fit_start_new_and_are_named(source, saved, settings, new):
    step, notices = started(init_from=str(source), **settings)
    assert len(notices) == len(new)
    named = [name for notice in notices for name in notice.partition("shape: ")[2].split(", ")]
    for network in NETWORKS:
        for name, tensor in step.state_dict()[network].items():
            old = saved[network].get(name)
            if old is not None and old.shape == tensor.shape:
                assert torch.equal(tensor, old)
            elif not name.endswith("num_batches_tracked") and "others" not in notices[0]:
                assert name in named


def test_spectral_normalization_is_added_and_removed(source, saved, tmp_path):
    """The discriminator computes the same with and without it, but for the scale of its layers where it is added."""
    step, notices = started(init_from=str(source), constraint="spectral-norm", steps=1)
    assert notices == []
    for name, layer in step.discriminator.named_modules():
        if isinstance(layer, WEIGHTED):
            assert torch.equal(layer.parametrizations.weight.original, saved["discriminator"][f"{name}.weight"])
            assert abs(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() - 1) < 1e-4

    train(config_of(constraint="spectral-norm", steps=2), tmp_path / "normalized")
    normalized = open_checkpoint(find(tmp_path / "normalized")).discriminator()
    plain, notices = started(init_from=str(tmp_path / "normalized"))
    assert notices == []
    videos = torch.rand(2, 1, 8, 16, 16)
    torch.testing.assert_close(plain.discriminator.eval()(videos), normalized(videos), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam"}, {"discriminator": "frames2d"}], ids=str)
@pytest.mark.parametrize("constraint", ["none", "svc", "gradient-penalty"])
def test_frozen_layers_stay_and_a_run_resumes_exactly(tmp_path, options, constraint):
    common = options | {"constraint": constraint, "clip_interval": 1}
    train(config_of(**common, steps=2, seed=5), tmp_path / "source")
    tuned = common | {"init_from": str(tmp_path / "source"), "init_optimizers": True, "freeze_discriminator": 2}
    step = train(config_of(**tuned, steps=4), tmp_path / "whole")
    before = read_run(find(tmp_path / "source"))["step"]["discriminator"]
    layers = [name for name, layer in step.discriminator.named_modules() if isinstance(layer, WEIGHTED)]
    for name, parameter in step.discriminator.named_parameters():
        layer = name.rpartition(".")[0]
        if layer in layers:
            assert parameter.requires_grad == (layer not in layers[:2]), name
        if parameter.requires_grad:
            # A bias of the last layer has no gradient in Wasserstein's losses.
            assert parameter.dim() == 1 or not torch.equal(parameter, before[name]), name
        elif layer in layers or constraint != "svc":
            # Singular value clipping also clamps the scales of batch norms, and is idempotent but for rounding.
            tolerance = 1e-6 if constraint == "svc" else 0
            torch.testing.assert_close(parameter.detach(), before[name], rtol=tolerance, atol=tolerance)

    train(config_of(**tuned, steps=2), tmp_path / "parts")
    # A resumed run does not need the checkpoint that it started from.
    shutil.rmtree(tmp_path / "source")
    resumed = train(config_of(**tuned, steps=4), tmp_path / "parts", resume=find(tmp_path / "parts"))
    assert_equal(flat(resumed.state_dict()), flat(step.state_dict()))


def flat(state, prefix=""):
    if isinstance(state, dict):
        return {key: value for name, part in state.items() for key, value in flat(part, f"{prefix}.{name}").items()}
    return {prefix: state if isinstance(state, torch.Tensor) else torch.tensor(0)}


def test_the_command_takes_the_networks_settings_from_the_checkpoint(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--steps", "1", "--evaluate-every", "0", "--device", "cpu"]
    command.main(["--init-from", str(source), "--preset", "tiny-conditional", *options, "--out", "tuned"])
    config = read_run(find(tmp_path / "tuned"))["config"]
    expected = {"width": 0.03125, "latent_dim": 4, "image_size": 16, "conditional": False, "learning_rate": 4e-4}
    assert {name: config[name] for name in expected} == expected
    assert config["init_from"] == str(find(source))
    command.main(["--init-from", str(source), *options, "--latent-dim", "5", "--out", "other"])
    assert read_run(find(tmp_path / "other"))["config"]["latent_dim"] == 5
    # A resumed run keeps what it started from.
    command.main(["--resume", "tuned", "--steps", "2"])
    with pytest.raises(InputError, match=r"init_from cannot change on resume: the checkpoint has .*; leave it out"):
        command.main(["--resume", "tuned", "--steps", "3", "--init-from", str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"init_from": None, "freeze_discriminator": 1},
            "freeze_discriminator is for the networks of a checkpoint: give",
        ),
        (
            {"init_from": None, "init_optimizers": True},
            "init_optimizers is for the networks of a checkpoint: give init_",
        ),
        ({"freeze_discriminator": 3}, "is 3, but at most 2 of the discriminator's 3 layers can be frozen"),
        ({"freeze_discriminator": -1}, "freeze_discriminator is -1, but it must be greater than or equal to 0"),
        ({"freeze_discriminator": 1, "channels": 3}, "has no model3d.0.weight of this shape to freeze: freeze fewer"),
        ({"init_optimizers": True, "optimizer": "adam"}, "do not fit: the state of parameter 0 has no exp_avg"),
        ({"init_optimizers": True, "channels": 3}, "the optimizers in .* do not fit: square_avg of parameter"),
        ({"init_from": "nothing.pt"}, "there is no checkpoint nothing.pt"),
        (
            DIGITS | {"init_optimizers": True},
            "digits.safetensors has no optimizers: leave out init_optim",
        ),
        (
            DIGITS | {"freeze_discriminator": 1},
            "digits.safetensors has no model3d.0.weight of this shape",
        ),
        ({"init_from": "digits", "latent_dim": 5, "width": 0.002, "frames": 16}, "no layer of the generator in"),
    ],
    ids=str,
)
def test_what_is_refused_is_one_sentence_and_nothing_is_written(source, tmp_path, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        train(config_of(**{"init_from": str(source)} | settings), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused(source, tmp_path):
    content = torch.load(find(source), weights_only=True)
    content["step"]["generator"]["slow.0.weight"][0] = torch.inf
    torch.save(content, tmp_path / "broken.pt")
    with pytest.raises(InputError, match=r"cannot be used: slow\.0\.weight of the generator is not finite"):
        train(config_of(init_from=str(tmp_path / "broken.pt")), tmp_path / "out")
