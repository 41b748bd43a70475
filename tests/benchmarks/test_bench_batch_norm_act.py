"""The benchmark of batch norm + activation measures layers of real networks and refuses wrong results."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from benchmarks import bench_batch_norm_act as bench
from benchmarks import bench_optimizer, bench_singular_value_clip, result_files
from benchmarks.bench_batch_norm_act import Case
from benchmarks.suite import Run
from tgan_fast import VideoDiscriminator, VideoGenerator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.nn import BATCH_NORMS

GROUPS = Case("discriminator", (4, 8, 2, 3, 3), torch.float32, negative_slope=0.2, groups=2)
VECTOR = Case("vector", (6, 10), torch.float32, channels_last=False)
RESIDUAL = Case("ResNet-50", (4, 8, 5, 5), torch.float32, residual=True)
RESIDUALS = Case("ResNet-50", (4, 8, 5, 5), torch.bfloat16, residual=True, groups=2)
SILU = Case("EfficientNet", (4, 8, 5, 5), torch.float32, activation="silu")
HARDSWISH = Case("MobileNetV3", (4, 8, 5, 5), torch.bfloat16, activation="hardswish")


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


def convolved(x, channels, kernel, stride=1):
    return F.conv2d(x, x.new_empty(channels, x.shape[1], kernel, kernel), None, stride, kernel // 2)


def resnet50_outputs(batch):
    """Return the shapes that ResNet-50 normalizes before ReLU: those with a residual, and the others."""
    x = convolved(torch.empty(batch, 3, 224, 224, device="meta"), 64, 7, 2)
    ends, inside = [], [x.shape]
    x = F.max_pool2d(x, 3, 2, 1)
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            reduced = convolved(x, width, 1, 2 if width > 64 and block == 0 else 1)
            middle = convolved(reduced, width, 3)
            x = convolved(middle, 4 * width, 1)
            inside += [reduced.shape, middle.shape]
            ends.append(x.shape)
    return set(map(tuple, ends)), set(map(tuple, inside))


def unet_outputs(batch, side):
    """Return the shapes that a U-Net normalizes on its way down and up."""
    x, skips, shapes = torch.empty(batch, 3, side, side, device="meta"), [], []
    for channels in (64, 128, 256, 512, 1024):
        x = convolved(convolved(x, channels, 3), channels, 3)
        shapes.append(x.shape)
        skips.append(x)
        x = F.max_pool2d(x, 2)
    x = skips.pop()
    for skip in reversed(skips):
        channels = skip.shape[1]
        x = F.conv_transpose2d(x, x.new_empty(2 * channels, channels, 2, 2), stride=2)
        x = convolved(convolved(torch.cat([skip, x], 1), channels, 3), channels, 3)
        shapes.append(x.shape)
    return set(map(tuple, shapes))


def test_cases_are_the_batch_norms_of_resnet_and_of_a_unet():
    ends, inside, unet = bench.block_ends(2), bench.inside_blocks(2), bench.unet(1, 64)
    assert ({case.shape for case in ends}, {case.shape for case in inside}) == resnet50_outputs(2)
    assert {case.shape for case in unet} == unet_outputs(1, 64)
    assert [case.residual for case in ends + inside + unet] == [True] * 4 + [False] * 10
    for cases in (ends, inside, unet):
        assert cases[0].nbytes == max(case.nbytes for case in cases)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_of_cases_differ_and_compiled_rivals_meet_every_residual(device, monkeypatch):
    monkeypatch.setattr("benchmarks.suite.GpuWatch", lambda: None)
    cases = bench.cases_for(Run(device))
    assert len({str(case) for case in cases}) == len(cases)
    assert all(case.compiled for case in cases if case.residual)
    assert not any(case.compiled for case in bench.cases_for(Run(device, own_only=True)))


def test_a_case_with_a_residual_counts_its_bytes_and_errors(monkeypatch):
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    record = bench.measure(Run("cpu", smoke=True), RESIDUAL)
    own = {row["part"]: row for row in record["timings"] if row["contender"] == "tgan_fast"}
    # Forward: x twice, the residual, y. Backward: x, dy and the residual, g; g and x, dx.
    assert [own[part]["bytes"] / RESIDUAL.nbytes for part in ("forward", "backward")] == [4, 7]
    assert "dresidual" in own["backward"]["error"]


def with_operation(make, change):
    """Return a function that makes a contender with a changed operation."""

    def make_wrong(*tensors):
        problem = make(*tensors)
        problem.operation = change(problem.operation)
        problem.ys = problem.forward()
        return problem

    return make_wrong


def scaled(make, factor):
    """Return a function that makes a contender whose weight is off by a factor."""

    def change(operation):
        return lambda xs, residuals, weight, *others: operation(xs, residuals, factor * weight, *others)

    return with_operation(make, change)


def with_wrong_residual_gradient(make):
    """Return a function that makes a contender whose residual's gradient alone is wrong."""

    def change(operation):
        def changed(xs, residuals, *channels):
            return operation(xs, [1.001 * r - 0.001 * r.detach() for r in residuals], *channels)

        return changed

    return with_operation(make, change)


