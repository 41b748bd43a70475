"""README and docs: their tgan_fast commands and Python blocks run, and their links lead somewhere.

The commands of a document run in one process, with the arguments that the document gives, but training takes two
iterations of a narrow model, and evaluation a few videos. Of make and pip, only targets and extras are checked. A
comment `<!-- not run: reason -->` before a block marks what cannot run here; its modules must still exist.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from support.encoding import encode, moving_picture
from support.notebook import notebook_checkpoint

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
RUNNER = ROOT / "tests" / "support" / "run_document.py"
# Arguments that make a command quick; where an option is given twice, the last one counts.
QUICK = {
    "train": "--steps 2 --batch-size 4 --workers 1 --evaluate-samples 8 --device cpu",
    "evaluate": "--samples 8 --runs 1 --force",
    "gam": "--samples 8",
    "project": "--restarts 2 --steps 2",
    "train-classifier": "--steps 2 --batch-size 2 --architecture small",
}
PREPARE = ["prepare", "UCF-101", "ucf"]
RUN_BEFORE = {
    "export.md": [["train", "--preset", "quick", *QUICK["train"].split()]],
    "training.md": [["train", "--preset", "quick", "--out", "runs/first", *QUICK["train"].split()]],
}


class Block(NamedTuple):
    """Code block of a document; `reason` says why it is not run, if it is not."""

    language: str
    text: str
    reason: str | None


def blocks_of(document):
    pattern = re.compile(r"^(?:<!-- not run: (.+?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [Block(language, text, reason or None) for reason, language, text in pattern.findall(document.read_text())]


def commands_of(block):
    """Return the commands of a block as lists of arguments."""
    return [command for line in block.text.splitlines() if (command := shlex.split(line, comments=True))]


def module_and_arguments(command):
    """Return the module that `python -m` runs, here or in processes of torchrun, and its arguments; or None."""
    if command[0] not in ("python", "torchrun") or "-m" not in command:
        return None
    place = command.index("-m")
    return command[place + 1], command[place + 2 :]


def runs(module):
    """Return whether `python -m` finds a module of this repository, or it is pytest."""
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists() or module == "pytest"


def as_cli(command):
    """Return a command of tgan_fast as its name and arguments, or None."""
    found = module_and_arguments(command)
    if found is None or found[0] not in ("tgan_fast", "tgan_fast.train"):
        return None
    module, arguments = found
    return ["train", *arguments] if module == "tgan_fast.train" else arguments


def quickened(command):
    """Return a command of tgan_fast that runs the same in seconds."""
    if "--help" in command:
        return command
    command = [*command, *QUICK.get(command[0], "").split()]
    if command[0] == "evaluate" and ("--videos" not in command or "--data" in command):
        command += ["--real-clips", "8"]
    if command[0] == "train":
        if "state_normal81000.ckpt" in command:
            return [*command, "--steps", "81001"]
        if not {"--resume", "--init-from"} & set(command):  # a checkpoint says how wide its networks are
            command += ["--width", "0.03"]
        if "tiny" in command:
            command += ["--evaluate-every", "1"]
    return command


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the files that documents name."""
    for number, name in enumerate(("Archery", "Bowling")):
        (tmp_path / "UCF-101" / name).mkdir(parents=True)
        for group in range(10):  # as many as the critic steps of an iteration take
            path = tmp_path / "UCF-101" / name / f"v_{name}_g{group + 1:02}_c01.avi"
            encode(path, moving_picture(40, 72, 96, seed=10 * number + group), codec="mpeg4")
    shutil.copytree(tmp_path / "UCF-101" / "Archery", tmp_path / "other_model")
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    for name, array in {"images-idx3": images, "labels-idx1": np.arange(20, dtype=np.uint8) % 10}.items():
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_python_blocks_run(document, folder):
    steps = list(RUN_BEFORE.get(document.name, []))
    for block in blocks_of(document):
        if block.reason is not None:
            continue
        if block.language == "python":
            steps.append(block.text)
        else:
            steps += [quickened(command) for command in map(as_cli, commands_of(block)) if command is not None]
    if not steps:
        pytest.skip("nothing of this document runs here")
    if "state_normal81000.ckpt" in str(steps):
        notebook_checkpoint(folder / "state_normal81000.ckpt")
    words = {word for step in steps if isinstance(step, list) for word in step}
    if "ucf" in words and PREPARE not in steps:
        steps.insert(0, PREPARE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    result = subprocess.run(
        [sys.executable, RUNNER],
        input=json.dumps(steps),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == "all done"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_run_or_says_why_not(document):
    makefile, extras = (ROOT / "Makefile").read_text(), (ROOT / "pyproject.toml").read_text()
    assert document.read_text().count("```") == 2 * len(blocks_of(document)), "a block is indented"
    for block in blocks_of(document):
        assert block.language in ("sh", "python"), f"a block without a language: {block.text}"
        for command in commands_of(block) if block.language == "sh" else ():
            found = module_and_arguments(command)
            if found is not None:
                assert runs(found[0]), command
                assert block.reason is not None or as_cli(command) is not None, f"{command} is not run: say why"
            elif command[0] == "make":
                assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), command
            elif command[:2] == ["pip", "install"]:
                for extra in re.findall(r"\[(\w+)\]", " ".join(command)):
                    assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), command
            else:
                assert block.reason is not None, f"{command} is not run: say why"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document):
    for target in re.findall(r"(?<=\]\()[^)\s]+|(?<=src=\")[^\"]+", document.read_text()):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.is_relative_to(ROOT), target
        assert path.exists(), target
        if heading:
            prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
            titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140
