"""The validation: parts that crash, hang or fail do not stop others, and the page reports them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import validate
from benchmarks.validate import CUT, FAILED, NOT_REACHED, PASSED, Part, run_all

ROOT = Path(__file__).resolve().parents[2]


def program(name, source, seconds=60, **options):
    return Part(name, ("-c", source), seconds, **options)


def is_gone(process):
    """Return whether a process has ended, or only waits for the one that inherited it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_part_that_crashes_hangs_or_fails_leaves_the_others_alone(tmp_path, capsys):
    child = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    )
    parts = [
        program("crashes", "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"),
        program("hangs", "import time\ndef stuck():\n    time.sleep(600)\nstuck()", seconds=1.5),
        program("is wrong", "print('WRONG  clipping: off by 1'); print('0 of 1 right'); raise SystemExit(1)"),
        program("fails", "raise ValueError('a mistake')"),
        program("saves nothing", "", summary=lambda: {}["step"]),
        program("works", child),
    ]
    outcomes = run_all(parts, tmp_path, 100)
    assert [outcome.verdict for outcome in outcomes] == [FAILED] * 4 + [PASSED] * 2
    crashes, hangs, wrong, fails, saves_nothing, works = (outcome.why for outcome in outcomes)
    assert crashes[0] == "ended by SIGSEGV"
    assert hangs[0] == "not done after 2 s"
    assert "in stuck" in validate.log_of(tmp_path, "hangs").read_text()  # where it hung
    assert wrong == ["exit code 1", "WRONG  clipping: off by 1"]
    assert fails[-1] == "ValueError: a mistake"
    assert saves_nothing == ["its results cannot be read: 'step'"]
    assert works == []
    page = (tmp_path / "validation.md").read_text()
    assert "4 FAILED, 2 passed." in page
    assert "| [is wrong](logs/is-wrong.log) | FAILED | 0 of 1 right |" in page
    assert "4/6 fails … FAILED" in capsys.readouterr().out
    deadline = time.monotonic() + 10
    while not is_gone(int(outcomes[-1].text)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_part_runs_under_its_program_with_its_variables(tmp_path):
    source = "import os; print(os.environ['A'], os.environ['B'])"
    (outcome,) = run_all([program("works", source, environment={"A": "a"}, prefix=("env", "B=b"))], tmp_path, 60)
    assert (outcome.verdict, outcome.text) == (PASSED, "a b")


def test_a_validation_that_is_terminated_ends_its_part(tmp_path):
    out = tmp_path / "validation"
    source = (
        "from benchmarks import validate\n"
        "hangs = validate.Part('hangs', ('-c', 'import time; print(1); time.sleep(600)'), 60)\n"
        "validate.parts_for = lambda device, out: [hangs]\n"
        f"validate.main(out=validate.Path({str(out)!r}), device='cpu')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.DEVNULL)
    log = validate.log_of(out, "hangs")
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert is_gone(int(child))
    assert (out / "validation.md").exists()


def test_at_the_end_of_its_time_a_training_saves_and_what_is_left_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "SECONDS_TO_SAVE", 1)
    monkeypatch.setattr(validate, "SHORTEST", 1)
    source = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(print('saved'))); time.sleep(600)"
    parts = [
        program("trains", source, seconds=1.5, stop=signal.SIGTERM),
        program("slow", "import time; time.sleep(600)"),
        program("works", ""),
    ]
    outcomes = run_all(parts, tmp_path, 4)
    assert [outcome.verdict for outcome in outcomes] == [PASSED, CUT, NOT_REACHED]
    assert outcomes[0].text == "saved"


def test_failed_tests_are_named_even_if_one_hangs(tmp_path):
    file = tmp_path / "test_it.py"
    test = "@pytest.mark.parametrize('n', range(12))\ndef test_wrong(n):\n    assert n < 0\n"
    file.write_text(f"import pytest, time\n\n{test}\ndef test_stuck():\n    time.sleep(600)\n")
    command = ["-m", "pytest", "-q", "-ra", "-c", os.devnull, "--rootdir", str(tmp_path), str(file)]
    (outcome,) = run_all([Part("tests", command, 6, signal.SIGINT)], tmp_path, 100)
    assert outcome.verdict == FAILED
    assert outcome.text.startswith("12 failed in ")
    assert outcome.why[0] == "not done after 6 s"
    assert outcome.why[1].endswith("test_it.py::test_wrong[0] - assert 0 < 0")
    assert outcome.why[-1] == "… and 4 more"


def test_what_makes_no_sense_is_refused(tmp_path):
    for device in ("cpu", "cuda"):
        parts = validate.parts_for(device, tmp_path)
        assert len({part.name for part in parts}) == len(parts)
    (tmp_path / "precious").touch()
    with pytest.raises(SystemExit, match="is not empty: choose another --out"):
        validate.main(out=tmp_path, device="cpu")
    with pytest.raises(SystemExit, match="no part has speed in its name: check environment, check operations, "):
        validate.main(out=tmp_path / "new", device="cpu", only=("speed",))


@pytest.mark.slow
def test_on_a_cpu_checks_and_figures_run_in_small(tmp_path):
    out = tmp_path / "new"
    options = ["--device", "cpu", "--out", str(out), "--only", "time singular"]
    result = subprocess.run([sys.executable, "-m", "benchmarks.validate", *options], cwd=ROOT, capture_output=True)
    assert result.returncode == 0, result.stdout
    page = (out / "validation.md").read_text()
    assert "\n2 passed.\n" in page
    assert "small, gaussian: call auto " in page
    assert "## Goals\n\n" in page
    assert "ok     versions: " in page
