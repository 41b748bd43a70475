"""pytest-benchmark tests for the calls that sections name: `pytest benchmarks`; writes no results."""

import time

import pytest
import torch

from benchmarks import result_files
from benchmarks.sections import SECTIONS
from benchmarks.suite import Run, choose_device, chosen, refuse_without_extension

RUN = pytest.StashKey[Run]()


def pytest_addoption(parser):
    group = parser.getgroup("tgan_fast")
    group.addoption("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run")
    group.addoption("--smoke", action="store_true", help="small tensors, few rounds")
    group.addoption("--only", nargs="+", default=(), metavar="TEXT", help='cases with one of these in "section case"')


def pytest_configure(config):
    device = choose_device(config.getoption("device"))
    refuse_without_extension(device)
    config.stash[RUN] = Run(device, smoke=config.getoption("smoke"))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["device"] = result_files.device_name(config.stash[RUN].device)


def pytest_generate_tests(metafunc):
    run = metafunc.config.stash[RUN]
    options = {"timer": _time_of_gpu} if run.device == "cuda" else {}
    options |= {"min_rounds": 1, "max_time": 0.01} if run.smoke else {}
    tests = []
    for section, cases in chosen(SECTIONS, run, metafunc.config.getoption("only")):
        for case in cases:
            for name, make in section.calls(run, case).items():
                part = [name.split()[0]] if name.startswith(("forward ", "backward ")) else []
                mark = pytest.mark.benchmark(group=", ".join([section.name, str(case), *part]), **options)
                tests.append(pytest.param(make, marks=mark, id=f"{section.name}, {case}, {name}"))
    metafunc.parametrize("make", tests)


def _time_of_gpu():
    """Return the time once the GPU has finished all launched work."""
    torch.cuda.synchronize()
    return time.perf_counter()
