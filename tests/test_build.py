"""Build of the extensions by setup.py, with a shell script in place of the compiler."""

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
INSTRUCTION_SETS = run_path(str(ROOT / "setup.py"))["INSTRUCTION_SETS"]
COMPILES = """
while [ $# -gt 0 ]; do
    case $1 in -c) source=$2 ;; -o) output=$2 ;; -MF) dependencies=$2 ;; esac
    shift
done
touch "$output"
test -z "$dependencies" || echo "$output: $source" "${source%/*}"/*.h > "$dependencies"
"""
FAILS = "echo 'error: a semicolon is missing' >&2; exit 1"
COMMANDS = {"CPU": 3 + len(INSTRUCTION_SETS) + 1, "CUDA": 2 + 1}  # sources, and one library
every_kind = pytest.mark.parametrize("kind", COMMANDS)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", "TGAN_FAST_CUDA_ARCHS", "TGAN_FAST_NO_CPU", "TGAN_FAST_NO_CUDA"):
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
    """Write an nvcc that lists these architectures and otherwise runs the script; return its path."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    listing = " ".join(f"compute_{arch}" for arch in archs.split())
    path.write_text(f'#!/bin/sh\nif [ "$1" = --list-gpu-arch ]; then printf "%s\\n" {listing}; exit; fi\n{script}\n')
    path.chmod(0o755)
    return str(path)


def only(kind, folder, script=FAILS):
    """Return the environment in which one extension is built, with the script as its compiler."""
    path = nvcc(folder, "80", script)
    if kind == "CUDA":
        return {"CUDA_HOME": str(folder), "TGAN_FAST_NO_CPU": "1"}
    return {"CXX": shlex.join([path, "-an-option"]), "TGAN_FAST_NO_CUDA": "1"}


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
    ("environment", "cpu", "cuda"),
    [
        pytest.param(
            {"TGAN_FAST_NO_CPU": "1", "TGAN_FAST_NO_CUDA": "1"},
            "TGAN_FAST_NO_CPU is set",
            "TGAN_FAST_NO_CUDA is set",
            id="not wanted",
        ),
        pytest.param(
            {"PATH": "/nowhere"},
            "there is no C++ compiler c++; set CXX to another one",
            "there is no nvcc in CUDA_HOME, CUDA_PATH or PATH",
            id="no compiler",
        ),
    ],
)
def test_without_extensions_the_wheel_is_pure_python_and_says_so(source, tmp_path, environment, cpu, cuda):
    result = run_hook("build_wheel", source, tmp_path, **environment)
    assert result.returncode == 0, result.stdout
    assert f"tgan_fast is built without its CPU extension: {cpu}" in result.stdout
    assert f"tgan_fast is built without its CUDA extension: {cuda}" in result.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_a_python_without_headers_takes_no_cpu_extension(setup_py, tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert setup_py["why_without_cpu"]() == f"there is no Python.h in {tmp_path}; on Debian, install python3-dev"


@every_kind
def test_a_wheel_with_an_extension_is_of_one_platform_and_holds_no_sources(source, tmp_path, kind):
    result = run_hook("build_wheel", source, tmp_path, **only(kind, tmp_path / "compiler", COMPILES))
    assert result.returncode == 0, result.stdout
    assert f"without its {kind} extension" not in result.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert "-none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
    (library,) = (name for name in names if name.suffix == ".so")
    assert (str(library.parent), library.name.split(".")[0]) == ("tgan_fast", f"_{kind.lower()}")
    suffixes = {name.suffix for name in names if name.parts[0] == "tgan_fast"}
    assert suffixes == {".so", ".py", ".json", ".html", ".typed", ".safetensors", ".pt"}


@every_kind
def test_a_compile_error_fails_the_build_and_names_the_way_round(source, tmp_path, kind):
    result = run_hook("build_wheel", source, tmp_path, **only(kind, tmp_path / "compiler"))
    assert result.returncode != 0
    assert "error: a semicolon is missing" in result.stdout
    assert f"TGAN_FAST_NO_{kind}=1 installs tgan_fast without its {kind} extension" in result.stdout
    assert not list(tmp_path.glob("*.whl"))


@every_kind
def test_warnings_do_not_fail_a_users_build(source, tmp_path, kind):
    """A newer compiler may have new warnings."""
    log = tmp_path / "log"
    script = f'echo "$@" >> {shlex.quote(str(log))}\n{COMPILES}'
    result = run_hook("build_wheel", source, tmp_path, **only(kind, tmp_path / "compiler", script))
    assert result.returncode == 0, result.stdout
    commands = log.read_text()
    assert {"CPU": "-Wall -Wextra", "CUDA": "-Wall,-Wextra"}[kind] in commands
    assert "-Werror" not in commands


def test_the_cpu_kernels_are_compiled_for_every_instruction_set(source, tmp_path):
    log = tmp_path / "log"
    script = f'echo "$@" >> {shlex.quote(str(log))}\n{COMPILES}'
    assert run_hook("build_wheel", source, tmp_path, **only("CPU", tmp_path / "compiler", script)).returncode == 0
    commands = log.read_text().splitlines()
    assert all(command.startswith("-an-option ") for command in commands)
    for name, flags in INSTRUCTION_SETS.items():
        (command,) = (shlex.split(command) for command in commands if f"-DKERNELS={name}" in command.split())
        assert [flag for flag in command if flag.startswith("-m")] == flags


def test_warnings_and_spills_are_errors_in_ci(tmp_path):
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$1: $NVCC_APPEND_FLAGS, $CXX"\n')
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run([ROOT / ".ci" / "run"], env=environment, check=True, capture_output=True, text=True)
    of_nvcc = "-Werror all-warnings -Xptxas -warn-spills -Xcompiler -Werror"
    others = [f"{target}: {of_nvcc}, " for target in ("test-all", "oldest-triton")]
    assert result.stdout.splitlines() == [f"lint: {of_nvcc}, c++ -Werror", *others]


@every_kind
def test_a_changed_header_compiles_anew_and_nothing_else_does(source, tmp_path, kind):
    log = tmp_path / "log"
    environment = only(kind, tmp_path / "compiler", f'echo "$@" >> {shlex.quote(str(log))}\n{COMPILES}')

    def commands():
        log.write_text("")
        build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(build, cwd=source, env={**os.environ, **environment}, check=True, capture_output=True)
        return len(log.read_text().splitlines())

    assert commands() == COMMANDS[kind]
    assert commands() == 0
    next((source / "csrc" / kind.lower()).glob("*.h")).touch()
    assert commands() == COMMANDS[kind]
    assert len(list((source / "tgan_fast").glob(f"_{kind.lower()}.*.so"))) == 1


def test_the_source_distribution_builds_and_holds_every_source(source, tmp_path):
    result = run_hook("build_sdist", source, tmp_path, TGAN_FAST_NO_CPU="1", TGAN_FAST_NO_CUDA="1")
    assert result.returncode == 0, result.stdout
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    (unpacked,) = tmp_path.glob("tgan_fast-*/")

    def files(root):
        return {path.relative_to(root) for path in (root / "csrc").rglob("*") if path.is_file()}

    assert files(unpacked) == files(ROOT) != set()

    compiler = nvcc(tmp_path / "cuda", "80", COMPILES)
    result = run_hook("build_wheel", unpacked, tmp_path, CUDA_HOME=str(tmp_path / "cuda"), CXX=compiler)
    assert result.returncode == 0, result.stdout
