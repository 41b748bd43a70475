"""The validation: parts that crash, hang or fail cost themselves alone, and the page says so."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import results, validate
from benchmarks.validate import CRASHED, CUT, FAILED, NOT_REACHED, PASSED, TIMED_OUT, Part

ROOT = Path(__file__).resolve().parent.parent


def program(name, source, seconds=60, **options):
    return Part(name, ("-c", source), seconds, **options)


CRASHES = program("crashes", "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)")
HANGS = program("hangs", "import time\ndef stuck():\n    time.sleep(600)\nstuck()", seconds=1.5)
FAILS = program("fails", "raise ValueError('a mistake')")
WORKS = program("works", "print('done')")


def outcomes_of(parts, folder, seconds=100.0):
    return {outcome.part: outcome for outcome in validate.run_all(parts, folder, seconds)}


def test_a_part_that_crashes_hangs_or_fails_leaves_the_others_alone(tmp_path, capsys):
    outcomes = outcomes_of([CRASHES, HANGS, FAILS, WORKS], tmp_path)
    assert [outcome.verdict for outcome in outcomes.values()] == [CRASHED, TIMED_OUT, FAILED, PASSED]
    assert outcomes["crashes"].why[0] == "ended by SIGSEGV"
    assert outcomes["hangs"].why[0] == "not done after 2 s"
    # Where it hung.
    assert "in stuck" in validate.log_of(tmp_path, "hangs").read_text()
    assert outcomes["fails"].why[-1] == "ValueError: a mistake"
    assert outcomes["works"].why == []
    page = (tmp_path / "validation.md").read_text()
    assert page.startswith("# Validation of tgan_fast\n\n1 CRASHED, 1 TIMED OUT, 1 FAILED, 1 passed. TIMED OUT is ")
    assert "- **fails** ([log](logs/fails.log))" in page
    assert "  - `ValueError: a mistake`" in page
    content = json.loads((tmp_path / "validation.json").read_text())
    assert [part["verdict"] for part in content["parts"]] == [CRASHED, TIMED_OUT, FAILED, PASSED]
    assert "3/4 fails … FAILED" in capsys.readouterr().out


def test_what_a_part_has_started_ends_with_it(tmp_path):
    started = tmp_path / "child"
    source = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
    )
    outcomes_of([program("parent", source)], tmp_path)
    child = int(started.read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().split()[2]
        except (FileNotFoundError, ProcessLookupError):
            return
        # Ended, but not yet waited for by the process that inherited it.
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


def test_a_validation_that_is_terminated_ends_its_part(tmp_path):
    out = tmp_path / "validation"
    log = validate.log_of(out, "training")
    command = ["-m", "benchmarks.validate", "--device", "cpu", "--only", "training", "--out", str(out)]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{child}").exists()
    assert (out / "validation.md").exists()


def test_what_the_minutes_do_not_reach_is_said(tmp_path):
    slow = program("slow", "import time; time.sleep(600)")
    outcomes = outcomes_of([slow, WORKS], tmp_path, seconds=6)
    assert [outcome.verdict for outcome in outcomes.values()] == [CUT, NOT_REACHED]
    page = (tmp_path / "validation.md").read_text()
    assert "Time ran out before these were done: slow, works." in page
    assert "What is wrong" not in page


def test_a_training_is_asked_to_save_and_passes(tmp_path):
    source = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved') or 0))\n"
        "time.sleep(600)"
    )
    (outcome,) = outcomes_of([program("trains", source, seconds=3, trains=True)], tmp_path).values()
    assert outcome.verdict == PASSED
    assert validate.log_of(tmp_path, "trains").read_text() == "saved\n"


FAILING_TESTS = """
import pytest

def test_right():
    pass

@pytest.mark.skip
def test_skipped():
    pass

@pytest.mark.parametrize("n", range(12))
def test_wrong(n):
    assert n < 0, f"{n} is too large\\nand more"
