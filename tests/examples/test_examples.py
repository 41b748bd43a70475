"""The examples, each copied into an empty folder and run there in a process of its own, as its readers do."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from support.notebook import notebook_checkpoint
from support.run_folders import write_run

from tgan_fast import TrainingStep, VideoDiscriminator, VideoGenerator
from tgan_fast.training import TrainingConfig
from tgan_fast.training.checkpoint import CheckpointFolder, read_run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh"))


def start(folder, name, *arguments):
    """Run an example in a folder."""
    shutil.copy(EXAMPLES / name, folder)
    command = [sys.executable] if name.endswith(".py") else ["sh"]
    # torchrun is next to the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*command, name, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run(folder, name, *arguments):
    """Run an example that must succeed, and return the lines that it printed."""
    result = start(folder, name, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


def numbers(line):
    return [float(text.replace(",", "")) for text in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?", line)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_example_is_short_and_run_by_a_test(path):
    text = path.read_text()
    assert f"test_{path.stem}" in globals()
    assert 10 <= len(text.splitlines()) <= 60
    interpreter = "python" if path.suffix == ".py" else "sh"
    assert re.search(rf"^#? +{interpreter} {path.name}", text, re.MULTILINE), "no line shows the command"


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".py"], ids=lambda path: path.name)
def test_examples_use_public_names(path):
    tree = ast.parse(path.read_text())
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            names += [part for module in modules for part in module.split(".")]
    assert [name for name in names if name.startswith("_") and not name.endswith("__")] == []


def test_fuse_batch_norm(tmp_path):
    fused, *norms, difference, state, before, after = run(tmp_path, "fuse_batch_norm.py")
    assert fused == "4 of 4 batch norms are fused"
    assert [line.split("  ")[-1] for line in norms] == ["with ReLU", "with residual + ReLU"] * 2
    output, gradient = numbers(difference)
    # Twice the errors of PyTorch's own layers against float64.
    assert output < 2.8e-6
    assert gradient < 8.4e-4
    assert state == "state dict: <All keys matched successfully>"
    assert [line.split(":")[0] for line in (before, after)] == ["before", "after"]
    assert min(numbers(before) + numbers(after)) > 0


@pytest.mark.slow
def test_clip_discriminator(tmp_path):
    *training, slope, constrained = run(tmp_path, "clip_discriminator.py")
    iterations, before, after, distances = zip(*map(numbers, training), strict=True)
    assert iterations == (0, 200, 400, 600, 800)
    assert before[0] > 2
    assert all(1 < value < 1.2 for value in before[1:])
    assert all(value == pytest.approx(1, abs=1e-5) for value in after)
    assert distances[-1] < distances[0] / 2
    assert 0.01 < numbers(slope)[0] <= 1
    assert numbers(constrained) == [0.5, pytest.approx(0.5, abs=1e-5)]


@pytest.mark.slow
def test_certified_digits(tmp_path):
    lines = [numbers(line) for line in run(tmp_path, "certified_digits.py")]
    for (_, accuracy, _), (_, certified, attacked), (within, right, _, _) in (lines[:3], lines[3:]):
        assert accuracy > 95
        assert right == pytest.approx(5 * accuracy)
        assert certified <= attacked <= accuracy
        assert within == 0, "a certificate is wrong"
    (bound, _, median), (_, certified, _), (_, right, beyond, _) = lines[:3]
    assert bound <= 1 + 1e-5
    assert beyond > right / 2, "the attack is too weak to show anything"
    assert median > 2 * lines[3][2]
    assert certified > 70 > 10 > lines[4][1]


@pytest.mark.slow
def test_clipped_muon(tmp_path):
    lines = run(tmp_path, "clipped_muon.py")
    assert [line.split(":")[0] for line in lines] == ["SGD", "Muon", "ClippedMuon"]
    for loss, accuracy, low, high in map(numbers, lines):
        assert loss < 0.05
        assert 93 < low <= accuracy <= high


@pytest.mark.slow
def test_own_data_set(tmp_path):
    lines = run(tmp_path, "own_data_set.py")
    assert [line.split()[0] for line in lines] == ["red", "green", "blue"]
    for color, line in enumerate(lines):
        levels = numbers(line)
        assert levels[color] == max(levels)
        assert levels[color] > 2 * sorted(levels)[1]
    folder = tmp_path / "runs" / "squares"
    with Image.open(folder / "squares.gif") as image:
        assert (image.n_frames, image.size) == (8, (8 * 16, 3 * 16))
    saved = read_run(CheckpointFolder(folder / "checkpoints", keep=1).latest())
    assert (saved["step"]["iteration"], saved["config"]["classes"]) == (150, 3)
    assert "holds another run" in start(tmp_path, "own_data_set.py").stderr


@pytest.mark.slow
def test_own_objective(tmp_path):
    lines = [numbers(line) for line in run(tmp_path, "own_objective.py")]
    assert [line[0] for line in lines] == [20, 40, 60, 80, 100]
    for _, of_discriminator, _, real, fake in lines:
        # The mean of a square is at least the square of the mean; three decimals are printed.
        assert of_discriminator >= fake**2 / 4 + fake - real - 2e-3
    assert lines[-1][3] > lines[-1][4]


def test_read_curves(tmp_path):
    folder = write_run(tmp_path / "a run")
    config = TrainingConfig(width=0.03125, latent_dim=4, channels=1, frames=8, image_size=16)
    size = {"clip_frames": 8, "image_size": 16}
    step = TrainingStep(VideoGenerator(0.03125, 4, 1, **size), VideoDiscriminator(0.03125, 1, **size))
    step(torch.rand(2, 1, 8, 16, 16))
    content = {"config": config.model_dump(), "device": "cpu", "step": step.state_dict()}
    CheckpointFolder(folder / "checkpoints", keep=1).save_best(content, {"frechet_distance": 70.5}, {"protocol": "x"})

    begin, _, *lines = run(tmp_path, "read_curves.py", folder)
    assert begin == "a run: 30 iterations in 15 seconds"
    assert [numbers(line) for line in lines[:3]] == [[iteration, -1.5, 0.25] for iteration in (10, 20, 30)]
    assert [numbers(line) for line in lines[4:7]] == [[10, 1.25, 900], [20, 3.5, 70.5], [30, 2, 80]]
    assert lines[7] == "best.pt is of iteration 1: {'frechet_distance': 70.5}"


@pytest.mark.slow
def test_resume_notebook(tmp_path):
    path = tmp_path / "state_normal81000.ckpt"
    notebook_checkpoint(path)
    content = torch.load(path, weights_only=True)
    sampled, trained = run(tmp_path, "resume_notebook.py", "state_normal81000.ckpt")
    assert sampled == "iteration 81,000: notebook.gif shows clips [4, 16, 64, 64, 3]"
    assert trained.endswith("to iteration 81,002: runs/resumed")
    with Image.open(tmp_path / "notebook.gif") as image:
        assert (image.n_frames, image.size) == (16, (2 * 64, 2 * 64))
    step = read_run(CheckpointFolder(tmp_path / "runs" / "resumed" / "checkpoints", keep=1).latest())["step"]
    for name, before in zip(("generator", "discriminator"), content["optimizer_state_dict"], strict=True):
        for key, entry in step[f"{name}_optimizer"]["state"].items():
            # The moving average goes on with the notebook's: from zero it would be far below.
            assert (entry["square_avg"] >= 0.98 * before["state"][key]["square_avg"]).all()
    key = "model.0.weight"
    before, after = content["model_state_dict"][0][key], step["generator"][key]
    # Two steps of RMSprop change a weight, each by no more than ten learning rates.
    assert 0 < (after - before).abs().max() <= 2 * 10 * 5e-5 + 1e-6


@pytest.mark.slow
def test_several_gpus(tmp_path):
    small = ["--preset", "tiny", "--device", "cpu", "--image-size", "16", "--width", "0.0625", "--log-interval", "1"]
    lines = run(tmp_path, "several_gpus.sh", 2, *small, "--steps", "2")
    assert lines[0].startswith("done: 2 iterations; look at runs/several-gpus/samples/00000002.gif")
    assert len(lines) == 4, "only the first process prints"
    folder = tmp_path / "runs" / "several-gpus"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["batch_size"], config["sync_batch_norm"]) == (64, True)
    assert run(tmp_path, "several_gpus.sh", 2, *small, "--steps", "3")[0].startswith("done: 3 iterations")
    iterations = [yaml.safe_load(line)["iteration"] for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert iterations == [1, 2, 3]
    refused = start(tmp_path, "several_gpus.sh", 2, *small, "--steps", "3", "--batch-size", "7").stderr
    assert "batch_size is 7, but 2 processes must share it evenly" in refused
