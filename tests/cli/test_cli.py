"""The part that all commands share: signals, exit codes, and errors in one sentence."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import finish, start

from tgan_fast.cli import COMMANDS
from tgan_fast.cli.options import parse
from tgan_fast.cli.prepare import PrepareCommand
from tgan_fast.cli.sample import SampleCommand
from tgan_fast.cli.store import Command as StoreCommand
from tgan_fast.errors import InputError

REQUIRED = ["--checkpoint", "x", "--out", "y"]
SMALL = [
    *("--preset", "tiny", "--width", "0.03125", "--latent-dim", "4", "--frames", "8", "--image-size", "16"),
    *("--batch-size", "2", "--device", "cpu"),
]
# By the command, or by the signal itself.
_INTERRUPTED = (128 + signal.SIGINT, -signal.SIGINT)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (SampleCommand, ["--out", "x.gif"], "missing: --checkpoint PATH; --help describes what is needed"),
        (SampleCommand, [], "missing: --checkpoint PATH, --out PATH; --help describes what is needed"),
        (PrepareCommand, ["videos"], "missing: STORE; --help describes what is needed"),
        (PrepareCommand, ["videos", "store", "--fps", "fast"], "--fps is 'fast', but must be a number"),
        (PrepareCommand, ["videos", "store", "--size", "1.5"], "--size is '1.5', but must be an integer"),
        (SampleCommand, [*REQUIRED, "--weights", "x"], "--weights is 'x', but must be one of 'auto', 'live', 'ema'"),
        (SampleCommand, [*REQUIRED, "--seed"], "--seed needs a value"),
        (
            SampleCommand,
            [*REQUIRED, "--halp"],
            "there is no option --halp; did you mean --help?",
        ),
        (SampleCommand, [*REQUIRED, "--zzz=1"], "there is no option --zzz"),
        (StoreCommand, [], "Expected one of {verify, preview, export}."),
    ],
)
def test_wrong_options_are_one_sentence(capsys, command, arguments, message):
    with pytest.raises(InputError) as caught:
        parse(command, arguments, prog="program")
    assert str(caught.value) == message
    assert capsys.readouterr() == ("", "")


# Calls each command once and tells the exit codes, and which packages were imported that only some calls need.
EVERY_COMMAND = """
import sys
from tgan_fast.cli import run
codes = []
for name, *arguments in eval(sys.argv[1]):
    try:
        run(name, arguments)
    except SystemExit as end:
        codes.append(end.code)
print(codes, {"h5py", "matplotlib", "onnx", "onnxscript", "safetensors", "sklearn"} & set(sys.modules))
"""
WRONG = {
    "train": (["--resume", "nothing.pt"], "there is no checkpoint nothing.pt"),
    "sample": (["--checkpoint", "nothing.pt", "--out", "x.gif"], "there is no checkpoint nothing.pt"),
    "project": (["x.mp4", "--checkpoint", "nothing.pt", "--out", "x.gif"], "there is no checkpoint nothing.pt"),
    "evaluate": (["--checkpoint", "nothing.pt"], "there is no checkpoint nothing.pt"),
    "export": (["--checkpoint", "nothing.pt", "--out", "x", "--format", "onnx"], "cannot write x: with --format"),
    "prepare": (["nothing", "store"], "there is no nothing"),
    "store": (["verify", "nothing"], "nothing is not a clip store"),
    "report": (["nothing"], "nothing does not exist"),
    "compare": (["nothing", "none"], "nothing does not exist"),
    "gam": (["nothing.pt", "nothing.pt"], "there is no checkpoint nothing.pt"),
    "train-classifier": (["--data", "nothing"], "there is no nothing"),
    "convert-classifier": (["nothing.npz", "--mean", "m.npz"], "there is no classifier nothing.npz"),
}


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    assert list(WRONG) == list(COMMANDS)
    calls = repr([(name, *arguments) for name, (arguments, _) in WRONG.items()])
    command = [sys.executable, "-c", EVERY_COMMAND, calls]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == f"{[2] * len(WRONG)} set()\n", done.stderr
    lines = done.stderr.splitlines()
    for line, (_, message) in zip(lines, WRONG.values(), strict=True):
        assert line.startswith(f"error: {message}")


def test_the_commands_are_listed_and_a_wrong_name_gets_a_hint(tmp_path):
    code, out, err = finish(start(folder=tmp_path))
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[2:]] == list(COMMANDS)
    assert finish(start("smaple")) == (2, "", "error: there is no command smaple; did you mean sample?\n")
    assert finish(start("zzz"))[2].startswith("error: there is no command zzz: choose train, sample, ")


@pytest.mark.parametrize("arguments", [["train", "--help"], ["store", "--help"], ["--help"]])
def test_output_that_nobody_reads_to_its_end_is_no_error(arguments):
    process = start(*arguments)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=300) == 1


# Calls all commands in one process, as `python -m tgan_fast COMMAND` does, for their help and with a wrong option.
HELP_OF_ALL = """
import importlib, sys
from tgan_fast.cli import COMMANDS
from tgan_fast.errors import InputError
for name in COMMANDS:
    main = importlib.import_module(f"tgan_fast.cli.{name.replace('-', '_')}").main
    try:
        main(["--help"])
    except SystemExit as end:
        assert not end.code
    try:
        main(["--zzz"])
    except InputError:
        print("refused by", name)