"""


def part_of_tests(folder, source, seconds=60):
    """Write a file of tests and return the part that runs it."""
    file = folder / "test_it.py"
    file.write_text(source)
    command = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(folder), "--junitxml", str(folder / "it.xml")]
    return Part("tests", (*command, str(file)), seconds, file="it.xml")


def test_failed_tests_are_named_with_the_first_line_of_why(tmp_path):
    (outcome,) = outcomes_of([part_of_tests(tmp_path, FAILING_TESTS)], tmp_path).values()
    assert outcome.verdict == FAILED
    assert outcome.text == "1 passed, 12 failed, 1 skipped"
    assert outcome.why[0] == "test_it::test_wrong[0]: AssertionError: 0 is too large"
    assert outcome.why[-1] == "… and 4 more"
    assert len(outcome.why) == validate.MOST_FAILURES + 1


def test_tests_that_take_too_long_tell_what_they_found(tmp_path):
    source = FAILING_TESTS + "\n\ndef test_stuck():\n    import time\n    time.sleep(600)\n"
    (outcome,) = outcomes_of([part_of_tests(tmp_path, source, seconds=8)], tmp_path).values()
    assert outcome.verdict == TIMED_OUT
    assert re.fullmatch(r"so far: \d passed, 12 failed, 1 skipped", outcome.text)
    assert outcome.why[:2] == ["not done after 8 s", "test_it::test_wrong[0]: AssertionError: 0 is too large"]
    # Where it was.
    where = f"test_it.py:{len(source.splitlines())}: KeyboardInterrupt"
    assert where in validate.log_of(tmp_path, "tests").read_text()


def test_half_a_file_is_said_and_no_error(tmp_path):
    source = f"import pathlib; pathlib.Path({str(tmp_path / 'half.json')!r}).write_text('['); print('so far')"
    (outcome,) = outcomes_of([program("half", source, file="half.json")], tmp_path).values()
    assert outcome.verdict == PASSED
    assert outcome.why[0].startswith("its results cannot be read: ")
    assert outcome.why[1:] == ["so far"]


def test_what_is_printed_fits_a_screen(tmp_path):
    outcomes = [validate.Outcome(f"part {n}", FAILED, 1.0, "", ["why"] * 5) for n in range(40)]
    lines = validate.table_of(tmp_path, outcomes)
    assert len(lines) == validate.PRINTED
    assert lines[-1] == f"40 FAILED; the page is {tmp_path / 'validation.md'}"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_parts_have_names_and_files_of_their_own(device, tmp_path):
    parts = validate.parts_for(device, tmp_path)
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert len({validate.log_of(tmp_path, name) for name in names}) == len(names)
    for part in parts:
        assert part.command[0] == "-m"


def test_what_makes_no_sense_is_refused(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(SystemExit, match="is not empty: choose another --out"):
        validate.main(out=tmp_path, device="cpu")
    for minutes in (0, float("nan"), float("inf")):
        with pytest.raises(SystemExit, match=f"--minutes is {minutes:g}: choose more than 0"):
            validate.main(minutes=minutes, device="cpu")
    with pytest.raises(SystemExit, match="precious cannot be made: File exists"):
        validate.main(out=tmp_path / "precious", device="cpu")
    with pytest.raises(SystemExit, match="no part has speed in its name: check environment, check backends"):
        validate.main(out=tmp_path / "new", device="cpu", only=("speed",))
    assert not (tmp_path / "new").exists()


def test_of_two_files_of_results_the_fuller_one_counts(tmp_path):
    def payload(*cases):
        return {"environment": {}, "cases": list(cases), "goals": []}

    own = {"step": payload(1), "sampling": payload(1, 2), "breakdown": payload(1)}
    rivals = {"step": payload(3), "sampling": payload(3)}
    for name, sections in (("own", own), ("rivals", rivals)):
        content = {"schema": results.SCHEMA, "sections": sections}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = {name: section["cases"] for name, section in validate.sections_in(tmp_path).items()}
    assert found == {"step": [3], "sampling": [1, 2], "breakdown": [1]}


def test_the_page_has_no_colors_though_a_terminal_gets_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    row = {"contender": "own", "part": None, "seconds": 1.0, "p10": 1.0, "p90": 1.0, "ratio": 1.0, "method": ""}
    record = {"case": "batch 2", "timings": [row], "left_out": {}, "flags": ["the clock fell"], "svd_seconds": None}
    payload = {"cases": [record], "goals": []}
    content = {"schema": results.SCHEMA, "sections": {"step": payload}}
    (tmp_path / "own.json").write_text(json.dumps(content))
    page = validate.page(tmp_path, [])
    assert "FLAG the clock fell" in page
    assert "\x1b" not in page


@pytest.mark.slow
def test_on_a_cpu_all_parts_run_in_small(tmp_path):
    out = tmp_path / "validation"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.validate", "--device", "cpu", "--minutes", "8", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    content = json.loads((out / "validation.json").read_text())
    assert result.returncode == 0, result.stdout[-5000:]
    assert {part["verdict"] for part in content["parts"]} == {PASSED}
    assert len(result.stdout.split("\n\n", 1)[1].splitlines()) <= validate.PRINTED
    sections = validate.sections_in(out)
    assert {"step", "breakdown", "singular_value_clip", "batch_norm_act", "convolutions", "sampling"} <= sections.keys()
    texts = {part["part"]: part["text"] for part in content["parts"]}
    assert re.fullmatch(r"small, gaussian: call auto [\d.]+ ms", texts["time singular value clip"])
    assert re.search(r": without clipping tgan_fast fp32 [\d.]+ ms, .* times as long$", texts["time step and rivals"])
    # With rivals, which come last.
    assert any(record["rivals"] for record in sections["step"]["cases"])
    training, more = (part for part in content["parts"] if "training" in part["part"])
    iterations = [int(part["text"].split()[0].replace(",", "")) for part in (training, more)]
    assert 0 < iterations[0] < iterations[1]
    page = (out / "validation.md").read_text()
    assert "## singular_value_clip: " in page
    assert "Not reached" not in page
