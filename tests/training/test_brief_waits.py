"""Brief waits: when they begin and end, and that they do not change training."""

import os
import subprocess
import sys

import pytest
import torch

from tgan_fast.training.brief_waits import BriefWaits, CpuTime, busy_seconds, teams_to_exceed

STAT = """cpu  400 10 60 9000 50 3 7 100 0 0
cpu0 100 2 30 5000 20 1 2 40 0 0
cpu1 300 8 30 4000 30 2 5 60 0 0
intr 5 0 0
"""

# Sums depend on the number of threads in their last bits.
PROGRAM = """
import sys, time
import torch
from tgan_fast.training.brief_waits import BriefWaits

values = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0))
expected = values.sum()
with BriefWaits(torch.device("cpu")) as waits:
    end = time.monotonic() + 60
    while not waits.active and time.monotonic() < end:
        assert torch.equal(values.sum(), expected)
        time.sleep(0.1)
    print(waits.active, torch.get_num_threads(), torch.equal(values.sum(), expected))
print(waits.active, torch.equal(values.sum(), expected))
"""


def test_time_of_this_process_s_cpus_is_counted_and_time_of_others_is_not():
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_seconds(STAT, {0}) == pytest.approx((100 + 2 + 30 + 1 + 2) / ticks)
    assert busy_seconds(STAT, {0, 1}) == pytest.approx((135 + 300 + 8 + 30 + 2 + 5) / ticks)


@pytest.mark.parametrize(("cpus", "threads"), [(2, 2), (8, 8), (8, 4), (16, 3), (9, 2)])
def test_teams_have_more_threads_together_than_there_are_cpus(cpus, threads):
    teams = teams_to_exceed(cpus, threads)
    assert threads + teams * (threads - 1) > cpus >= threads + (teams - 1) * (threads - 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_few_threads_on_many_cpus_are_left_alone(threads):
    assert teams_to_exceed(64, threads) == 0


def test_cpus_that_others_used_are_those_that_were_busy_without_this_process():
    assert CpuTime(12, 108, 31).others_since(CpuTime(10, 103, 30)) == 2


def test_beside_a_busy_program_threads_wait_briefly_and_results_stay():
    threads = str(len(os.sched_getaffinity(0)))
    if threads == "1":
        pytest.skip("needs two CPUs")
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120
        )
    finally:
        hog.kill()
        hog.wait()
    assert found.stdout.split() == ["True", threads, "True", "False", "True"], found.stderr


def test_a_gpu_has_no_use_for_it():
    with BriefWaits(torch.device("cuda")) as waits:
        assert not waits.active
    assert not waits.active
