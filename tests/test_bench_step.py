"""The benchmark of the whole step compares what does the same; the figures are their own business."""

import os
import re

import pytest
import torch

from benchmarks import bench_step as bench
from benchmarks import harness, peak_memory, training_run
from benchmarks.contenders import Compiled, Notebook, Start, StrictNotebook, Tuned, TunedInGraph, WithoutWaste
from benchmarks.harness import Timing
from benchmarks.results import NOT_MEASURED
from benchmarks.suite import Label, Run, Suite

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


def test_what_torch_compile_makes_is_kept_out_of_the_process_of_the_others(monkeypatch):
    eager = [bench.NOTEBOOK, bench.NOTEBOOK_FP32, bench.UNWASTED, bench.TUNED, bench.IN_GRAPH]
    monkeypatch.setattr(bench, "refusal", lambda _: None)
    assert bench.without_refused(bench.RIVALS, BATCH) == (eager, {})
    monkeypatch.setattr(bench, "refusal", lambda _: "not ready")
    assert bench.without_refused(bench.RIVALS, BATCH) == (eager[:-1], {bench.IN_GRAPH: "not ready"})


@pytest.mark.parametrize("ready", [True, False])
def test_compiling_quickly_stands_in_for_what_is_not_ready(ready, monkeypatch):
    """Rivals that run here stand in for compiled ones."""
    monkeypatch.setattr(bench, "rivals_for", lambda *_: [bench.NOTEBOOK, *bench.APART])
    measured = []

    def apart(run, name, *_):
        measured.append(name)
        if name == bench.COMPILED and not ready:
            raise bench.ApartError("not ready after 150 s")
        return Timing.of([1.0, 1.0], "apart"), bench.Errors(0.0, 0.0), None

    monkeypatch.setattr(bench, "measure_apart", apart)
    run = Run("cpu", smoke=True)
    record = bench.measure_iterations(run, bench.Case(BATCH))
    names = {row["contender"] for row in record["timings"]}
    assert measured == ([bench.COMPILED] if ready else list(bench.APART))
    assert names & set(bench.APART) == {measured[-1]}
    assert record["left_out"] == ({} if ready else {bench.COMPILED: "not ready after 150 s"})
    assert measured[-1] in run.rivals


@pytest.mark.slow
def test_a_rival_is_measured_in_a_process_of_its_own_and_says_why_it_cannot_be(monkeypatch):
    run, batches = Run("cpu", smoke=True), bench.make_batches(BATCH, "cpu")
    exact = bench.exact_losses(start(), batches, 1)
    monkeypatch.setitem(bench.SECONDS, bench.TUNED, 100)
    timing, errors, peak = bench.measure_apart(run, bench.TUNED, start(), BATCH, exact, {})
    assert 0 < timing.p10 <= timing.median <= timing.p90
    assert "in a process of its own" in timing.method
    assert errors.first < 1e-5
    assert peak is None
    with pytest.raises(bench.ApartError, match="its first losses are off"):
        bench.measure_apart(run, bench.TUNED, start(), BATCH, 2 * exact, {})
    monkeypatch.setitem(bench.SECONDS, bench.TUNED, 0)
    with pytest.raises(bench.ApartError, match="not ready after 0 s"):
        bench.measure_apart(run, bench.TUNED, start(), BATCH, exact, {})


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is refused on a GPU")
def test_what_cannot_run_is_refused():
    bench.refusal.cache_clear()
    assert re.search("CUDA|NVIDIA", bench.refusal(BATCH))
    bench.refusal.cache_clear()


def test_a_process_that_dies_is_told_of():
    with pytest.raises(bench.ApartError, match="its process died"):
        bench.answer_of(os._exit, (3,), 60)


def test_twice_the_error_of_eager_pytorch_is_allowed():
    errors = {bench.TUNED: bench.Errors(0.05, 0.06), bench.NOTEBOOK: bench.Errors(float("nan"), 0.0)}
    assert bench.disagreement(bench.Errors(0.099, 0.2), "bf16", errors) is None
    assert "off by 1.1e-01, more than 1.0e-01" in bench.disagreement(bench.Errors(0.11, 0.2), "bf16", errors)
    assert "after some iterations, more than 2.4e-01" in bench.disagreement(bench.Errors(0.0, 0.25), "bf16", errors)
    assert bench.disagreement(bench.Errors(0.01, 0.0), "tf32", errors)
    assert bench.disagreement(errors[bench.NOTEBOOK], "tf32", errors)
    assert bench.disagreement(bench.Errors(9e-4, 0.1), "fp32", errors) is None


