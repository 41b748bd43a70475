"""Packages that each way of installing needs, and messages of commands that lack a package.

Each way is a folder in place of site-packages, with links to the distributions that pip would install.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.commands import finish

from tgan_fast.extras import how_to_install

ROOT = Path(__file__).resolve().parent.parent
PROJECT = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(
    (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)["project"]
CORE = PROJECT["dependencies"]
EXTRAS = {name: PROJECT["optional-dependencies"][name] for name in ("video", "export")}
MODULES = sorted((ROOT / "tgan_fast").rglob("*.py"))
DISTRIBUTIONS = {name: canonicalize_name(found[0]) for name, found in metadata.packages_distributions().items()}
FOLDER = "in tgan_fast's source folder"

OPERATIONS = """
import torch
from tgan_fast import VideoGenerator, nn, ops

x, weight = torch.randn(8, 4, 6, requires_grad=True), torch.rand(4, requires_grad=True)
y = ops.batch_norm_act(x, weight, torch.zeros(4))
expected = torch.nn.functional.batch_norm(x, None, None, weight, torch.zeros(4), training=True).relu()
torch.testing.assert_close(y, expected)
for gradients in zip(*(torch.autograd.grad(z.square().sum(), (x, weight)) for z in (y, expected))):
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)

w = torch.randn(8, 20)
ops.singular_value_clip_([w])
torch.testing.assert_close(torch.linalg.matrix_norm(w, 2), torch.tensor(1.0))

zeros = [torch.zeros(100), torch.zeros(100)]
for step, optimizer, state in (
    (ops.rmsprop_, torch.optim.RMSprop, zeros[:1]),
    (ops.adam_, torch.optim.Adam, [*zeros, torch.tensor(1.0)]),
):
    p = torch.nn.Parameter(torch.randn(100))
    p.grad, ours = torch.randn(100), p.detach().clone()
    step(ours, p.grad, *(tensor.clone() for tensor in state), learning_rate=0.1)
    optimizer([p], lr=0.1).step()
    torch.testing.assert_close(ours, p.detach())

network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
images = torch.randn(2, 3, 8, 8)
expected = network(images)
assert nn.fuse_batch_norm(network).fused == {"1": "ReLU"}
torch.testing.assert_close(network(images), expected)
nn.constrain_(network)

print(list(VideoGenerator(width=1 / 16)(torch.randn(2, 100)).shape), ops.backends()["batch_norm_act"]["cpu"])
"""

COMMANDS = """
import sys
from tgan_fast.cli import run

for command in sys.argv[1:]:
    name, *arguments = command.split()
    try:
        run(name, arguments)
    except SystemExit as end:
        print("exit code", end.code)
