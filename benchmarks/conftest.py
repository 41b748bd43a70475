"""`pytest benchmarks`: a test of pytest-benchmark for every timing, and at the end the files of `python -m benchmarks`.

The tests only hand on what the suite measures, since contenders take turns: the first test of a case runs all of it.
"""

import pytest

from benchmarks import report, results
from benchmarks.sections import SECTIONS
from benchmarks.suite import Run, Suite, chosen, refuse_without_extension, resolve_device

SUITE = pytest.StashKey[Suite]()


def pytest_addoption(parser):
    group = parser.getgroup("tgan_fast")
    group.addoption("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run")
    group.addoption("--smoke", action="store_true", help="small tensors; writes nothing")
    group.addoption("--only", nargs="+", default=(), metavar="TEXT", help='cases with one of these in "section case"')


def pytest_configure(config):
    try:
        device, smoke = resolve_device(config.getoption("device")), config.getoption("smoke")
        refuse_without_extension(device)
    except SystemExit as error:
        raise pytest.UsageError(str(error).removeprefix("error: ")) from None
    whole = not smoke and not config.getoption("only")
    config.stash[SUITE] = Suite(Run(device, smoke=smoke), results.file_of(device) if whole else None)


def pytest_generate_tests(metafunc):
    if "label" in metafunc.fixturenames:
        suite = metafunc.config.stash[SUITE]
        arguments = [
            (section, case, label)
            for section, cases in chosen(SECTIONS, suite.run, metafunc.config.getoption("only"))
            for case in cases
            for label in section.labels(suite.run, case)
        ]
        ids = [f"{section.name}, {case}, {label}" for section, case, label in arguments]
        metafunc.parametrize(("section", "case", "label"), arguments, ids=ids)


@pytest.fixture
def suite(request) -> Suite:
    """That of this session."""
    return request.config.stash[SUITE]


def pytest_sessionfinish(session):
    suite = session.config.stash[SUITE]
    if suite.path is not None and suite.path.exists():
        report.write()