class Clock:
    """A run, and contenders of which every iteration takes a second, and clipping three."""

    memory_format = torch.contiguous_format
    smoke = False

    def __init__(self, device):
        self.device, self.now = device, 0.0

    def __call__(self, real):
        self.now += 1
        return torch.zeros(()), torch.zeros(())

    def constrain(self):
        self.now += 3

    def measure(self, calls, input_sets, rounds, **_):
        return {name: self._timing(call) for name, call in {**calls, harness.again(OWN): calls[OWN]}.items()}

    def _timing(self, call):
        begin = self.now
        call(None)
        return Timing.of([self.now - begin] * 2, "")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_timings_are_of_an_iteration_however_many_a_turn_has(device):
    clock = Clock(device)
    names = OWN, bench.clipping(OWN), bench.NOTEBOOK
    timings, svd = bench.time_in_turns(clock, dict.fromkeys(names, clock), bench.make_batches(BATCH, "cpu"))
    assert {name: timing.median for name, timing in timings.items()} == dict.fromkeys([*names, harness.again(OWN)], 1.0)
    assert svd == 3


@pytest.mark.parametrize("batch_size", [32, 64, 128, 256])
def test_turns_with_clipping_are_whole_cycles(batch_size):
    batches = [{torch.contiguous_format: torch.zeros(batch_size)}]
    for device in ("cpu", "cuda"):
        count = bench.iterations_of_a_turn(Clock(device), bench.clipping(OWN), batches)
        assert count >= bench.CYCLE
        assert count % bench.CYCLE == 0


def test_too_little_memory_is_told_in_a_sentence(monkeypatch):
    def runs_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(bench, "exact_losses", runs_out)
    with pytest.raises(SystemExit, match=r"^error: the memory of this GPU is too small for 2 videos: leave the case"):
        bench.measure(Run("cpu", smoke=True), bench.Case(2))


def test_steps_that_waited_for_the_host_count_as_idle():
    steps = [3.0, 1.0, 1.0, 1.0, 1.0] * 40
    assert training_run.busy_seconds(steps, 5) == pytest.approx(sum(steps))
    late = [seconds + 0.5 * (index % 4 == 0) for index, seconds in enumerate(steps)]
    assert training_run.busy_seconds(late, 5) == pytest.approx(sum(steps))


