"""The benchmark of the whole step compares what does the same; the figures are their own business."""

import json

import pytest
import torch

from benchmarks import bench_singular_value_clip, harness
from benchmarks import bench_step as bench
from benchmarks.contenders import Compiled, Notebook, Start, StrictNotebook, Tuned, TunedInGraph, WithoutWaste

WIDTH, BATCH = 1 / 32, 2
OWN = bench.fast("fp32")


def start(device="cpu"):
    return Start.random(device, WIDTH)


def state(contender):
    networks = contender.generator, contender.discriminator
    return torch.cat([t.double().flatten().cpu() for network in networks for t in network.state_dict().values()])


def iterate(contender, count, dtype=torch.float32, device="cpu"):
    batches = [{form: x.to(dtype) for form, x in batch.items()} for batch in bench.make_batches(BATCH, device)]
    return torch.stack(bench.iterate(contender, batches, count))


@pytest.mark.parametrize("rival", [WithoutWaste, Tuned])
def test_rivals_compute_the_notebooks_iteration(rival):
    notebook, other = Notebook(start(), torch.float64), rival(start(), torch.float64)
    expected, got = (iterate(contender, 3, torch.float64) for contender in (notebook, other))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    # Biases in front of batch norms have rounding for gradients, which RMSprop enlarges.
    assert (state(other) - state(notebook)).norm() < 1e-6 * state(notebook).norm()


def test_tgan_fast_sees_the_same_latents():
    expected = bench.exact_losses(start(), bench.make_batches(BATCH, "cpu"), 1)
    assert bench.relative_error(iterate(bench.Fast(start(), "fp32"), 1), expected) < 1e-5


@pytest.mark.parametrize("contender", [Notebook, StrictNotebook, Tuned])
def test_what_a_contender_switches_is_switched_back(contender):
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark
    iterate(contender(start()), 1)
    assert (cudnn.conv.fp32_precision, cudnn.benchmark) == before


def test_warming_up_leaves_no_trace():
    fresh, warm = Tuned(start()), Tuned(start())
    with warm._undone():
        iterate(warm, 2)
    torch.testing.assert_close(state(warm), state(fresh), rtol=0, atol=0)
    torch.testing.assert_close(iterate(warm, 2), iterate(fresh, 2), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [TunedInGraph, pytest.param(Compiled, marks=pytest.mark.slow)])
def test_a_rival_that_prepares_itself_computes_the_same(kind):
    eager, prepared = Tuned(start("cuda")), kind(start("cuda"))
    prepared.prepare(bench.make_batches(BATCH, "cuda")[0][prepared.memory_format])
    losses = [iterate(contender, 1, device="cuda") for contender in (prepared, eager)]
    assert bench.relative_error(*losses) < bench.ALWAYS_ALLOWED["bf16"]


class Wrong(WithoutWaste):
    """Trains on other videos."""

    def __call__(self, real):
        return super().__call__(0.5 * real)


class Broken(Notebook):
    """Cannot run here."""

    def prepare(self, real):
        raise RuntimeError("out of order\nmore")


class Stuck(Notebook):
    """Does not train after its first iteration, as if a CUDA graph had missed the optimisers."""

    def __call__(self, real):
        losses = super().__call__(real)
        for optimizer in self.optimizers:
            optimizer.step = lambda: None
        return losses


@pytest.mark.parametrize(
    ("rival", "reason"), [(Wrong, "its first losses are off"), (Broken, "out of order"), (Stuck, "after some")]
)
def test_rivals_that_do_something_else_are_left_out(rival, reason):
    batches = bench.make_batches(BATCH, "cpu")
    exact = bench.exact_losses(start(), batches, 4)
    makers = {bench.NOTEBOOK: lambda: Notebook(start()), bench.TUNED: lambda: rival(start())}
    contenders, errors, left_out = bench.set_up(makers, batches, exact, "cpu")
    assert contenders.keys() == {bench.NOTEBOOK}
    assert errors[bench.NOTEBOOK].first < 1e-5
    assert reason in left_out[bench.TUNED]


@pytest.mark.parametrize(("rival", "error"), [(Wrong, SystemExit), (Broken, RuntimeError)])
def test_tgan_fast_is_not_left_out(rival, error):
    batches = bench.make_batches(BATCH, "cpu")
    exact = bench.exact_losses(start(), batches, 1)
    with pytest.raises(error, match=r"nothing is timed|out of order"):
        bench.set_up({OWN: lambda: rival(start())}, batches, exact, "cpu")


