"""Build of the extension by setup.py, with a shell script in place of nvcc."""

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from runpy import run_path

import pytest
from setuptools.errors import CompileError, OptionError

ROOT = Path(__file__).resolve().parent.parent
COMPILES = """
while [ $# -gt 0 ]; do
    case $1 in -c) source=$2 ;; -o) output=$2 ;; -MF) dependencies=$2 ;; esac
    shift
done
touch "$output"
test -z "$dependencies" || echo "$output: $source csrc/cuda/singular_value_clip.h" > "$dependencies"
"""
FAILS = "echo 'error: a semicolon is missing' >&2; exit 1"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH", "TGAN_FAST_CUDA_ARCHS", "TGAN_FAST_NO_CUDA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def setup_py():
    return run_path(str(ROOT / "setup.py"))


@pytest.fixture
def source(tmp_path):
    """Copy of the files that the build reads."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("csrc", "tgan_fast"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def nvcc(folder, archs, script=FAILS):
    """The path of an nvcc that lists these architectures and runs the script for anything else."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    listing = " ".join(f"compute_{arch}" for arch in archs.split())
    path.write_text(f'#!/bin/sh\nif [ "$1" = --list-gpu-arch ]; then printf "%s\\n" {listing}; exit; fi\n{script}\n')
    path.chmod(0o755)
    return str(path)


def run_hook(hook, source, out, **environment):
    """Call a build hook as pip does, with this environment's setuptools."""
    program = f"from setuptools import build_meta; build_meta.{hook}({str(out)!r})"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=source,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("known", "asked", "expected"),
    [
        pytest.param("75 80 86 90 100 120", None, "sm_80 sm_90 sm_100 compute_100", id="default"),
        pytest.param("75 80 86 90", None, "sm_80 sm_90 compute_90", id="default, older nvcc"),
        pytest.param("80 90 100", "", "sm_80 sm_90 sm_100 compute_100", id="empty"),
        pytest.param("80 90 100", "90", "sm_90", id="without PTX"),
        pytest.param("80 90 100", "80+PTX; 90", "sm_80 compute_80 sm_90", id="PTX of the first"),
        pytest.param("80 90 100", "9.0;10.0+PTX", "sm_90 sm_100 compute_100", id="with a dot"),
        pytest.param("80 90 100", "90a;10.0f", "sm_90a sm_100f", id="variants"),
    ],
)
def test_architectures(setup_py, tmp_path, monkeypatch, known, asked, expected):
    if asked is not None:
        monkeypatch.setenv("TGAN_FAST_CUDA_ARCHS", asked)
    flags = setup_py["arch_flags"](nvcc(tmp_path, known))
    assert set(flags[::2]) == {"-gencode"}
    pairs = [flag.removeprefix("arch=").split(",code=") for flag in flags[1::2]]
    assert " ".join(code for _, code in pairs) == expected
    assert all(arch == code.replace("sm_", "compute_") for arch, code in pairs)


@pytest.mark.parametrize("asked", ["80,90", "80 90", "sm_80", "8", "8.", "80;", "80+ptx", "90x", "native"])
def test_a_malformed_architecture_names_the_variable_and_an_example(setup_py, tmp_path, monkeypatch, asked):
    monkeypatch.setenv("TGAN_FAST_CUDA_ARCHS", asked)
    with pytest.raises(OptionError, match=r'^TGAN_FAST_CUDA_ARCHS has .* as in "80;90;100\+PTX"$'):
        setup_py["arch_flags"](nvcc(tmp_path, "80 90 100"))


def test_an_architecture_that_was_asked_for_is_not_left_out(setup_py, tmp_path, monkeypatch):
    monkeypatch.setenv("TGAN_FAST_CUDA_ARCHS", "80;10.0a")
    with pytest.raises(OptionError, match=r"has 10\.0a, which .*nvcc does not compile for: write some of 80, 90,"):
        setup_py["arch_flags"](nvcc(tmp_path, "80 90"))


def test_an_nvcc_that_does_not_run_is_an_error(setup_py):
    with pytest.raises(CompileError, match=r"false --list-gpu-arch failed.*TGAN_FAST_NO_CUDA=1"):
        setup_py["arch_flags"](shutil.which("false"))


