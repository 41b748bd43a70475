"""The benchmark of batch norm + activation measures the model's layers and refuses wrong results."""

import itertools

import pytest
import torch

from benchmarks import bench_batch_norm_act as bench
from benchmarks import bench_optimizer, bench_singular_value_clip, result_files
from benchmarks.bench_batch_norm_act import Case
from benchmarks.suite import Run
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.nn import BATCH_NORMS

GROUPS = Case("discriminator", (4, 8, 2, 3, 3), torch.float32, negative_slope=0.2, groups=2)
VECTOR = Case("vector", (6, 10), torch.float32, channels_last=False)


def inputs_of(network, *arguments):
    """Return shapes and slopes of its batch norms, and whether the channels are last in memory."""
    seen = []

    def note(module, inputs):
        seen.append((tuple(inputs[0].shape), module.negative_slope, inputs[0].movedim(1, -1).is_contiguous()))

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


def scaled(make, factor):
    """Return a function that makes a contender whose weight is off by a factor."""

    def make_wrong(x, dy, weight, bias):
        problem = make(x, dy, weight, bias)
        operation = problem.operation
        problem.operation = lambda xs, weight, *others: operation(xs, factor * weight, *others)
        problem.ys = problem.forward()
        return problem

    return make_wrong


@pytest.mark.parametrize("case", [GROUPS, VECTOR], ids=str)
def test_a_wrong_result_is_not_timed_and_a_wrong_rival_is_left_out(case):
    makers = bench.makers_for(case, "cpu")
    errors, left_out = bench.check(case, makers | {"cudnn": scaled(makers["eager"], 1.001)}, "cpu")
    assert errors.keys() == makers.keys()
    assert left_out["cudnn"].startswith("is off by ")
    # An equally wrong eager contender does not excuse the error.
    for wrong in ({"tgan_fast": 1 + 1e-5}, {"tgan_fast": 1.001, "eager": 1.001}):
        changed = makers | {name: scaled(makers[name], factor) for name, factor in wrong.items()}
        with pytest.raises(SystemExit, match=r"tgan_fast is off by .*: nothing is timed"):
            bench.check(case, changed, "cpu")


def test_goals_are_those_of_the_largest_and_of_the_worst_image():
    assert [goal.verdict for goal in bench.goals_for([], "cuda")] == [result_files.NOT_MEASURED] * 4

    def measured(worst, rivals=("eager", "cudnn")):
        records = [{"case": str(case), "timings": []} for case in bench.GPU_CASES if case.name == "image"]
        for record, part in itertools.product(records, bench.PASSES):
            ratios = {"tgan_fast": 1.0, "tgan_fast again": 0.5, **dict.fromkeys(rivals, 2.0)}
            if record is records[-1] and rivals:
                ratios["cudnn"] = worst
            share = 0.9 if "[1024, 32, 64, 64]" in record["case"] else 0.1
            row = {"part": part, "share_of_floor": share}
            record["timings"] += [row | {"contender": name, "ratio": ratio} for name, ratio in ratios.items()]
        return [goal.measured for goal in bench.goals_for(records, "cuda")]

    assert measured(0.8) == [0.9, 0.9, 0.8, 0.8]
    assert measured(0.8, rivals=()) == [0.9, 0.9, None, None]


def test_goals_of_a_cpu_are_those_of_the_worst_case_of_each_kind():
    assert [goal.verdict for goal in bench.goals_for([], "cpu")] == [result_files.NOT_MEASURED] * 5
    records = []
    for case in bench.CPU_CASES:
        record = case._asdict() | {"timings": []}
        ignored = case.name == "large"
        ratios = {"tgan_fast": 1.0, "eager": 0.8 if ignored or case.shape == (2, 128, 8) else 3.0, "other": 2.0}
        errors = {"y": 1e-8 if case.name == "image" else 1e-7, "dx": 1.0 if case.name == "vector" else 2e-8}
        for part in bench.PASSES:
            row = {"part": part, "error": errors}
            record["timings"] += [row | {"contender": name, "ratio": ratio} for name, ratio in ratios.items()]
        records.append(record)
    assert [goal.measured for goal in bench.goals_for(records, "cpu")] == [2.0, 2.0, 2.0, 0.8, 1e-7]


@pytest.mark.parametrize("section", [m.SECTION for m in (bench, bench_singular_value_clip, bench_optimizer)])
def test_calls_are_those_of_all_timed_contenders(section, monkeypatch):
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    run = Run("cpu", smoke=True)
    case = section.cases(run)[0]
    rows = section.measure(run, case)["timings"]
    makers = section.calls(run, case)
    assert makers.keys() == {str(result_files.Label.of(row)) for row in rows if not row["contender"].endswith("again")}
    for make in makers.values():
        call = make()
        call()
        call()