@pytest.mark.parametrize("ready", [True, False])
def test_compiling_quickly_stands_in_for_what_is_not_ready(ready, monkeypatch):
    monkeypatch.setattr(bench, "refusal_of", lambda name, _: None if ready or name != bench.COMPILED else "not ready")
    eager = [bench.NOTEBOOK, bench.NOTEBOOK_FP32, bench.UNWASTED, bench.TUNED, bench.IN_GRAPH]
    compiled = [bench.COMPILED] if ready else [bench.COMPILED_QUICKLY]
    refusals = {} if ready else {bench.COMPILED: "not ready"}
    assert bench.rivals_for("cuda", True, BATCH) == (eager + compiled, refusals)
    assert bench.rivals_for("cuda", False, BATCH) == (eager, {})


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is refused on a GPU")
def test_what_cannot_run_or_takes_too_long_is_refused(monkeypatch):
    assert "CUDA" in bench.refusal_of(bench.IN_GRAPH, BATCH)
    monkeypatch.setitem(bench.PROBED, bench.IN_GRAPH, 0)
    assert bench.refusal_of(bench.IN_GRAPH, BATCH) == "not ready after 0 s"


def test_twice_the_error_of_eager_pytorch_is_allowed():
    errors = {bench.TUNED: bench.Errors(0.05, 0.06), bench.NOTEBOOK: bench.Errors(float("nan"), 0.0)}
    assert bench.disagreement(bench.Errors(0.099, 0.2), "bf16", errors) is None
    assert "off by 1.1e-01, more than 1.0e-01" in bench.disagreement(bench.Errors(0.11, 0.2), "bf16", errors)
    assert "after some iterations, more than 2.4e-01" in bench.disagreement(bench.Errors(0.0, 0.25), "bf16", errors)
    assert bench.disagreement(bench.Errors(0.01, 0.0), "tf32", errors)
    assert bench.disagreement(errors[bench.NOTEBOOK], "tf32", errors)
    assert bench.disagreement(bench.Errors(9e-4, 0.1), "fp32", errors) is None


def test_steps_that_waited_for_the_host_count_as_idle():
    steps = [3.0, 1.0, 1.0, 1.0, 1.0] * 40
    assert bench.busy_seconds(steps, 5) == pytest.approx(sum(steps))
    late = [seconds + 0.5 * (index % 4 == 0) for index, seconds in enumerate(steps)]
    assert bench.busy_seconds(late, 5) == pytest.approx(sum(steps))


def test_goals_tell_what_is_met_what_is_missed_and_what_is_not_measured():
    own = {"contender": "tgan_fast bf16", "seconds": 2.9e-3, "minutes": 6.0, "ratio": 1.0, "peak_bytes": 7e8}
    notebook = {"contender": bench.NOTEBOOK, "ratio": 9.0, "ratio_with_clipping": 31.0, "peak_bytes": 21e8}
    tuned, graph = ({"contender": name, "ratio": ratio} for name, ratio in ((bench.TUNED, 3.0), (bench.IN_GRAPH, 2.1)))
    payload = {"cases": [{"contenders": [own, notebook, tuned, graph]}]}
    verdicts = [goal.verdict for goal in bench.goals_for(payload, "cuda")]
    assert verdicts == ["met", "SHORT", "met", "SHORT", "met", "met", "met", harness.NOT_MEASURED]
    payload["training"] = {"gpu_idle": 0.03}
    assert bench.goals_for(payload, "cuda")[-1].verdict == "SHORT"
    assert bench.goals_for({"cases": [{"contenders": [own]}]}, "cpu")[0].verdict == harness.NOT_MEASURED


@pytest.mark.slow
def test_what_runs_writes_what_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "WIDTH", WIDTH)
    monkeypatch.setitem(bench.DEFAULT_BATCH, "cpu", BATCH)
    bench.main("cpu", smoke=True)
    assert not list(tmp_path.iterdir())
    bench.main("cpu")
    (path,) = tmp_path.iterdir()
    section = json.loads(path.read_text())["sections"]["step"]
    (case,) = section["cases"]
    rows = {row["contender"]: row for row in case["contenders"]}
    assert list(rows) == [OWN, bench.NOTEBOOK, bench.UNWASTED, bench.TUNED, harness.again(OWN)]
    for row in rows.values():
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
    assert rows[OWN]["ratio"] == rows[OWN]["ratio_with_clipping"] == 1
    notebook = rows[bench.NOTEBOOK]
    assert notebook["with_clipping"] == pytest.approx(notebook["seconds"] + case["svd_seconds"] / bench.CYCLE, rel=1e-3)
    assert notebook["minutes"] == pytest.approx(bench.ITERATIONS * notebook["with_clipping"] / 60, rel=1e-3)
    assert bench_singular_value_clip.seconds_an_iteration("cpu") == rows[OWN]["with_clipping"]
    printed = capsys.readouterr().out
    assert "reference " in printed
    assert "goal ≥ 2 times as fast as the notebook" in printed