def test_an_iteration_of_a_training_run_has_its_part_of_what_happens_seldom():
    # 100 iterations of a second each, and a checkpoint of ten seconds after the 42nd.
    begins = [index + 10.0 * (index > 42) for index in range(100)]
    timing = training_run.timing_of(begins, 110.0)
    assert timing.median == pytest.approx(1.1)
    assert timing.rounds == pytest.approx([1, 1, 1, 1, 2, 1, 1, 1, 1, 1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="nothing tells the most memory in use")
def test_the_growth_of_memory_counts_what_was_free_before():
    def take():
        return [bytearray(b"x") * (64 << 10) for _ in range(1024)]

    *blocks, kept = take()  # the last one keeps the C library from giving back the others by itself
    del blocks
    assert peak_memory.growth(take) == pytest.approx(64 << 20, rel=0.1)
    del kept


def rows(part, ratios):
    return [
        {"contender": name, "part": part, "seconds": 2.9e-3 * ratio, "ratio": ratio, "peak_bytes": None}
        for name, ratio in ratios.items()
    ]


def test_goals_tell_what_is_met_what_is_missed_and_what_is_not_measured():
    own = "tgan_fast bf16"
    without = rows(bench.WITHOUT_CLIPPING, {own: 1.0, bench.NOTEBOOK: 9.0, bench.TUNED: 3.0, bench.IN_GRAPH: 2.1})
    clipped = rows(bench.WITH_CLIPPING, {own: 1.0, bench.NOTEBOOK: 31.0})
    without[0]["peak_bytes"], without[1]["peak_bytes"], clipped[0]["minutes"] = 7e8, 21e8, 6.0
    records = [
        {"batch_size": 64, "timings": rows(bench.WITHOUT_CLIPPING, {own: 2.0, bench.NOTEBOOK: 1.0})},
        {"batch_size": 32, "timings": without + clipped},
    ]

    def verdicts(records, device="cuda"):
        return [goal.verdict for goal in bench.goals_for(records, device)]

    assert verdicts(records) == ["met", "SHORT", "met", "SHORT", "met", "met", "met", NOT_MEASURED]
    training = {"batch_size": 32, "timings": [], "gpu_idle": 0.03}
    assert verdicts([*records, training])[-1] == "SHORT"
    assert verdicts([training])[:-1] == verdicts([])[:-1] == [NOT_MEASURED] * 7
    for row in without:
        row["peak_bytes"] = None
    assert verdicts([*records])[5:7] == [NOT_MEASURED] * 2
    assert verdicts([], "cpu") == [NOT_MEASURED]
    records[1]["batch_size"] = bench.DEFAULT_BATCH["cpu"]
    assert verdicts(records, "cpu") == ["met"]


@pytest.fixture
def small(monkeypatch):
    """As if all were measured at this size."""
    monkeypatch.setattr(bench, "SMOKE_WIDTH", WIDTH)
    monkeypatch.setitem(bench.DEFAULT_BATCH, "cpu", bench.SMOKE_BATCH)


@pytest.mark.slow
def test_what_runs_is_in_the_record(small):
    run = Run("cpu", smoke=True)
    suite, (case, _) = Suite(run), bench.cases_for(run)
    record = suite.record(bench.SECTION, case)
    found = {Label(row["contender"], row["part"]): row for row in record["timings"]}
    assert list(found) == bench.labels_for(run, case)
    assert record["rivals"] == [bench.NOTEBOOK, bench.UNWASTED, bench.TUNED]
    for row in found.values():
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
    clipped = {label.contender: row for label, row in found.items() if label.part == bench.WITH_CLIPPING}
    svd = record["svd_seconds"] / bench.CYCLE
    for name in record["rivals"]:
        alone = found[name, bench.WITHOUT_CLIPPING]
        assert clipped[name]["rounds"] == pytest.approx([seconds + svd for seconds in alone["rounds"]], rel=1e-3)
        assert "torch.linalg.svd" in clipped[name]["method"]
    for row in clipped.values():
        assert row["error"] < 1e-3
        assert row["minutes"] == pytest.approx(bench.ITERATIONS * row["seconds"] / 60, rel=1e-3)
        assert row["videos_per_second"] == pytest.approx(bench.SMOKE_BATCH / row["seconds"], rel=1e-3)
    for name in (OWN, bench.NOTEBOOK):
        assert found[name, bench.WITHOUT_CLIPPING]["peak_bytes"] > 0
    payload = suite.payload(bench.SECTION)
    assert payload["seconds_an_iteration"] == clipped[OWN]["seconds"]
    assert payload["goals"][0]["measured"] == clipped[bench.NOTEBOOK]["ratio"]
    lines = "\n".join(bench.details(record))
    assert "torch.linalg.svd clips" in lines
    assert f"{OWN} needs " in lines


@pytest.mark.slow
def test_without_rivals_the_package_is_measured_alone(small):
    run = Run("cpu", smoke=True, own_only=True)
    suite, (case, _) = Suite(run), bench.cases_for(run)
    record = suite.record(bench.SECTION, case)
    assert [Label(row["contender"], row["part"]) for row in record["timings"]] == bench.labels_for(run, case)
    assert {row["contender"] for row in record["timings"]} == {OWN, harness.again(OWN)}
    assert [goal["verdict"] for goal in suite.payload(bench.SECTION)["goals"]] == [NOT_MEASURED]
    assert not [line for line in bench.details(record) if "svd" in line]


@pytest.mark.slow
def test_a_training_run_is_timed_with_its_data(small, device):
    run = Run(device.type, smoke=True)
    case = next(case for case in bench.cases_for(run) if case.whole_run)
    record = Suite(run).record(bench.SECTION, case)
    (row,) = record["timings"]
    assert row["seconds"] > 0
    assert record["iterations"] >= training_run.FEWEST_ITERATIONS[device.type]
    assert 0 <= record["gpu_idle"] < 1
    assert "GPU idle" in next(iter(bench.details(record)))
