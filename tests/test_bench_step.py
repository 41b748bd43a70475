"""The benchmark of the whole step compares what does the same, and leaves out what does not."""

import os
import time

import pytest
import torch

from benchmarks import bench_step as bench
from benchmarks import training_run
from benchmarks.contenders import Compiled, Notebook, Start, Tuned, TunedInGraph, WithoutWaste
from benchmarks.results import NOT_MEASURED
from benchmarks.suite import Run

WIDTH, CASE = 1 / 32, bench.Case(2)
OWN = bench.fast("fp32")


def start(device="cpu"):
    return Start.random(device, WIDTH)


def state(contender):
    networks = contender.generator, contender.discriminator
    return torch.cat([t.double().flatten().cpu() for network in networks for t in network.state_dict().values()])


def iterate(contender, count, dtype=torch.float32, device="cpu"):
    batches = [{form: x.to(dtype) for form, x in batch.items()} for batch in bench.make_batches(2, device)]
    return torch.stack(bench.iterate(contender, batches, count))


@pytest.mark.parametrize("rival", [WithoutWaste, Tuned])
def test_rivals_compute_the_notebooks_iteration(rival):
    notebook, other = Notebook(start(), torch.float64), rival(start(), torch.float64)
    expected, got = (iterate(contender, 3, torch.float64) for contender in (notebook, other))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    # Biases in front of batch norms have rounding for gradients, which RMSprop enlarges.
    assert (state(other) - state(notebook)).norm() < 1e-6 * state(notebook).norm()


def test_tgan_fast_sees_the_same_latents():
    exact = bench.exact_losses(start(), bench.make_batches(2, "cpu"), 1)
    assert bench.Errors.of(iterate(bench.Fast(start(), "fp32"), 1), exact).first < 1e-5


def test_warming_up_leaves_no_trace():
    cudnn, (fresh, warm) = torch.backends.cudnn, (Tuned(start()), Tuned(start()))
    before = cudnn.conv.fp32_precision, cudnn.benchmark
    warm.warm_up(torch.zeros(2, 3, 16, 64, 64))
    assert (cudnn.conv.fp32_precision, cudnn.benchmark) == before
    torch.testing.assert_close(state(warm), state(fresh), rtol=0, atol=0)
    torch.testing.assert_close(iterate(warm, 2), iterate(fresh, 2), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [TunedInGraph, pytest.param(Compiled, marks=pytest.mark.slow)])
def test_a_rival_that_prepares_itself_computes_the_same(kind):
    eager, prepared = Tuned(start("cuda")), kind(start("cuda"))
    prepared.prepare(bench.make_batches(2, "cuda")[0][prepared.memory_format])
    losses = [iterate(contender, 1, device="cuda") for contender in (prepared, eager)]
    assert bench.Errors.of(*losses).first < bench.ALWAYS_ALLOWED["bf16"]


class Wrong(WithoutWaste):
    """Trains on other videos."""

    def __call__(self, real):
        return super().__call__(0.5 * real)


class Broken(Notebook):
    """Cannot run here."""

    def prepare(self, real):
        raise RuntimeError("out of order\nmore")


class Stuck(Notebook):
    """Does not train after its first iteration, as if a CUDA graph had missed the optimizers."""

    def __call__(self, real):
        losses = super().__call__(real)
        for optimizer in self.optimizers:
            optimizer.step = lambda: None
        return losses


def set_up(makers, count):
    batches = bench.make_batches(2, "cpu")
    exact = bench.exact_losses(start(), batches, count)
    return bench.set_up(Run("cpu"), CASE, makers, start(), batches, exact)


@pytest.mark.parametrize(("rival", "reason"), [(Wrong, "is off by"), (Broken, "out of order"), (Stuck, "is off by")])
def test_rivals_that_do_something_else_are_left_out(rival, reason):
    contenders, errors, _, left_out = set_up({bench.NOTEBOOK: Notebook, bench.TUNED: rival}, 4)
    assert contenders.keys() == errors.keys() == {bench.NOTEBOOK}
    assert reason in left_out[bench.TUNED]
    with pytest.raises((SystemExit, RuntimeError), match=r"nothing is timed|out of order"):
        set_up({OWN: rival}, 4)


