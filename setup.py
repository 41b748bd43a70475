"""Build the two extensions and record the git commit; everything else is in pyproject.toml.

CXX                    the C++ compiler of the CPU kernels
TGAN_FAST_NO_CPU=1     installs without the CPU kernels, which is automatic where there is no C++ compiler
TGAN_FAST_CUDA_ARCHS   the GPUs to compile for; "80;9.0a;100+PTX" are compute capabilities 8.0, 9.0 and 10.0
TGAN_FAST_NO_CUDA=1    installs without the CUDA kernels, which is automatic where there is no nvcc
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from runpy import run_path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, OptionError

HERE = Path(__file__).resolve().parent
DEFAULT_ARCHS = ("80", "90", "100")
WAY_ROUND = "TGAN_FAST_NO_{0}=1 installs tgan_fast without its {0} extension"

# Warnings are errors in .ci/run only: a newer compiler may have new ones.
COMPILE_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-Wall,-Wextra,-fPIC,-fvisibility=hidden"]
# With its own CUDA runtime, one build works with every PyTorch and can be imported without a driver.
LINK_FLAGS = ["-shared", "-cudart", "static"]

# Selections by comparison are vectorized only if comparisons cannot trap, and roots only if they do not set errno.
CPU_COMPILE_FLAGS = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"]
CPU_COMPILE_FLAGS += ["-fno-trapping-math", "-ffp-contract=fast"]
# A thread's memory holds doubles at some times and floats at others.
CPU_COMPILE_FLAGS += ["-fno-strict-aliasing"]
# kernels.cpp is compiled for each of these, and the best one for the CPU is chosen at run time.
INSTRUCTION_SETS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]


class Unit(NamedTuple):
    """One call of a compiler."""

    name: str  # name of the object file
    source: str
    flags: Sequence[str] = ()


CPU_UNITS = [Unit(name, f"csrc/cpu/{name}.cpp") for name in ("bindings", "instruction_sets", "team")]
CPU_UNITS += [
    Unit(name, "csrc/cpu/kernels.cpp", [f"-DKERNELS={name}", *INSTRUCTION_SETS[name]]) for name in INSTRUCTION_SETS
]
CUDA_UNITS = [Unit(name, f"csrc/cuda/{name}") for name in ("singular_value_clip.cu", "bindings.cpp")]


def cpp_compiler():
    """Return the command of the C++ compiler, as a list."""
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def why_without_cpu():
    """Return why the CPU extension is not built; None if it is."""
    if os.environ.get("TGAN_FAST_NO_CPU", "0") not in ("", "0"):
        return "TGAN_FAST_NO_CPU is set"
    if sys.platform != "linux":
        return "it is for Linux only"
    if shutil.which(cpp_compiler()[0]) is None:
        return f"there is no C++ compiler {cpp_compiler()[0]}; set CXX to another one"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"there is no Python.h in {sysconfig.get_path('include')}; on Debian, install python3-dev"
    return None


def find_nvcc():
    """Return the path of nvcc, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [f"{home}/bin" for home in homes if home]
    return shutil.which("nvcc", path=os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)]))


def why_without_cuda():
    """Return why the CUDA extension is not built; None if it is."""
    if os.environ.get("TGAN_FAST_NO_CUDA", "0") not in ("", "0"):
        return "TGAN_FAST_NO_CUDA is set"
    if sys.platform != "linux":
        return "it is for Linux only"
    if find_nvcc() is None:
        return "there is no nvcc in CUDA_HOME, CUDA_PATH or PATH"
    return None


