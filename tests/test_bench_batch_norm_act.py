"""The benchmark of batch norm + activation measures what it says; the figures are their own business."""

import sys

import pytest
import torch

from benchmarks import bench_batch_norm_act as bench
from benchmarks import harness, results, suite
from benchmarks.bench_batch_norm_act import Case, Contender
from benchmarks.suite import Label, Run, Suite
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.nn import BATCH_NORMS

IMAGE = Case("image", (4, 8, 5, 5), torch.float32)
IN_PARTS = Case("discriminator", (4, 8, 2, 3, 3), torch.float32, negative_slope=0.2, groups=2)
VECTOR = Case("vector", (6, 10), torch.float32, channels_last=False)
SMALL = (IMAGE, IN_PARTS, VECTOR)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where results go, of a machine that copies a byte a second."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    return tmp_path


def inputs_of(network, *arguments):
    """Of its batch norms: shapes, slopes, and whether the channels are last in memory."""
    seen = []

    def note(module, inputs):
        (x, *_) = inputs
        seen.append((tuple(x.shape), module.negative_slope, x.movedim(1, -1).is_contiguous()))

    for module in to_channels_last_(network).modules():
        if isinstance(module, BATCH_NORMS):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        network(*arguments)
    return sorted(seen)


def described(cases):
    """In the same way; where a channel is one value of a sample, it is last in any layout."""
    return sorted(
        (case.shape, case.negative_slope, case.channels_last or case.shape[2:] in ((), (1,))) for case in cases
    )


def test_cases_are_the_batch_norms_of_both_networks():
    cases = [*bench.images(2, torch.float32), *bench.vectors(2, torch.float32)]
    assert inputs_of(VideoGenerator(), torch.rand(2, 100)) == described(cases)
    cases = bench.discriminator(2, torch.float32)
    assert inputs_of(VideoDiscriminator(), torch.rand(4, 3, 16, 64, 64), 2) == described(cases)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_has_its_own_name(device):
    names = [str(case) for case in bench.cases_for(Run(device))]
    assert len(set(names)) == len(names)


def test_torch_compile_takes_part_in_some_cases_unless_nobody_wants_its_time():
    def compiled(run):
        return [case for case in bench.cases_for(run) if case.compiled]

    assert len(compiled(Run("cpu"))) == 1
    assert len(compiled(Run("cuda"))) == 6
    assert set(bench.images(32, torch.bfloat16, compiled=True)) < set(compiled(Run("cuda")))
    assert compiled(Run("cuda", own_only=True)) == compiled(Run("cuda", smoke=True)) == []


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_record_holds_what_was_measured(case, folder):
    run = Run("cpu", smoke=True)
    record = Suite(run).record(bench.SECTION, case)
    names = ["tgan_fast", "eager", *(["eager channels-last"] if case.channels_last else []), "tgan_fast again"]
    rows = record["timings"]
    assert [(row["part"], row["contender"]) for row in rows] == [(p, n) for p in ("forward", "backward") for n in names]
    assert {Label(row["contender"], row["part"]) for row in rows} == set(bench.labels_for(run, case))
    x, dy = bench.tensors(case, "cpu")
    needed = {"forward": 2 * x.nbytes + x.nbytes, "backward": 2 * (x.nbytes + dy.nbytes) + x.nbytes}
    errors = {"forward": {"y"}, "backward": {"dx", "dweight", "dbias"}}
    for row in rows:
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
        assert row["bytes"] == row["floor_seconds"] == needed[row["part"]]
        if row["contender"] == harness.again("tgan_fast"):
            assert row["error"] is None
        else:
            assert row["error"].keys() == errors[row["part"]]
            assert max(row["error"].values()) < 1e-5
    assert record["left_out"] == {}
    assert record["shape"] == case.shape


def test_what_runs_is_written(folder):
    Suite(Run("cpu", smoke=True), folder / "out.json").record(bench.SECTION, IN_PARTS)
    section = results.sections_of(folder / "out.json")["batch_norm_act"]
    (case,) = section["cases"]
    assert (case["dtype"], case["groups"], case["input_sets"]) == ("float32", 2, 2)
    assert section["ceilings"] == {"copy": 1.0}
    assert section["goals"] == []


def test_a_smoke_run_writes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cpu", "--smoke"])
    suite.main(bench.SECTION)
    assert not list(folder.iterdir())
    assert "backward eager channels-last" in capsys.readouterr().out


def test_rivals_can_be_left_out_of_the_timing(folder):
    record = Suite(Run("cpu", smoke=True, own_only=True)).record(bench.SECTION, IMAGE)
    assert {row["contender"] for row in record["timings"]} == {"tgan_fast", "tgan_fast again"}


