"""The benchmark of batch norm + activation measures the model's layers and refuses what is wrong."""

import pytest
import torch

from benchmarks import bench_batch_norm_act as bench
from benchmarks import bench_optimizer, bench_singular_value_clip, results
from benchmarks.bench_batch_norm_act import Case
from benchmarks.suite import Run, Suite
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.nn import BATCH_NORMS

IMAGE = Case("image", (4, 8, 5, 5), torch.float32)
GROUPS = Case("discriminator", (4, 8, 2, 3, 3), torch.float32, negative_slope=0.2, groups=2)
VECTOR = Case("vector", (6, 10), torch.float32, channels_last=False)
each_case = pytest.mark.parametrize("case", [IMAGE, GROUPS, VECTOR], ids=str)


def inputs_of(network, *arguments):
    """Return shapes and slopes of its batch norms, and whether the channels are last in memory."""
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
    """Return the same of cases; where a channel is one value of a sample, it is last in any layout."""
    return sorted((c.shape, c.negative_slope, c.channels_last or c.shape[2:] in ((), (1,))) for c in cases)


def test_cases_are_the_batch_norms_of_both_networks():
    cases = [*bench.images(2), *bench.vectors(2)]
    assert inputs_of(VideoGenerator(), torch.rand(2, 100)) == described(cases)
    assert inputs_of(VideoDiscriminator(), torch.rand(4, 3, 16, 64, 64), 2) == described(bench.discriminator(2))


@each_case
def test_a_wrong_result_is_not_timed_and_a_wrong_rival_is_left_out(case, monkeypatch):
    makers = bench.makers_for(case, "cpu")

    def scaled(name, factor):
        def make(affine):
            contender = makers[name](affine)
            operation = contender.operation
            contender.operation = lambda xs, weight, *others: operation(xs, factor * weight, *others)
            return contender

        return make

    def fail(affine):
        contender = makers["eager"](affine)
        contender.operation = lambda *_: (_ for _ in ()).throw(RuntimeError("not supported\nmore"))
        return contender

    rivals = makers | {"cudnn": scaled("eager", 1.001), "torch.compile": fail}
    monkeypatch.setattr(bench, "makers_for", lambda *_: rivals)
    errors, left_out, _ = bench.check(case, "cpu")
    assert errors.keys() == makers.keys()
    assert left_out["cudnn"].startswith("is off by ")
    assert left_out["torch.compile"] == "not supported"
    # Neither is excused by a yardstick that is as wrong.
    for wrong in ({"tgan_fast": 1 + 1e-5}, {"tgan_fast": 1.001, "eager": 1.001}):
        changed = makers | {name: scaled(name, factor) for name, factor in wrong.items()}
        monkeypatch.setattr(bench, "makers_for", lambda *_, changed=changed: changed)
        with pytest.raises(SystemExit, match=r"tgan_fast is off by .*: nothing is timed"):
            bench.check(case, "cpu")


@pytest.mark.slow
def test_torch_compile_takes_part_in_both_passes():
    record = Suite(Run("cpu", smoke=True)).record(bench.SECTION, GROUPS._replace(compiled=True))
    assert record["left_out"] == {}
    assert [row["part"] for row in record["timings"] if row["contender"] == "torch.compile"] == ["forward", "backward"]


def test_goals_are_those_of_the_largest_and_of_the_worst_image():
    assert bench.goals_for([], "cpu") == []
    assert [goal.verdict for goal in bench.goals_for([], "cuda")] == [results.NOT_MEASURED] * 4
    names = [str(case) for case in bench._gpu_cases() if case.name == "image"]

    def records(ratio_of_last, rivals=True):
        for name in names:
            ratio = ratio_of_last if name == names[-1] else 2.0
            ratios = {"tgan_fast": 1.0, "tgan_fast again": 0.5} | ({"eager": 9.0, "cudnn": ratio} if rivals else {})
            share = 0.9 if "[1024, 32, 64, 64]" in name else 0.1
            rows = [{"contender": who, "ratio": r, "share_of_floor": share / r} for who, r in ratios.items()]
            yield {"case": name, "timings": [row | {"part": part} for part in bench.PASSES for row in rows]}

    assert [goal.measured for goal in bench.goals_for(list(records(1.5)), "cuda")] == [0.9, 0.9, 1.5, 1.5]
    assert [goal.verdict for goal in bench.goals_for(list(records(0.9)), "cuda")] == ["met", "met", "SHORT", "SHORT"]
    assert [goal.measured for goal in bench.goals_for(list(records(1, rivals=False)), "cuda")][2:] == [None, None]


@pytest.mark.parametrize("section", [m.SECTION for m in (bench, bench_singular_value_clip, bench_optimizer)])
def test_calls_are_those_of_all_timed_contenders(section, monkeypatch):
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    run = Run("cpu", smoke=True)
    case = section.cases(run)[0]
    rows = section.measure(run, case)["timings"]
    timed = {str(results.Label.of(row)) for row in rows if not row["contender"].endswith("again")}
    makers = section.calls(run, case)
    assert makers.keys() == timed
    for make in makers.values():
        call = make()
        call()
        call()
