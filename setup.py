"""Build the CUDA extension and record the git commit; everything else is in pyproject.toml.

TGAN_FAST_CUDA_ARCHS   the GPUs to compile for; "80;9.0a;100+PTX" are compute capabilities 8.0, 9.0 and 10.0
TGAN_FAST_NO_CUDA=1    installs without the extension, as happens by itself where there is no nvcc
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from runpy import run_path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, OptionError

HERE = Path(__file__).resolve().parent
DEFAULT_ARCHS = ("80", "90", "100")
WAY_ROUND = "TGAN_FAST_NO_CUDA=1 installs tgan_fast without its CUDA extension"

# Warnings are errors in .ci/run only: a newer compiler may have new ones.
COMPILE_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-Wall,-Wextra,-fPIC,-fvisibility=hidden"]
# With a CUDA runtime of its own one build fits every PyTorch, and imports where there is no driver.
LINK_FLAGS = ["-shared", "-cudart", "static"]


def find_nvcc():
    """Return the path of nvcc, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [f"{home}/bin" for home in homes if home]
    return shutil.which("nvcc", path=os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)]))


def why_without_cuda():
    """Return why the extension is not built; None if it is."""
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
        raise CompileError(f"{shlex.join(command)} failed: {result.stderr.strip()}; {WAY_ROUND}")
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
                f"TGAN_FAST_CUDA_ARCHS has {entry!r} where an architecture belongs: "
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


def ninja_script(nvcc, sources, folder, library):
    """Return the ninja file that compiles each source into `folder` and links them into `library`."""
    import pybind11  # a build requirement that only the extension has

    # As system folders, whose warnings do not count.
    includes = ["-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]
    compiler = shlex.join([nvcc, *COMPILE_FLAGS, *arch_flags(nvcc), *includes]).replace("$", "$$")
    linker = shlex.join([nvcc, *LINK_FLAGS]).replace("$", "$$")
    folder, library = (re.sub("([$ :])", r"$\1", path) for path in (folder, library))
    objects = {f"{folder}/{Path(source).stem}.o": source for source in sources}
    return f"""
builddir = {folder}
rule compile
  command = {compiler} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {linker} $in -o $out
build {library}: link {" ".join(objects)}
""" + "".join(f"build {name}: compile {source}\n" for name, source in objects.items())


class BuildCuda(build_ext):
    """Compiles with nvcc, of which setuptools knows nothing."""

    def build_extension(self, ext):
        script = Path(self.build_temp, "build.ninja")
        script.parent.mkdir(parents=True, exist_ok=True)
        text = ninja_script(find_nvcc(), ext.sources, self.build_temp, self.get_ext_fullpath(ext.name))
        script.write_text(text, encoding="utf-8")
        if subprocess.run([sys.executable, "-m", "ninja", "--verbose", "-f", script]).returncode:
            raise CompileError(f"the CUDA extension does not compile, for the reason above; {WAY_ROUND}")


class BuildPackage(build_py):
    """Writes `commit.txt` into a built package, so that an installed copy still knows where it came from."""

    def run(self):
        super().run()
        commit = None if self.editable_mode else run_path(str(HERE / "tgan_fast" / "provenance.py"))["commit_of"](HERE)
        if commit:
            Path(self.build_lib, "tgan_fast", "commit.txt").write_text(commit + "\n", encoding="utf-8")
        if reason := why_without_cuda():
            self.warn(f"tgan_fast is built without its CUDA extension: {reason}")


if __name__ == "__main__":
    extension = Extension("tgan_fast._cuda", ["csrc/cuda/singular_value_clip.cu", "csrc/cuda/bindings.cpp"])
    setup(
        ext_modules=[] if why_without_cuda() else [extension],
        cmdclass={"build_ext": BuildCuda, "build_py": BuildPackage},
    )