def test_where_nvcc_is_looked_for(setup_py, tmp_path, monkeypatch):
    home, path, in_path = (nvcc(tmp_path / name, "80") for name in ("home", "path", "in_path"))
    monkeypatch.setenv("PATH", str(Path(in_path).parent))
    assert setup_py["find_nvcc"]() == in_path
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "removed"))
    assert setup_py["find_nvcc"]() == in_path
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "path"))
    assert setup_py["find_nvcc"]() == path
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert setup_py["find_nvcc"]() == home


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        pytest.param({"TGAN_FAST_NO_CUDA": "1"}, "TGAN_FAST_NO_CUDA is set", id="not wanted"),
        pytest.param({"PATH": "/nowhere"}, "there is no nvcc in CUDA_HOME, CUDA_PATH or PATH", id="no nvcc"),
    ],
)
def test_without_the_extension_the_wheel_is_pure_python_and_says_so(source, tmp_path, environment, reason):
    result = run_hook("build_wheel", source, tmp_path, **environment)
    assert result.returncode == 0, result.stdout
    assert f"tgan_fast is built without its CUDA extension: {reason}" in result.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_a_wheel_with_the_extension_is_of_one_platform_and_holds_no_sources(source, tmp_path):
    nvcc(tmp_path / "cuda", "80", COMPILES)
    result = run_hook("build_wheel", source, tmp_path, CUDA_HOME=str(tmp_path / "cuda"))
    assert result.returncode == 0, result.stdout
    assert "without its CUDA extension" not in result.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert "-none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
    assert [str(name.parent) for name in names if name.suffix == ".so"] == ["tgan_fast"]
    assert {name.suffix for name in names if name.parts[0] == "tgan_fast"} == {".so", ".py", ".json", ".html", ".typed"}


def test_a_compile_error_fails_the_build_and_names_the_way_round(source, tmp_path):
    nvcc(tmp_path / "cuda", "80", FAILS)
    result = run_hook("build_wheel", source, tmp_path, CUDA_HOME=str(tmp_path / "cuda"))
    assert result.returncode != 0
    assert "error: a semicolon is missing" in result.stdout
    assert "TGAN_FAST_NO_CUDA=1 installs tgan_fast without its CUDA extension" in result.stdout
    assert not list(tmp_path.glob("*.whl"))


def test_warnings_do_not_fail_a_users_build(source, tmp_path):
    """A newer compiler has warnings that nobody knew of."""
    log = tmp_path / "log"
    nvcc(tmp_path / "cuda", "80", f'echo "$@" >> {shlex.quote(str(log))}\n{COMPILES}')
    result = run_hook("build_wheel", source, tmp_path, CUDA_HOME=str(tmp_path / "cuda"))
    assert result.returncode == 0, result.stdout
    commands = log.read_text()
    assert "-Wall,-Wextra" in commands
    assert "-Werror" not in commands


def test_warnings_and_spills_are_errors_in_ci(tmp_path):
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$NVCC_APPEND_FLAGS"\n')
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run([ROOT / ".ci" / "run"], env=environment, check=True, capture_output=True, text=True)
    assert set(result.stdout.splitlines()) == {"-Werror all-warnings -Xptxas -warn-spills -Xcompiler -Werror"}


def test_a_changed_header_compiles_anew_and_nothing_else_does(source, tmp_path):
    log = tmp_path / "log"
    nvcc(tmp_path / "cuda", "80", f'echo "$@" >> {shlex.quote(str(log))}\n{COMPILES}')

    def commands():
        log.write_text("")
        build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        environment = {**os.environ, "CUDA_HOME": str(tmp_path / "cuda")}
        subprocess.run(build, cwd=source, env=environment, check=True, capture_output=True)
        return len(log.read_text().splitlines())

    assert commands() == 3  # two sources, one library
    assert commands() == 0
    (source / "csrc" / "cuda" / "singular_value_clip.h").touch()
    assert commands() == 3
    assert len(list((source / "tgan_fast").glob("_cuda.*.so"))) == 1


def test_the_source_distribution_builds_and_holds_every_cuda_source(source, tmp_path):
    result = run_hook("build_sdist", source, tmp_path, TGAN_FAST_NO_CUDA="1")
    assert result.returncode == 0, result.stdout
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    (unpacked,) = tmp_path.glob("tgan_fast-*/")

    def files(root):
        return {path.relative_to(root) for path in (root / "csrc").rglob("*") if path.is_file()}

    assert files(unpacked) == files(ROOT) != set()

    nvcc(tmp_path / "cuda", "80", COMPILES)
    result = run_hook("build_wheel", unpacked, tmp_path, CUDA_HOME=str(tmp_path / "cuda"))
    assert result.returncode == 0, result.stdout
