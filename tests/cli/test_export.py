"""`python -m tgan_fast export` as its users run it."""

import copy
import json
import re
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.commands import finish, start
from support.run_folders import write_filled

from tgan_fast import VideoGenerator, reference
from tgan_fast.cli import export as command
from tgan_fast.errors import InputError, NonFiniteError
from tgan_fast.models.exporting import FORMATS
from tgan_fast.models.sampling import draw_latents
from tgan_fast.training import TrainingConfig, train
from tgan_fast.training.build import build_generator


@pytest.fixture(autouse=True)
def _precision_as_in_a_new_process(_reproducible):
    """PyTorch's exporters refuse convolutions of another precision than cuDNN's recurrent cells, even on a CPU."""
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    values = {"width": 0.0625, "latent_dim": 6, "channels": 1, "digits": 1, "batch_size": 2, "frames": 8}
    values |= {"image_size": 32, "conditional": True, "temporal_generator": "gru", "latent": "normal"}
    # With such a large learning rate, videos differ after a few steps.
    config = TrainingConfig(**values, steps=6, learning_rate=0.02, ema_decay=0.5, device="cpu")
    return folder, train(config, folder)


def exported(checkpoint, out, form, *options):
    command.main(["--checkpoint", str(checkpoint), "--out", str(out), "--format", form, *options])
    return out


def test_weights_and_settings_build_the_generator_again(trained, tmp_path):
    folder, step = trained
    for options, expected in (([], step.ema), (["--weights", "live"], step.generator)):
        path = exported(folder, tmp_path / "x.safetensors", "safetensors", *options)
        with safe_open(path, "pt") as file:
            settings = json.loads(file.metadata()["settings"])
        assert settings["classes"] == 10
        generator = build_generator(TrainingConfig(**settings))
        generator.load_state_dict(load_file(path))
        for (name, got), value in zip(generator.state_dict().items(), expected.state_dict().values(), strict=True):
            assert torch.equal(got, value), name


LATENTS, LABELS = draw_latents(3, 6, 0), torch.tensor([0, 9, 4])


def check_export(out, path, form, step, videos):
    """Compare what was printed, what was written, and the videos of `LATENTS` and `LABELS`."""
    assert re.fullmatch(
        rf"{form}, \d\.\d MB: {re.escape(str(path))}\n"
        r"latents float32 \[N, 6\], normal, of mean 0 and variance 1; labels int64 \[N\], 0 to 9 → "
        r"videos float32 \[N, 1, 8, 32, 32\] in \[-1, 1\]\n",
        out,
    )
    assert list(path.parent.iterdir()) == [path]
    generator = step.ema.eval()
    exact = copy.deepcopy(generator).double()(LATENTS.double(), LABELS).detach().numpy()
    own_error = np.abs(generator(LATENTS, LABELS).detach().numpy() - exact).max()
    assert exact.std() > 0.01
    assert own_error < 1e-5
    assert np.abs(videos - exact).max() <= 2 * own_error


@pytest.mark.slow
def test_onnxruntime_makes_the_generators_videos_and_the_process_says_nothing_else(trained, tmp_path):
    folder, step = trained
    checkpoint, path = folder / "checkpoints" / "iteration-00000006.pt", tmp_path / "x.onnx"
    code, out, err = finish(start("export", "--checkpoint", checkpoint, "--out", path, "--format", "onnx"))
    assert (code, err) == (0, "")
    session = onnxruntime.InferenceSession(path)
    videos = session.run(["videos"], {"latents": LATENTS.numpy(), "labels": LABELS.numpy()})[0]
    check_export(out, path, "onnx", step, videos)


def test_a_loaded_program_makes_the_generators_videos(trained, tmp_path, capfd):
    folder, step = trained
    path = exported(folder, tmp_path / "X.PT2", "torch-export")
    out, err = capfd.readouterr()
    assert err == ""
    with path.open("rb") as file:
        videos = torch.export.load(file).module()(LATENTS, LABELS).numpy()
    check_export(out, path, "torch-export", step, videos)


def test_the_notebooks_checkpoint_is_recognized_by_content(tmp_path):
    generator = reference.Generator()
    content = {"model_state_dict": [generator.state_dict(), reference.Discriminator().state_dict()]}
    torch.save(content, tmp_path / "state_normal81000.ckpt")
    path = exported(tmp_path / "state_normal81000.ckpt", tmp_path / "x.safetensors", "safetensors")
    again = VideoGenerator()
    again.load_state_dict(load_file(path))
    for (name, got), expected in zip(again.state_dict().items(), generator.state_dict().values(), strict=True):
        assert torch.equal(got, expected), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.pt", "--format", "onnx"], r"cannot write x\.pt: with --format onnx its name must end in \.onnx"),
        (["--out", "x.onnx", "--format", "torch-export"], r"with --format torch-export its name must end in \.pt2"),
        (["--out", "nowhere/x.onnx", "--format", "onnx"], r"cannot write nowhere/x\.onnx: there is no folder nowhere"),
        (["--out", "/proc/x.safetensors", "--format", "safetensors"], r"cannot write /proc/x\.safetensors"),
        (["--out", "x.onnx", "--format", "onnx", "--weigths", "ema"], "no option --weigths; did you mean --weights"),
        (["--out", "x.onnx", "--format", "onnx", "--frames", "0"], "--frames is 0, but must be at least 1"),
        (
            ["--out", "x.safetensors", "--format", "safetensors", "--frames", "20"],
            "--frames is for onnx and torch-export, because safetensors holds only weights",
        ),
        (["--out", "x.pt2", "--format", "torch-export", "--checkpoint", "a.pt"], r"there is no checkpoint a\.pt"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [] if "--checkpoint" in arguments else ["--checkpoint", str(trained[0])]
    with pytest.raises(InputError, match=message) as caught:
        command.main([*given, *arguments])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", FORMATS)
def test_a_broken_generator_is_refused(trained, tmp_path, form):
    checkpoint = trained[0] / "checkpoints" / "iteration-00000006.pt"
    broken = write_filled(tmp_path / "broken.pt", checkpoint, "ema", {"model.0.weight": torch.inf})
    out = tmp_path / f"x{FORMATS[form].suffix}"
    with pytest.raises(NonFiniteError, match=r"broken\.pt cannot be used, because model\.0\.weight is not finite"):
        exported(broken, out, form)
    assert not out.exists()


def test_a_missing_package_is_reported_before_the_checkpoint_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"onnx files need onnx: run pip install '\.\[export\]'"):
        exported("nothing.pt", tmp_path / "x.onnx", "onnx")


def test_averaged_weights_that_a_checkpoint_does_not_have_are_refused(tmp_path):
    content = {"model_state_dict": [reference.Generator().state_dict(), {}]}
    torch.save(content, tmp_path / "state_normal81000.ckpt")
    with pytest.raises(InputError, match="has no averaged weights"):
        exported(tmp_path / "state_normal81000.ckpt", tmp_path / "x.onnx", "onnx", "--weights", "ema")