print("imported:", sorted({"torch", "numpy", "matplotlib", "tensorboard", "sklearn", "av", "PIL"} & set(sys.modules)))
"""


def test_help_and_refusals_come_at_once_because_they_import_none_of_the_large_libraries():
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True, check=True)
    assert done.stdout.count("usage: python -m tgan_fast") == done.stdout.count("refused by") == len(COMMANDS)
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("arguments", [["train", "--preset", "tiny", "--device", "cpu"], ["sample", *REQUIRED]])
def test_ctrl_c_at_any_moment_ends_without_a_traceback(tmp_path, arguments):
    # While libraries are imported, and later; Python's own start, some 0.05 s, is beyond the command's reach.
    for module in ("tgan_fast.cli.options", "numpy", "torch._C"):
        process = start(*arguments, folder=tmp_path, environment={"PYTHONUNBUFFERED": "1", "PYTHONVERBOSE": "1"})
        assert any(module in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
        assert "Traceback" not in err
        assert code in (0, *_INTERRUPTED)


def test_a_full_disk_behind_the_output_is_a_sentence():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "tgan_fast", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: cannot write the output: No space left on device\n")


@pytest.mark.parametrize(("closed", "argument", "code"), [(1, "--help", 0), (2, "smaple", 2)], ids=["stdout", "stderr"])
def test_a_stream_that_is_closed_does_not_change_the_exit_code(closed, argument, code):
    command = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", sys.executable, "-m", "tgan_fast", argument]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


@pytest.mark.slow
def test_a_training_without_stdout_continues_when_nobody_reads_its_messages(tmp_path):
    command = ["sh", "-c", 'exec "$@" 1>&-', "sh", sys.executable, "-m", "tgan_fast", "train", *SMALL]
    arguments = ["--steps", "20", "--out", "run"]
    process = subprocess.Popen([*command, *arguments], cwd=tmp_path, stderr=subprocess.PIPE)
    assert process.stderr.read(10)
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    assert (tmp_path / "run" / "checkpoints" / "iteration-00000020.pt").exists()


def test_characters_that_the_terminal_does_not_have_are_escaped(tmp_path):
    name = os.fsdecode(b"caf\xff\xc3\xa9") + "\u4e2d"
    environment = {"PYTHONIOENCODING": "ascii"}
    code, out, err = finish(
        start("sample", "--checkpoint", name, "--out", "x.gif", folder=tmp_path, environment=environment)
    )
    assert (code, out, err) == (2, "", "error: there is no checkpoint caf\\xff\\xe9\\u4e2d\n")


def test_the_installed_command_is_the_same():
    program = Path(sys.executable).with_name("tgan-fast")
    installed = subprocess.run([program, "smaple"], capture_output=True, text=True, check=False)
    assert (installed.returncode, installed.stdout, installed.stderr) == finish(start("smaple"))
