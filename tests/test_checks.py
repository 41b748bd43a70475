"""The short checks say what is right and what is wrong."""

import pytest

from benchmarks import checks


def printed_by(name, capsys):
    with pytest.raises(SystemExit) as ended:
        checks.main(name, device="cpu")
    return bool(ended.value.code), capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", ["environment", pytest.param("step", marks=pytest.mark.slow)])
def test_all_is_right(name, capsys):
    failed, lines = printed_by(name, capsys)
    assert not failed
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == f"{len(lines) - 1} of {len(lines) - 1} right"


def test_what_is_wrong_is_told_of_and_the_rest_is_checked_all_the_same(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.bench_step.Fast.__call__", lambda self, real: (self.step.non_finite + 1.0,) * 2)
    failed, lines = printed_by("step", capsys)
    assert failed
    assert lines[0].startswith("WRONG  fp32, CUDA graph off: its first losses are off by ")
    assert lines[1].startswith(("ok ", "WRONG "))
    assert lines[-1].endswith(" of 2 right")


def test_a_gpu_without_a_backend_is_wrong(monkeypatch):
    states = {"rmsprop": {"triton": "Triton is not installed", "torch": "available"}}
    monkeypatch.setattr(checks, "backends", lambda: states)
    monkeypatch.setattr(checks.results, "describe", lambda device: {})
    found = dict(checks.environment("cuda"))
    assert found["rmsprop: torch"]() == "available"
    with pytest.raises(checks.WrongError, match="Triton is not installed"):
        found["rmsprop: triton"]()