def contenders_of(case, **changed):
    """For a check; `changed` are others' operations."""
    contenders = bench.contenders_for(case, "cpu")
    running = contenders["eager"].running
    return contenders | {
        name: Contender(operation, case.channels_last, case.groups, running) for name, operation in changed.items()
    }


def scaled(factor, case):
    """Eager PyTorch with another scale."""
    eager = bench.contenders_for(case, "cpu")["eager"].operation
    return lambda xs, weight, *others: eager(xs, factor * weight, *others)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_another_result_is_not_timed(case):
    contenders = contenders_of(case, tgan_fast=scaled(1 + 1e-5, case))
    with pytest.raises(SystemExit, match=r"y of tgan_fast is off by .*: nothing is timed"):
        bench.check(case, contenders, bench.scale_and_shift(case, "cpu"), "cpu")


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_rival_that_computes_something_else_is_left_out(case):
    contenders = contenders_of(case, cudnn=scaled(1.001, case))
    errors, left_out = bench.check(case, contenders, bench.scale_and_shift(case, "cpu"), "cpu")
    assert left_out.keys() == {"cudnn"}
    assert left_out["cudnn"].startswith("y is off by ")
    assert errors.keys() == contenders.keys() - {"cudnn"}


def test_a_wrong_yardstick_does_not_excuse_what_is_wrong_as_well():
    wrong = scaled(1.001, VECTOR)
    with pytest.raises(SystemExit, match="nothing is timed"):
        bench.check(
            VECTOR, contenders_of(VECTOR, tgan_fast=wrong, eager=wrong), bench.scale_and_shift(VECTOR, "cpu"), "cpu"
        )


def test_a_rival_that_cannot_run_is_left_out_but_not_eager_pytorch():
    def fail(*_):
        raise RuntimeError("not supported\nmore")

    affine = bench.scale_and_shift(IMAGE, "cpu")
    errors, left_out = bench.check(IMAGE, contenders_of(IMAGE, cudnn=fail), affine, "cpu")
    assert left_out == {"cudnn": "not supported"}
    assert "cudnn" not in errors
    with pytest.raises(RuntimeError, match="not supported"):
        bench.check(IMAGE, contenders_of(IMAGE, eager=fail), affine, "cpu")


@pytest.mark.slow
def test_torch_compile_takes_part_in_both_passes(folder):
    record = Suite(Run("cpu", smoke=True)).record(bench.SECTION, IN_PARTS._replace(compiled=True))
    assert record["left_out"] == {}
    assert [row["part"] for row in record["timings"] if row["contender"] == "torch.compile"] == ["forward", "backward"]


def made_up(case, share=0.9, ratio=2.0):
    """A record whose fastest rival takes `ratio` times as long as tgan_fast."""
    ratios = {"tgan_fast": 1.0, "eager": 9.0, "cudnn": ratio, "tgan_fast again": 0.5}
    rows = [
        {"contender": name, "part": part, "ratio": ratio, "share_of_floor": share / ratio}
        for part in bench.PASSES
        for name, ratio in ratios.items()
    ]
    return {"case": str(case), "timings": rows}


GPU_IMAGES = [case for case in bench.gpu_cases() if case.name == "image"]


def test_goals_are_those_of_images_on_a_gpu():
    assert bench.goals_for([], "cpu") == []
    unknown = bench.goals_for([], "cuda")
    assert [goal.verdict for goal in unknown] == [results.NOT_MEASURED] * 4
    largest = "image [1024, 32, 64, 64] bfloat16 channels-last"
    assert [largest in goal.text for goal in unknown] == [True, True, False, False]
    records = [made_up(case) for case in GPU_IMAGES]
    assert [goal.measured for goal in bench.goals_for(records, "cuda")] == [0.9, 0.9, 2.0, 2.0]


@pytest.mark.parametrize("case", GPU_IMAGES, ids=str)
def test_the_worst_image_counts(case):
    others = [made_up(other) for other in GPU_IMAGES if other != case]
    goals = bench.goals_for([*others, made_up(case, share=0.8, ratio=0.99)], "cuda")
    largest = case.shape == (1024, 32, 64, 64)
    assert [goal.verdict for goal in goals] == ["SHORT" if largest else "met"] * 2 + ["SHORT"] * 2
    assert [goal.measured for goal in bench.goals_for(others, "cuda")][2:] == [None, None]


def test_without_rivals_no_lead_is_measured():
    records = [made_up(case) for case in GPU_IMAGES]
    for record in records:
        record["timings"] = [row for row in record["timings"] if row["contender"].startswith("tgan_fast")]
    assert [goal.measured for goal in bench.goals_for(records, "cuda")] == [0.9, 0.9, None, None]