def test_twice_the_error_of_eager_pytorch_is_allowed():
    errors = {bench.TUNED: bench.Errors(0.05, 0.06), bench.NOTEBOOK: bench.Errors(float("nan"), 0.0)}
    assert bench.disagreement(bench.Errors(0.099, 0.2), "bf16", errors) is None
    assert "off by 1.1e-01" in bench.disagreement(bench.Errors(0.11, 0.2), "bf16", errors)
    assert "more than 1.0e-01, 2.4e-01" in bench.disagreement(bench.Errors(0.0, 0.25), "bf16", errors)
    assert bench.disagreement(bench.Errors(0.01, 0.0), "tf32", errors)
    assert bench.disagreement(errors[bench.NOTEBOOK], "tf32", errors)


@pytest.mark.slow
def test_a_rival_is_measured_in_a_process_of_its_own():
    losses, rounds, peak = bench.in_process(bench._measure_alone, (bench.TUNED, "cpu", True, CASE, 1), 100)
    exact = bench.exact_losses(Start.random("cpu", bench.SMOKE_WIDTH), bench.make_batches(2, "cpu"), 1)
    assert bench.Errors.of(torch.tensor(losses, dtype=torch.float64), exact).first < 1e-4
    assert min(rounds) > 0
    assert peak is None


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [(os._exit, 3, "terminated abruptly"), (time.sleep, 60, "not ready after 5 s"), (int, "x", "invalid literal")],
    ids=["dies", "hangs", "fails"],
)
def test_a_process_without_an_answer_says_why(function, argument, message):
    with pytest.raises(RuntimeError, match=message):
        bench.in_process(function, (argument,), 5)


def test_steps_that_waited_for_the_host_count_as_idle():
    steps = [3.0, 1.0, 1.0, 1.0, 1.0] * 40
    late = [seconds + 0.5 * (index % 4 == 0) for index, seconds in enumerate(steps)]
    assert training_run.busy_seconds(late, 5) == pytest.approx(sum(steps))


def test_an_iteration_of_a_training_run_has_its_part_of_what_happens_seldom():
    # 100 iterations of a second each, and a checkpoint of ten seconds after the 42nd.
    timing = training_run.timing_of([index + 10.0 * (index > 42) for index in range(100)], 110.0)
    assert timing.median == pytest.approx(1.1)
    assert timing.rounds == pytest.approx([1, 1, 1, 1, 2, 1, 1, 1, 1, 1])


def rows(part, ratios, **more):
    return [{"contender": name, "part": part, "seconds": 2.9e-3 * r, "ratio": r, **more} for name, r in ratios.items()]


def test_goals_tell_what_is_met_what_is_missed_and_what_is_not_measured():
    own = bench.fast("bf16")
    without = rows(bench.WITHOUT_CLIPPING, {own: 1.0, bench.NOTEBOOK: 9.0, bench.TUNED: 3.0, bench.IN_GRAPH: 2.1})
    without[0]["peak_bytes"], without[1]["peak_bytes"] = 7e8, 21e8
    clipped = rows(bench.WITH_CLIPPING, {own: 1.0, bench.NOTEBOOK: 31.0}, minutes=6.0)
    others = {"batch_size": 64, "timings": rows(bench.WITHOUT_CLIPPING, {own: 2.0, bench.NOTEBOOK: 1.0})}
    training = {"batch_size": 32, "timings": [], "gpu_idle": 0.03}

    def verdicts(*records, device="cuda"):
        return [goal.verdict for goal in bench.goals_for(list(records), device)]

    usual = {"batch_size": 32, "timings": without + clipped}
    assert verdicts(others, usual) == ["met", "SHORT", "met", "SHORT", "met", "met", "met", NOT_MEASURED]
    assert verdicts(training) == [NOT_MEASURED] * 7 + ["SHORT"]
    assert verdicts(usual, device="cpu") == [NOT_MEASURED]
    assert verdicts(usual | {"batch_size": bench.DEFAULT_BATCH["cpu"]}, device="cpu") == ["met"]


@pytest.mark.slow
def test_clipping_comes_on_top_of_an_iteration():
    run = Run("cpu", smoke=True)
    record = bench.measure(run, CASE)
    found = {(row["part"], row["contender"]): row for row in record["timings"]}
    for name in run.rivals:
        alone, clipped = (found[part, name]["rounds"] for part in (bench.WITHOUT_CLIPPING, bench.WITH_CLIPPING))
        expected = [seconds + record["svd_seconds"] / bench.CYCLE for seconds in alone]
        assert clipped == pytest.approx(expected, rel=1e-3)
    calls = bench.calls_for(run, CASE)
    assert list(calls) == [
        f"{part} {name}" for part, name in found if part == bench.WITHOUT_CLIPPING and "again" not in name
    ]
    assert calls[f"{bench.WITHOUT_CLIPPING} {OWN}"]()()[0].isfinite()
