"""Tests of the compiled CPU kernels: no races between threads, and no functions that the linker takes for all CPUs."""

import os
import shutil
import subprocess
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc" / "cpu"
BUILD = run_path(str(ROOT / "setup.py"))
SANITIZED = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-DKERNELS=baseline"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BUILD["why_without_cpu"]() is not None, reason=str(BUILD["why_without_cpu"]())),
]


def compile_with_thread_sanitizer(folder, headers):
    """Compile the kernels, with their headers in this folder, and a main program that runs them on four threads."""
    sources = [Path(__file__).with_name("cpu_threads.cpp"), headers / "kernels.cpp", headers / "team.cpp"]
    command = [*BUILD["cpp_compiler"](), *SANITIZED, "-I", headers, *sources, "-pthread", "-o", folder / "program"]
    subprocess.run(command, check=True)
    return folder / "program"


def run(program):
    """Return the exit status, which is 66 after a report, and the reports."""
    environment = {**os.environ, "TSAN_OPTIONS": "exitcode=66"}
    result = subprocess.run([program], env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    return result.returncode, result.stderr


@pytest.fixture
def _needs_thread_sanitizer(tmp_path):
    source = tmp_path / "empty.cpp"
    source.write_text("int main() {}\n")
    command = [*BUILD["cpp_compiler"](), "-fsanitize=thread", source, "-o", tmp_path / "empty"]
    if subprocess.run(command, capture_output=True).returncode or run(tmp_path / "empty")[0]:
        pytest.skip("needs ThreadSanitizer")


@pytest.mark.usefixtures("_needs_thread_sanitizer")
def test_threads_do_not_race(tmp_path):
    status, reports = run(compile_with_thread_sanitizer(tmp_path, CSRC))
    assert status == 0, reports[-3000:]


@pytest.mark.usefixtures("_needs_thread_sanitizer")
def test_a_missing_barrier_is_a_race(tmp_path):
    """The test above can fail."""
    headers = shutil.copytree(CSRC, tmp_path / "csrc")
    team = headers / "team.h"
    changed = team.read_text().replace("if (size > 1) wait_for_all();", "")
    assert changed != team.read_text()
    team.write_text(changed)
    status, reports = run(compile_with_thread_sanitizer(tmp_path, headers))
    assert status == 66
    assert "data race" in reports


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("name", [name for name in BUILD["INSTRUCTION_SETS"] if name != "baseline"])
def test_the_linker_takes_no_function_of_an_instruction_set_for_all_cpus(name, tmp_path):
    """The linker would merge a weak function, such as a template, with that of the same name in another object file."""
    (unit,) = (unit for unit in BUILD["CPU_UNITS"] if unit.name == name)
    output = tmp_path / "kernels.o"
    command = [*BUILD["cpp_compiler"](), *BUILD["CPU_COMPILE_FLAGS"], *unit.flags, "-c", unit.source, "-o", output]
    subprocess.run(command, cwd=ROOT, check=True)
    symbols = subprocess.run(["nm", "--defined-only", output], capture_output=True, text=True, check=True).stdout
    kinds = {line.split()[-1]: line.split()[-2] for line in symbols.splitlines()}
    shared = {symbol: kind for symbol, kind in kinds.items() if kind.isupper() or kind in "uvw"}
    assert len(shared) == 1, shared  # the table of kernels
    (symbol,) = shared
    assert name in symbol