def known_archs(nvcc):
    """Return the architectures that this nvcc compiles for, such as ["80", "90"]."""
    command = [nvcc, "--list-gpu-arch"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise CompileError(f"{shlex.join(command)} failed: {result.stderr.strip()}; {WAY_ROUND.format('CUDA')}")
    return re.findall(r"compute_(\d+)", result.stdout)


def arch_flags(nvcc):
    """Return the flags for machine code of each architecture, and for PTX of those marked +PTX."""
    known = known_archs(nvcc)
    default = ";".join(arch for arch in DEFAULT_ARCHS if arch in known) + "+PTX"
    flags = []
    for entry in (os.environ.get("TGAN_FAST_CUDA_ARCHS") or default).split(";"):
        match = re.fullmatch(r"(\d{1,2})\.?(\d)([af]?)(\+PTX)?", entry.strip())
        if not match:
            raise OptionError(
                f"TGAN_FAST_CUDA_ARCHS has {entry!r}, which is not an architecture: "
                'write compute capabilities separated by semicolons, as in "80;90;100+PTX"'
            )
        major, minor, variant, ptx = match.groups()
        if major + minor not in known:
            raise OptionError(
                f"TGAN_FAST_CUDA_ARCHS has {entry.strip()}, which {nvcc} does not compile for: "
                f"write some of {', '.join(known)}, or install another CUDA toolkit"
            )
        arch = major + minor + variant
        codes = [f"sm_{arch}", f"compute_{arch}"] if ptx else [f"sm_{arch}"]
        flags += [flag for code in codes for flag in ("-gencode", f"arch=compute_{arch},code={code}")]
    return flags


def ninja_script(compiler, linker, units, folder, library):
    """Return the ninja file that compiles the units into `folder` and links them into `library`."""
    import pybind11  # a build requirement that only the extensions have

    # As system folders, so that their headers cause no warnings.
    includes = ["-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]
    compiler, linker = (shlex.join(command).replace("$", "$$") for command in ([*compiler, *includes], linker))
    folder, library = (re.sub("([$ :])", r"$\1", path) for path in (folder, library))
    objects = [f"{folder}/{unit.name}.o" for unit in units]
    return f"""
builddir = {folder}
rule compile
  command = {compiler} $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {linker} $in -o $out
build {library}: link {" ".join(objects)}
""" + "".join(
        f"build {name}: compile {unit.source}\n  flags = {shlex.join(unit.flags)}\n"
        for name, unit in zip(objects, units, strict=True)
    )


class BuildExtensions(build_ext):
    """Build command that compiles with ninja, since setuptools supports neither nvcc nor flags for single files."""

    def build_extension(self, ext):
        if ext.name == "tgan_fast._cuda":
            nvcc = find_nvcc()
            kind, units = "CUDA", CUDA_UNITS
            compiler, linker = [nvcc, *COMPILE_FLAGS, *arch_flags(nvcc)], [nvcc, *LINK_FLAGS]
        else:
            kind, units = "CPU", CPU_UNITS
            compiler, linker = [*cpp_compiler(), *CPU_COMPILE_FLAGS], [*cpp_compiler(), "-shared"]
        folder = Path(self.build_temp, kind.lower())
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "build.ninja"
        text = ninja_script(compiler, linker, units, str(folder), self.get_ext_fullpath(ext.name))
        script.write_text(text, encoding="utf-8")
        if subprocess.run([sys.executable, "-m", "ninja", "--verbose", "-f", script]).returncode:
            way_round = WAY_ROUND.format(kind)
            raise CompileError(f"the {kind} extension does not compile, for the reason above; {way_round}")


class BuildPackage(build_py):
    """Build command that writes `commit.txt` into the package, so that an installed copy knows its commit."""

    def run(self):
        super().run()
        commit = None if self.editable_mode else run_path(str(HERE / "tgan_fast" / "provenance.py"))["commit_of"](HERE)
        if commit:
            Path(self.build_lib, "tgan_fast", "commit.txt").write_text(commit + "\n", encoding="utf-8")
        for kind, reason in (("CPU", why_without_cpu()), ("CUDA", why_without_cuda())):
            if reason:
                self.warn(f"tgan_fast is built without its {kind} extension: {reason}")


if __name__ == "__main__":
    wanted = {"cpu": (CPU_UNITS, why_without_cpu()), "cuda": (CUDA_UNITS, why_without_cuda())}
    setup(
        ext_modules=[
            Extension(f"tgan_fast._{name}", sorted({unit.source for unit in units}))
            for name, (units, why_without) in wanted.items()
            if not why_without
        ],
        cmdclass={"build_ext": BuildExtensions, "build_py": BuildPackage},
    )
