"""The benchmark of singular value clipping measures what it says; the figures are their own business."""

from threading import Barrier

import pytest
import torch

from benchmarks import bench_singular_value_clip as bench
from benchmarks import results, suite
from benchmarks.bench_singular_value_clip import CALL, FIVE, GRAM, SECTION, Probe
from benchmarks.suite import Label, Run, Suite
from tgan_fast.ops.singular_value_clip import choose

SMALL = bench.SMOKE
SVD, EIGH = (bench.contenders_for("cpu")[name] for name in ("svd", "eigh"))
TIMED = ["auto", "gemm", GRAM, "svd", "auto again"]


def clip_lower(weights):
    bench.singular_value_clip_(weights, 0.9)


def check(contenders, case=SMALL[0]):
    return bench.check(case, contenders, bench.make_inputs(case, "cpu"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where files of results go."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_record_has_what_was_measured(folder, case):
    results.write("step", {"seconds_an_iteration": 2.0}, "cpu")
    case = case._replace(name=FIVE)
    record = Suite(Run("cpu", smoke=True)).record(SECTION, case)
    assert record["case"] == f"all five, {case.state}"
    assert record["shapes"] == ((6, 20), (1, 9))
    assert record["left_out"].keys() == {"eigh"}
    rows = {row["contender"]: row for row in record["timings"]}
    assert list(rows) == TIMED
    nbytes = sum(weight.nbytes for weight in bench.make_inputs(case, "cpu").weights)
    for name, row in rows.items():
        assert row["part"] == CALL
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
        assert row["speedup"] == pytest.approx(rows["svd"]["seconds"] / row["seconds"], rel=1e-3)
        assert row["share_of_iteration"] == pytest.approx(row["seconds"] / 5 / 2, rel=1e-3)
        assert (row["bytes"], row["flops"]) == (2 * nbytes, 0)
        assert row["launches"] is None
        if name != "auto again":
            assert row["error"] < 1e-5
            assert row["excess"] < 1e-5
    said = "\n".join(bench.details(record))
    assert said.count("largest singular value") == len(TIMED) - 1
    assert f"{rows['auto']['speedup']:.4g} times as fast as the best torch.linalg.svd" in said


def test_without_rivals_there_is_nothing_to_be_as_fast_as():
    record = Suite(Run("cpu", smoke=True, own_only=True)).record(SECTION, SMALL[0])
    assert [row["contender"] for row in record["timings"]] == ["auto", "gemm", "auto again"]
    assert all(row["speedup"] is None for row in record["timings"])
    assert not any("times as fast" in line for line in bench.details(record))


def test_a_smoke_run_writes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "--smoke", "--device", "cpu"])
    suite.main(SECTION)
    assert not list(folder.iterdir())
    printed = capsys.readouterr().out
    assert "small, gaussian" in printed
    assert "goal ≥ 4 times as fast as torch.linalg.svd, all five, gaussian: not measured yet" in printed


@pytest.mark.parametrize("smoke", [True, False])
def test_labels_are_those_of_the_timings(smoke):
    run = Run("cpu", smoke=smoke)
    cases = bench.cases_for(run)
    assert len({str(case) for case in cases}) == len(cases)
    labels = {str(case): bench.labels_for(run, case) for case in cases}
    assert len(labels) == (2 if smoke else 8)
    small = str(cases[-1]) if smoke else "alone 64×192, training"
    assert set(labels[small]) == {Label(name, CALL) for name in TIMED}


def test_what_is_not_timed_on_a_cpu_is_what_auto_does_there_or_takes_long():
    cases = bench.cases_for(Run("cpu"))
    for case in cases:
        weights = [torch.empty(shape) for shape in case.shapes]
        assert set(choose(weights, "auto")) == {"eigh"}
        reasons = bench.not_timed(case, "cpu")
        assert "eigh" in reasons
        assert ("gemm" in reasons) == any(shape[0] > 256 for shape in case.shapes)
        assert bench.not_timed(case, "cuda") == {}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_another_result_is_not_timed(case):
    with pytest.raises(SystemExit, match=r"gemm is off by .*: nothing is timed"):
        check({"gemm": clip_lower, "svd": SVD}, case)


@pytest.mark.parametrize("name", ["svd gesvda", GRAM])
def test_what_does_something_else_is_no_rival(name):
    found, left_out = check({"eigh": EIGH, "svd": SVD, name: clip_lower})
    assert found.keys() == {"eigh", "svd"}
    assert left_out[name].startswith("off by ")


