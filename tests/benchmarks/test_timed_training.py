"""Trainings side by side: their processes end with the one that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The processes sleep far longer than the test takes.
_PARENT = """
from benchmarks.timed_training import side_by_side
from tests.benchmarks.test_timed_training import report_and_sleep

if __name__ == "__main__":
    list(side_by_side(report_and_sleep, [600.0], "cpu"))
"""


def report_and_sleep(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)


@pytest.mark.slow
def test_processes_end_with_their_parent_when_it_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    command = [sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        # The output ends when every process that has it open has ended.
        assert int(parent.stdout.readline()) != parent.pid
        parent.send_signal(signal.SIGKILL)
        assert parent.communicate(timeout=300)[0] == ""
