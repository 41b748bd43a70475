"""The short checks report right and wrong results."""

import pytest

from benchmarks import check_device


def test_a_failed_check_is_reported_and_the_others_still_run(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.bench_step.Fast.__call__", lambda self, real: (self.step.non_finite + 1.0,) * 2)
    with pytest.raises(SystemExit) as ended:
        check_device.main("step", device="cpu")
    assert ended.value.code
    wrong, other, counted = capsys.readouterr().out.splitlines()
    assert wrong.startswith("WRONG  fp32, CUDA graph off: losses off by ")
    assert other.startswith(("ok ", "WRONG "))
    assert counted.endswith(" of 2 right")


def test_of_the_operations_only_a_wrong_one_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(check_device, "rmsprop_", lambda p, *_, backend, **__: p.add_(backend != "torch"))
    with pytest.raises(SystemExit):
        check_device.main("operations", device="cpu")
    *lines, counted = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if line.startswith("WRONG ")]
    assert wrong == [line for line in lines if "rmsprop: off by" in line] != []
    assert counted == f"{len(lines) - 1} of {len(lines)} right"


def test_a_gpu_without_a_backend_is_wrong(monkeypatch):
    on_a_cpu = "the CPU extension runs on a CPU, not on cuda:0"
    states = {"rmsprop": {"triton": "Triton is not installed", "cpu": on_a_cpu, "torch": "available"}}
    monkeypatch.setattr(check_device, "backends", lambda: states)
    monkeypatch.setattr(check_device.result_files, "describe_environment", lambda device: {})
    found = dict(check_device.environment("cuda"))
    assert found.keys() == {"versions", "rmsprop: triton", "rmsprop: torch"}
    assert found["rmsprop: torch"]() == "available"
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        found["rmsprop: triton"]()