@pytest.mark.parametrize("case", [RESIDUAL, RESIDUALS, SILU, HARDSWISH], ids=str)
def test_results_with_a_residual_or_another_activation_are_checked(case):
    torch.manual_seed(0)
    makers = bench.makers_for(case, "cpu")
    errors, left_out = bench.check(case, makers, "cpu")
    assert errors.keys() == makers.keys()
    assert not left_out
    names = ["y", "dx", "dweight", "dbias", *(["dresidual"] if case.residual else [])]
    assert all(list(of) == names for of in errors.values())
    # Values near a kink do not count: rounding of results is all that is left.
    limit = 1e-6 if case.dtype == torch.float32 else 1e-2
    assert max(error for of in errors.values() for error in of.values()) < limit


def test_a_wrong_gradient_of_a_residual_is_not_timed():
    makers = bench.makers_for(RESIDUAL, "cpu")
    wrong = {name: with_wrong_residual_gradient(makers[name]) for name in ("tgan_fast", "eager")}
    _, left_out = bench.check(RESIDUAL, makers | {"cudnn": wrong["eager"]}, "cpu")
    assert left_out["cudnn"].startswith("is off by ")
    with pytest.raises(SystemExit, match=r"tgan_fast is off by .*: nothing is timed"):
        bench.check(RESIDUAL, makers | {"tgan_fast": wrong["tgan_fast"]}, "cpu")


@pytest.mark.parametrize("case", [GROUPS, VECTOR, RESIDUAL, SILU], ids=str)
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


def test_goals_are_those_of_the_largest_image_and_of_the_worst_case_of_each_kind():
    assert [goal.verdict for goal in bench.goals_for([], "cuda")] == [result_files.NOT_MEASURED] * 6
    images = [str(case) for case in bench.GPU_CASES if case.name == "image"]
    residuals = [str(case) for case in bench.GPU_CASES if case.residual]

    def measured(cases, rivals=("eager", "cudnn")):
        records = [{"case": case, "timings": []} for case in cases]
        slow = {images[-1]: 0.8, residuals[-1]: 1.5}
        for record, part in itertools.product(records, bench.PASSES):
            ratios = {"tgan_fast": 1.0, "tgan_fast again": 0.5, **dict.fromkeys(rivals, 2.0)}
            if record["case"] in slow and rivals:
                ratios["cudnn"] = slow[record["case"]]
            share = 0.9 if "[1024, 32, 64, 64]" in record["case"] else 0.1
            row = {"part": part, "share_of_floor": share}
            record["timings"] += [row | {"contender": name, "ratio": ratio} for name, ratio in ratios.items()]
        return [goal.measured for goal in bench.goals_for(records, "cuda")]

    assert measured(images + residuals) == [0.9, 0.9, 0.8, 0.8, 1.5, 1.5]
    assert measured(images + residuals, rivals=()) == [0.9, 0.9, None, None, None, None]
    assert measured(images + residuals[1:]) == [0.9, 0.9, 0.8, 0.8, None, None]


def test_goals_of_a_cpu_are_those_of_the_worst_case_of_each_kind():
    assert [goal.verdict for goal in bench.goals_for([], "cpu")] == [result_files.NOT_MEASURED] * 7
    records = []
    for case in bench.CPU_CASES:
        record = case._asdict() | {"timings": []}
        ignored = case.name in ("large", "U-Net", "EfficientNet")
        ratios = {"tgan_fast": 1.0, "eager": 0.8 if ignored or case.shape == (2, 128, 8) else 3.0, "other": 2.0}
        ratios |= {"other": 1.5} if case.shape == (2, 1024, 14, 14) else {}
        errors = {"y": 1e-8 if case.name == "image" else 1e-7, "dx": 1.0 if case.name == "vector" else 2e-8}
        for part in bench.PASSES:
            row = {"part": part, "error": errors}
            record["timings"] += [row | {"contender": name, "ratio": ratio} for name, ratio in ratios.items()]
        records.append(record)
    assert [goal.measured for goal in bench.goals_for(records, "cpu")] == [2.0, 2.0, 2.0, 0.8, 1.5, 1.5, 1e-7]


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
