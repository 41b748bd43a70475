"""The short checks say what is right and what is wrong."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import checks
from tgan_fast.ops import batch_norm_act


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in checks.CHECKS])
def test_all_is_right(name, tmp_path):
    """On a GPU, benchmarks.validate runs the checks themselves."""
    out = tmp_path / "found.json"
    with pytest.raises(SystemExit) as ended:
        checks.main(name, device="cpu", out=out)
    found = json.loads(out.read_text())
    assert not [result for result in found if not result["ok"]]
    assert len(found) > 0
    assert ended.value.code == 0


WRONG = {
    "clipping": ("benchmarks.bench_singular_value_clip.singular_value_clip_", lambda weights, **_: weights[0].zero_()),
    "batch-norm": (
        "benchmarks.bench_batch_norm_act.batch_norm_act",
        lambda *x, **options: 2 * batch_norm_act(*x, **options),
    ),
    "step": ("benchmarks.bench_step.Fast.__call__", lambda self, real: (self.step.non_finite + 1.0,) * 2),
    "sampling": ("benchmarks.bench_sampling.Fast.__call__", lambda self, z: torch.zeros(len(z), 16, 64, 64, 3)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_of_and_the_rest_is_checked_all_the_same(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(*WRONG[name])
    out = tmp_path / "found.json"
    with pytest.raises(SystemExit) as ended:
        checks.main(name, device="cpu", out=out)
    found = json.loads(out.read_text())
    assert ended.value.code == 1
    assert not found[0]["ok"]
    assert "off by" in found[0]["text"]
    assert f"WRONG  {found[0]['name']}: " in capsys.readouterr().out
    assert len(found) == len(list(checks.CHECKS[name]("cpu")))


def test_a_gpu_without_a_backend_is_wrong(monkeypatch):
    states = {"rmsprop": {"triton": "Triton is not installed", "torch": "available"}}
    monkeypatch.setattr(checks, "backends", lambda: states)
    (_, triton), (_, native), _ = checks.backends_of("cuda")
    assert native() == "available"
    with pytest.raises(checks.WrongError, match="Triton is not installed"):
        triton()


def test_the_command_line():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.checks", "environment", "--device", "cpu"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "ok     device: a matrix product equals the CPU's" in result.stdout