"""


def name_of(requirement):
    return canonicalize_name(Requirement(requirement).name)


@pytest.fixture(scope="module")
def operations_alone(tmp_path_factory):
    """`pip install --no-deps .` beside PyTorch and NumPy."""
    return install(tmp_path_factory.mktemp("operations"), ["torch", "numpy"])


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory):
    """`pip install .`."""
    return install(tmp_path_factory.mktemp("core"), CORE)


def install(site, requirements):
    """Link the package, these distributions and all that they require into a folder."""
    found = {}
    for text in requirements:
        collect(Requirement(text), found)
    for distribution in found.values():
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            # Distributions may share a folder.
            with suppress(FileExistsError):
                (site / name).symlink_to(distribution.locate_file(name))
    (site / "tgan_fast").symlink_to(ROOT / "tgan_fast")
    return site


def collect(requirement, found):
    distribution = metadata.distribution(requirement.name)
    for extra in {"", *requirement.extras}:
        key = canonicalize_name(requirement.name), extra
        if key not in found:
            found[key] = distribution
            for needed in map(Requirement, distribution.requires or ()):
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    collect(needed, found)


def run(site, folder, *arguments):
    """Run Python with the standard library and the distributions of a folder; return exit code, stdout and stderr."""
    return finish(
        subprocess.Popen(
            [sys.executable, "-S", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(site)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )


def run_commands(site, folder, commands):
    """Run several commands in one process, which prints the exit code of each; return what `run` returns."""
    return run(site, folder, "-c", COMMANDS, *commands)


def test_operations_and_networks_need_pytorch_and_numpy_alone(operations_alone, tmp_path):
    code, out, err = run(operations_alone, tmp_path, "-c", OPERATIONS)
    assert (code, err) == (0, "")
    assert out.startswith("[2, 3, 16, 64, 64] ")


@pytest.mark.parametrize("module", ["tgan_fast", "tgan_fast.train"])
def test_without_its_dependencies_a_command_says_what_to_install(operations_alone, tmp_path, module):
    arguments = ["train"] if module == "tgan_fast" else []
    result = run(operations_alone, tmp_path, "-m", module, *arguments)
    assert result == (2, "", f"error: this command needs tyro: run pip install . {FOLDER}\n")


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        pytest.param(
            "import absent", 2, f"error: this command needs absent: run pip install . {FOLDER}", id="dependency"
        ),
        pytest.param("import json.absent", 1, "ModuleNotFoundError: No module named 'json.absent'", id="module"),
        pytest.param("raise ImportError('no libavcodec')", 1, "ImportError: no libavcodec", id="library"),
    ],
)
def test_a_package_that_is_there_but_broken_is_not_called_missing(without_extras, tmp_path, content, code, message):
    (tmp_path / "av.py").write_text(content)
    result = run(without_extras, tmp_path, "-m", "tgan_fast", "prepare", ".", "store")
    assert (result[0], "needs PyAV" in result[2]) == (code, False)
    assert result[2].endswith(f"{message}\n")


def test_training_scores_samples_and_reports_need_no_extra(without_extras, tmp_path):
    commands = [
        "train --preset tiny --steps 2 --evaluate-every 2 --evaluate-samples 100 --device cpu --out run",
        "sample --checkpoint run --out run.gif --grid 2 --device cpu",
        "sample --checkpoint digits --out digits.webp --grid 2 --device cpu",
        "export --checkpoint digits --out digits.safetensors --format safetensors",
        "report run",
    ]
    code, out, err = run_commands(without_extras, tmp_path, commands)
    assert (code, re.findall(r"^exit code (\d)$", out, re.MULTILINE)) == (0, ["0"] * len(commands)), err
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {"run/loss.png", "run.gif", "digits.webp", "digits.safetensors", "run/report.html"} < written


def test_without_an_extra_a_command_says_what_to_install_and_does_nothing(without_extras, tmp_path):
    (tmp_path / "videos.h5").touch()
    cases = [
        ("prepare videos store", "prepare needs PyAV", "video"),
        ("sample --checkpoint digits --out x.mp4", "MP4 files need PyAV", "video"),
        ("store preview store --out x.mp4", "MP4 files need PyAV", "video"),
        ("store preview videos.h5 --out x.gif", "HDF5 files need h5py", "video"),
        ("store export store --out x.h5", "HDF5 files need h5py", "video"),
        ("train --data videos.h5", "HDF5 files need h5py", "video"),
        ("export --checkpoint digits --out x.onnx --format onnx", ".onnx files need onnx", "export"),
    ]
    code, out, err = run_commands(without_extras, tmp_path, [arguments for arguments, *_ in cases])
    assert err.splitlines() == [f"error: {need}: run pip install '.[{extra}]' {FOLDER}" for _, need, extra in cases]
    assert (code, out) == (0, "exit code 2\n" * len(cases))
    assert [path.name for path in tmp_path.iterdir()] == ["videos.h5"]


def test_dependencies_and_extras_are_what_is_imported():
    imported = {name for path in MODULES for name in imports(path)}
    # PyTorch's builds bring Triton if they use it; PyTorch imports onnx and tensorboard, not this package.
    imported = imported - {"triton"} | {"onnx", "tensorboard"}
    assert {DISTRIBUTIONS[name] for name in imported} == {name_of(text) for text in (*CORE, *chain(*EXTRAS.values()))}


def test_only_preparation_needs_an_extra_to_be_imported():
    extras = {name_of(text) for text in chain(*EXTRAS.values())}
    needing = {path for path in MODULES for name in imports(path, at_once=True) if DISTRIBUTIONS.get(name) in extras}
    assert {path.relative_to(ROOT).parts[:2] for path in needing} == {("tgan_fast", "preparation")}


def imports(path, at_once=False):
    """Yield the third-party packages that a file imports, with `at_once` only by its top-level statements."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_once else ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"tgan_fast"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_advice_names_the_extra_that_has_the_package(extra):
    for text in EXTRAS[extra]:
        assert how_to_install(name_of(text)) == f"run pip install '.[{extra}]' {FOLDER}"
