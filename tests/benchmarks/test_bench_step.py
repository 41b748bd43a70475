"""The benchmark of the whole step compares contenders with equal results, and leaves out others."""

import os
import time

import pytest
import torch

from benchmarks import bench_step as bench
from benchmarks.contenders import Compiled, Notebook, Start, Tuned, TunedInGraph, WithoutWaste
from benchmarks.result_files import NOT_MEASURED
from benchmarks.suite import Run, memory_kept

WIDTH = 1 / 32
OWN = bench.fast("fp32")


def losses_of(kind, count, dtype=torch.float32, device="cpu"):
    batches = [{form: x.to(dtype) for form, x in batch.items()} for batch in bench.make_batches(2, device)]
    return bench.iterate(kind(Start.random(device, WIDTH), dtype), batches, count)


@pytest.mark.parametrize("rival", [WithoutWaste, Tuned])
def test_rivals_compute_the_notebooks_iteration(rival):
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark
    expected, got = (losses_of(kind, 2, torch.float64) for kind in (Notebook, rival))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert (cudnn.conv.fp32_precision, cudnn.benchmark) == before


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [TunedInGraph, pytest.param(Compiled, marks=pytest.mark.slow)])
def test_a_rival_with_a_graph_computes_the_same(kind):
    losses = [losses_of(each, bench.CHECKED["cuda"], device="cuda") for each in (kind, Tuned)]
    assert bench.errors_of(*losses)[1] < bench.DRIFT_ALLOWED


class Broken(Notebook):
    """Cannot run here."""

    def __call__(self, real):
        raise RuntimeError("out of order\nmore")


class Stuck(Notebook):
    """Does not train after its first iteration, as if a CUDA graph had missed the optimizers."""

    def __call__(self, real):
        losses = super().__call__(real)
        for optimizer in self.optimizers:
            optimizer.step = lambda: None
        return losses


@pytest.mark.parametrize(("rival", "reason"), [(Broken, "out of order"), (Stuck, "is off by")])
def test_rivals_that_do_something_else_are_left_out(rival, reason):
    start, batches = Start.random("cpu", WIDTH), bench.make_batches(2, "cpu")
    arguments = start, batches, bench.exact_losses(start, batches, 4)
    makers = {bench.NOTEBOOK: Notebook, bench.TUNED: rival}
    contenders, errors, _, left_out = bench.set_up(Run("cpu"), makers, *arguments)
    assert contenders.keys() == errors.keys() == {bench.NOTEBOOK}
    assert reason in left_out[bench.TUNED]
    with pytest.raises((SystemExit, RuntimeError), match=r"nothing is timed|out of order"):
        bench.set_up(Run("cpu"), {OWN: rival}, *arguments)


@pytest.mark.slow
def test_a_rival_is_measured_in_a_process_of_its_own():
    losses, timing, peak = bench.in_process(bench.measure_alone, (bench.TUNED, "cpu", True, 1), 100)
    exact = bench.exact_losses(*bench.starting_point(Run("cpu", smoke=True)), 1)
    assert bench.errors_of(torch.tensor(losses, dtype=torch.float64), exact)[0] < 1e-4
    assert min(timing.rounds) > 0
    assert peak is None


def test_a_process_without_an_answer_says_why():
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        bench.in_process(os._exit, (3,), 60)
    with pytest.raises(RuntimeError, match=r"not ready after 0\.1 s"):
        bench.in_process(time.sleep, (60,), 0.1)
    with pytest.raises(RuntimeError, match="invalid literal"):
        bench.in_process(int, ("x",), 60)


def test_steps_that_waited_for_the_host_count_as_idle():
    steps = [3.0, 1.0, 1.0, 1.0, 1.0] * 40
    late = [seconds + 0.5 * (index % 4 == 0) for index, seconds in enumerate(steps)]
    assert bench.seconds_without_waits(late, 5) == pytest.approx(sum(steps))


def rows(part, **ratios):
    return [{"contender": name, "part": part, "seconds": 2.9e-3 * r, "ratio": r} for name, r in ratios.items()]


def test_goals_tell_what_is_met_what_is_missed_and_what_is_not_measured():
    without = rows(bench.WITHOUT_CLIPPING, own=1.0, **{bench.NOTEBOOK: 9.0, bench.TUNED: 3.0, bench.IN_GRAPH: 2.1})
    without[0]["peak_bytes"], without[1]["peak_bytes"] = 7e8, 21e8
    clipped = rows(bench.WITH_CLIPPING, own=1.3, **{bench.NOTEBOOK: 31.0})
    usual = {"batch_size": 32, "timings": without + clipped}
    smoke = {"batch_size": 2, "timings": rows(bench.WITHOUT_CLIPPING, own=2.0)}

    def verdicts(*records, device="cuda"):
        return [goal.verdict for goal in bench.goals_for(list(records), device)]

    assert verdicts(smoke, usual) == ["met", "SHORT", "met", "SHORT", "met", "met", "met", NOT_MEASURED]
    assert verdicts({"batch_size": 32, "timings": [], "gpu_idle": 0.03}) == [NOT_MEASURED] * 7 + ["SHORT"]


def test_goals_of_a_cpu_are_of_rivals_both_ways_for_every_batch_size():
    kept = {memory_kept(name): ratio for name, ratio in ((bench.NOTEBOOK, 2.1), (bench.TUNED, 1.3))}
    clipped = {"batch_size": 8, "timings": rows(bench.WITH_CLIPPING, own=1.0, **{bench.NOTEBOOK: 2.9}, **kept)}
    goals = bench.goals_for([clipped], "cpu")
    assert [goal.verdict for goal in goals] == [NOT_MEASURED] * 3 + ["met", "met", "SHORT"]
    assert goals[-1].text == "times as fast as tuned eager, memory kept, batch 8"


@pytest.mark.slow
def test_clipping_comes_on_top_of_an_iteration():
    run = Run("cpu", smoke=True)
    record = bench.measure(run, bench.cases_for(run)[0])
    found = {(row["part"], row["contender"]): row["seconds"] for row in record["timings"]}
    for name in run.rivals:
        assert found[bench.WITH_CLIPPING, name] > found[bench.WITHOUT_CLIPPING, name]
    calls = bench.calls_for(run, bench.cases_for(run)[0])
    assert calls[f"{bench.WITHOUT_CLIPPING} {OWN}"]()()[0].isfinite()
