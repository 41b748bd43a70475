"""The validation: parts that crash, hang or fail cost themselves alone, and the page says so."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import results, validate
from benchmarks.validate import CUT, FAILED, NOT_REACHED, PASSED, Part, run_all

ROOT = Path(__file__).resolve().parent.parent


def program(name, source, seconds=60, **options):
    return Part(name, ("-c", source), seconds, **options)


def is_gone(process):
    """Return whether a process has ended, or only waits for the one that inherited it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_part_that_crashes_hangs_or_fails_leaves_the_others_alone(tmp_path, capsys):
    parts = [
        program("crashes", "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"),
        program("hangs", "import time\ndef stuck():\n    time.sleep(600)\nstuck()", seconds=1.5),
        program("fails", "raise ValueError('a mistake')"),
        program("is wrong", "print('WRONG  clipping: off by 1'); print('0 of 1 right'); raise SystemExit(1)"),
        program("works", "print('done')"),
    ]
    outcomes = run_all(parts, tmp_path, 100)
    assert [outcome.verdict for outcome in outcomes] == [FAILED] * 4 + [PASSED]
    crashes, hangs, fails, wrong, works = (outcome.why for outcome in outcomes)
    assert crashes[0] == "ended by SIGSEGV"
    assert hangs[0] == "not done after 2 s"
    assert "in stuck" in validate.log_of(tmp_path, "hangs").read_text()  # where it hung
    assert fails[-1] == "ValueError: a mistake"
    assert wrong == ["exit code 1", "WRONG  clipping: off by 1"]
    assert works == []
    page = (tmp_path / "validation.md").read_text()
    assert page.startswith("# Validation of tgan_fast\n\n4 FAILED, 1 passed.")
    assert "| [is wrong](logs/is-wrong.log) | FAILED | 0 of 1 right |" in page
    assert "**fails**\n\n- `exit code 1`" in page
    content = json.loads((tmp_path / "validation.json").read_text())
    assert [part["verdict"] for part in content["parts"]] == [FAILED] * 4 + [PASSED]
    assert "3/5 fails … FAILED" in capsys.readouterr().out


def test_what_a_part_has_started_ends_with_it(tmp_path):
    source = (
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], stdout=2).pid, flush=True)\n"
    )
    (outcome,) = run_all([program("parent", source)], tmp_path, 100)
    deadline = time.monotonic() + 10
    while not is_gone(int(outcome.text)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


def test_what_the_minutes_do_not_reach_is_no_failure(tmp_path):
    parts = [program("slow", "import time; time.sleep(600)"), program("works", "")]
    assert [outcome.verdict for outcome in run_all(parts, tmp_path, 6)] == [CUT, NOT_REACHED]
    assert "1 cut off, 1 not reached." in (tmp_path / "validation.md").read_text()


def test_a_training_is_asked_to_save_and_passes(tmp_path):
    source = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved') or 0))\n"
        "time.sleep(600)"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stats.jsonl").touch()
    (outcome,) = run_all([program("trains", source, seconds=3, stop=signal.SIGTERM)], tmp_path, 100)
    assert (outcome.verdict, outcome.text) == (PASSED, "saved")


@pytest.mark.parametrize("stuck", [False, True])
def test_failed_tests_are_named_with_the_first_line_of_why(stuck, tmp_path):
    source = "import pytest, time\n\n@pytest.mark.parametrize('n', range(12))\ndef test_wrong(n):\n    assert n < 0\n"
    file = tmp_path / "test_it.py"
    file.write_text(source + "\ndef test_right():\n    pass\n" + "\ndef test_stuck():\n    time.sleep(600)\n" * stuck)
    command = ["-m", "pytest", "-q", "-ra", "-c", os.devnull, "--rootdir", str(tmp_path), str(file)]
    (outcome,) = run_all([Part("tests", command, 6 if stuck else 60, signal.SIGINT)], tmp_path, 100)
    assert outcome.verdict == FAILED
    assert outcome.text.startswith("12 failed, 1 passed in ")
    assert outcome.why[0] == ("not done after 6 s" if stuck else "exit code 1")
    assert outcome.why[1].endswith("test_it.py::test_wrong[0] - assert 0 < 0")
    assert outcome.why[-1] == "… and 4 more"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_parts_have_names_of_their_own_and_modules_that_exist(device, tmp_path):
    parts = validate.parts_for(device, tmp_path)
    assert len({validate.log_of(tmp_path, part.name) for part in parts}) == len(parts)
    for option, module in {tuple(part.command[:2]) for part in parts}:
        assert option == "-m"
        assert module == "pytest" or (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_what_makes_no_sense_is_refused(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(SystemExit, match="is not empty: choose another --out"):
        validate.main(out=tmp_path, device="cpu")
    with pytest.raises(SystemExit, match="--minutes is inf: choose more than 0"):
        validate.main(minutes=float("inf"), device="cpu")
    with pytest.raises(SystemExit, match="precious cannot be made: File exists"):
        validate.main(out=tmp_path / "precious", device="cpu")
    with pytest.raises(SystemExit, match="no part has speed in its name: check environment, check step"):
        validate.main(out=tmp_path / "new", device="cpu", only=("speed",))
    assert not (tmp_path / "new").exists()


def test_of_two_files_of_results_the_fuller_one_counts(tmp_path):
    def payload(text, cases):
        return {"cases": [1] * cases, "goals": [{"text": text}]}

    own = {name: payload("own", cases) for name, cases in (("step", 1), ("sampling", 2), ("breakdown", 1))}
    rivals = {name: payload("rivals", 1) for name in ("step", "sampling")}
    for name, sections in (("own", own), ("rivals", rivals)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"schema": results.SCHEMA, "sections": sections}))
    goals = {goal["section"]: goal["text"] for goal in validate.goals_in(tmp_path)}
    assert goals == {"step": "rivals", "sampling": "own", "breakdown": "own"}


@pytest.mark.slow
def test_on_a_cpu_checks_and_figures_run_in_small(tmp_path):
    out = tmp_path / "new"
    options = ["--device", "cpu", "--out", str(out), "--only", "quick tests", "time singular"]
    result = subprocess.run([sys.executable, "-m", "benchmarks.validate", *options], cwd=ROOT, capture_output=True)
    assert result.returncode == 0, result.stdout
    content = json.loads((out / "validation.json").read_text())
    assert {part["verdict"] for part in content["parts"]} == {PASSED}
    assert {goal["section"] for goal in content["goals"]} == {"singular_value_clip"}
    texts = {part["part"]: part["text"] for part in content["parts"]}
    assert texts["time singular value clip"].startswith("small, gaussian: call auto ")
