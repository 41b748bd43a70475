"""The package as pip installs it."""

import ast
import importlib
import importlib.metadata
import os
import pkgutil
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from runpy import run_path

import pytest

import tgan_fast

ROOT = Path(__file__).resolve().parent.parent

# The packages that each package may import besides itself; all may import modules outside of these.
BELOW = {
    "ops": set(),
    "nn": {"ops"},
    "models": {"nn", "ops"},
    "data": {"ops"},
    "preparation": {"data"},
    "metrics": {"data", "models", "ops"},
    "reports": {"metrics"},
    "training": {"data", "metrics", "models", "nn", "ops", "reports"},
}


# Of the files in the package.
SUFFIXES = "py", "json", "html", "typed", "safetensors", "pt"


@pytest.mark.slow
def test_a_wheel_builds_in_isolation_and_knows_its_commit(tmp_path):
    """The build environment has neither PyTorch nor any other package of this one."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "*.so"))
    git = ["git", "-C", source, "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "x"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source]
    # One architecture, since all three take three times as long.
    subprocess.run(command, env={**os.environ, "TGAN_FAST_CUDA_ARCHS": "90"}, check=True)
    (wheel,) = tmp_path.glob("tgan_fast-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("tgan_fast/commit.txt").decode().strip() == commit
    found = [path for suffix in SUFFIXES for path in (ROOT / "tgan_fast").rglob(f"*.{suffix}")]
    files = {str(path.relative_to(ROOT)) for path in found}
    code = {name for name in names if ".dist-info" not in name}
    extensions = {name for name in code if name.startswith("tgan_fast/_") and name.endswith(".so")}
    assert code - extensions == files | {"tgan_fast/commit.txt"}
    build = run_path(str(ROOT / "setup.py"))
    built = {kind for kind in ("cpu", "cuda") if not build[f"why_without_{kind}"]()}
    assert {Path(name).name.split(".")[0] for name in extensions} == {f"_{kind}" for kind in built}
    assert len(extensions) == len(built)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_importing_needs_no_gpu_no_triton_and_no_command_line_library():
    program = (
        "import sys, tgan_fast, tgan_fast.ops, tgan_fast.nn, tgan_fast.reference\n"
        "loaded = {'triton', 'tyro', 'pydantic', 'sklearn', 'matplotlib', 'tensorboard', 'av'} & set(sys.modules)\n"
        "print(sorted(loaded))"
    )
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    result = subprocess.run([sys.executable, "-c", program], env=hidden, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_module_imports():
    for module in pkgutil.walk_packages(tgan_fast.__path__, "tgan_fast."):
        importlib.import_module(module.name)


def test_a_source_tree_that_was_never_installed_has_no_known_version(monkeypatch):
    assert run_path(str(ROOT / "tgan_fast" / "provenance.py"))["__version__"] == importlib.metadata.version("tgan_fast")

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert run_path(str(ROOT / "tgan_fast" / "provenance.py"))["__version__"] == "unknown"


def test_public_names_are_imported_when_they_are_first_used():
    program = (
        "import sys, tgan_fast\n"
        "assert 'torch' not in sys.modules\n"
        "from tgan_fast import *\n"
        "assert set(tgan_fast.__all__) <= set(dir(tgan_fast))\n"
        "import tgan_fast.train\n"
        "print(tgan_fast.train is train, TrainingStep.__module__, __version__)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "tgan_fast.training.step", importlib.metadata.version("tgan_fast")]


def test_the_reference_shares_nothing_with_the_package():
    source = (ROOT / "tgan_fast" / "reference.py").read_text()
    assert "import tgan_fast" not in source
    assert "from tgan_fast" not in source


@pytest.mark.parametrize("name", BELOW)
def test_imports_go_downwards(name):
    above = {path.parent.name for path in (ROOT / "tgan_fast").glob("*/__init__.py")} - BELOW[name] - {name}
    assert not [path for path, package in _imported_packages(ROOT / "tgan_fast" / name) if package in above]


def _imported_packages(folder):
    """Yield each file below a folder with the packages in tgan_fast that it imports from, in functions as well."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for parts in (f"{prefix}{name}".split(".") for name in names):
                if parts[0] == "tgan_fast" and len(parts) > 1:
                    yield path, parts[1]