def test_a_driver_or_a_kernel_that_cannot_run_is_left_out():
    def fail(weights):
        raise RuntimeError("does not converge\nmore")

    by_kernel = bench.contenders_for("cuda")["cuda"]
    _, left_out = check({"eigh": EIGH, "svd": fail, "cuda": by_kernel})
    assert left_out["svd"] == "does not converge"
    assert left_out.keys() == {"svd", "cuda"}
    with pytest.raises(RuntimeError, match="does not converge"):
        check({"eigh": fail})


def test_every_turn_begins_with_weights_that_are_to_be_clipped():
    inputs = [bench.make_inputs(SMALL[0], "cpu") for _ in range(2)]
    largest = []

    def note(weights):
        largest.extend(torch.linalg.matrix_norm(weight, 2).item() for weight in weights)
        EIGH(weights)

    bench.time_all(Run("cpu", smoke=True), {"auto": note, "svd": SVD}, inputs, [])
    assert min(largest) > 1.05


@pytest.mark.parametrize("shape", [(64, 192), (128, 4096), (1, 8192)], ids=str)
def test_gaussian_weights_have_the_intended_norm(shape):
    weight = bench.random_weight(shape, "gaussian", "cpu")
    assert torch.linalg.matrix_norm(weight, 2) == pytest.approx(bench.LARGEST_SINGULAR_VALUE, abs=0.1)


@pytest.mark.parametrize("shape", [(64, 192), (128, 4096)], ids=str)
def test_weights_in_training_exceed_the_threshold_by_little(shape):
    excess = torch.linalg.svdvals(bench.random_weight(shape, "training", "cpu")) - 1
    assert 1e-3 < excess.max() < 1e-2
    assert (excess > 0).sum() > 1


def row(contender, part=CALL, **figures):
    return {"contender": contender, "part": part} | figures


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_goals_without_records_are_not_measured(device):
    goals = bench.goals_for([], device)
    assert {goal.verdict for goal in goals} == {results.NOT_MEASURED}
    assert all("all five, gaussian" in goal.text for goal in goals)


def test_goals_tell_what_is_met_what_is_missed_and_what_is_not_measured():
    auto = row("auto", seconds=2.9e-4, speedup=799.0, launches=None, share_of_iteration=0.02)
    rows = [auto, row(GRAM, seconds=0.02), row("auto", bench.REPLAY, seconds=1.0)]
    record = {"case": "all five, gaussian", "timings": rows}
    others = [{"case": "all five, training", "timings": [row("auto", seconds=9.9)]}]
    goals = bench.goals_for([record, *others], "cuda")
    assert [goal.verdict for goal in goals] == ["met", "SHORT", "met", results.NOT_MEASURED, "met"]
    assert [goal.bound for goal in goals] == [0.3, 800, 60, 60, 0.02]


def test_goals_on_a_cpu_are_to_be_faster_and_more_accurate_than_an_svd():
    rows = [row("auto", seconds=0.1, speedup=3.9, error=1e-7), row("svd", seconds=0.39, error=2e-7)]
    record = {"case": "all five, gaussian", "timings": rows}
    assert [goal.verdict for goal in bench.goals_for([record], "cpu")] == ["SHORT", "met"]
    alone = [record | {"timings": rows[:1]}]
    assert bench.goals_for(alone, "cpu")[1].verdict == results.NOT_MEASURED


def test_the_share_is_that_of_an_iteration_of_this_device(folder):
    assert bench.seconds_an_iteration("cpu") is None
    results.write("step", {"seconds_an_iteration": 2.0}, "cpu")
    assert bench.seconds_an_iteration("cpu") == 2.0


def test_contenders_of_a_gpu_are_probed_once_and_side_by_side(monkeypatch):
    """What a probe finds is a GPU's business; how many there are at the same time is not."""
    probed, names = [], list(bench.contenders_for("cuda"))
    together = Barrier(len(names), timeout=30)

    def meet(name, cases):
        together.wait()
        probed.append(name)
        return Probe({}, None if name == "cuda" else "it waits for the host")

    monkeypatch.setattr(bench, "probe", meet)
    run = Run("cpu", smoke=True)
    run.device = "cuda"
    assert list(bench.probes_for(run)) == names
    assert bench.conclude(run, [])["not_captured"].keys() == set(names) - {"cuda"}
    assert sorted(probed) == sorted(names)
    assert bench.probes_for(Run("cpu")) == {}
