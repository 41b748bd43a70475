"""The breakdown of an iteration loses nothing, and its floors are what is computed."""

import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import attribution, bench_step, breakdown, floors
from benchmarks.attribution import Attribution, Item, items_of, profiled
from benchmarks.ceilings import Work
from benchmarks.suite import Label, Run, Suite
from tgan_fast import reference

WIDTH, BATCH = 1 / 32, 2


def step():
    return breakdown.make_step(WIDTH, "fp32", "cpu", "off")


@pytest.mark.parametrize("width", [1.0, 1 / 16])
@pytest.mark.parametrize("network", [floors.GENERATOR, floors.DISCRIMINATOR])
def test_operations_of_the_layers_are_those_of_pytorchs_counter(network, width):
    with torch.device("meta"):
        model = {"generator": reference.Generator, "discriminator": reference.Discriminator}[network](width)
        shape = (4, floors.LATENT_DIM) if network == floors.GENERATOR else (4, 3, 16, 64, 64)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(shape))
    counted = {name.partition(".")[2]: sum(c.values()) for name, c in counter.get_flop_counts().items()}
    layers = [layer for layer in floors.layers(network, width) if layer.flops]
    assert {layer.name: 4 * layer.flops for layer in layers} == {layer.name: counted[layer.name] for layer in layers}
    assert 4 * sum(layer.flops for layer in layers) == counter.get_total_flops()


def test_sizes_of_the_networks_are_the_papers():
    assert floors.parameter_counts(1.0) == {"generator": 4_449_159, "discriminator": 11_033_281}
    needed = floors.iteration(32, 2)
    assert sum(work.flops for works in needed.values() for work in works) == pytest.approx(988e9, rel=1e-3)
    # x [32·16, 32, 64, 64] of the largest batch norm alone: read twice and written once, twice, in bfloat16.
    forward = sum(work.nbytes for work in needed[floors.row(floors.BATCH_NORM, floors.FORWARD)])
    assert forward > 2 * 3 * 2 * 32 * 16 * 32 * 64 * 64


def test_every_operation_of_an_iteration_belongs_to_a_known_part():
    batches, plain = breakdown.make_videos(BATCH, "cpu")[:2], step()
    with FlopCounterMode(display=False) as counter:
        items, flops = breakdown.profile_cycle(plain, batches, "cpu")
    assert sum(flops.values()) == counter.get_total_flops()
    rows = breakdown.rows_of(floors.iteration(BATCH, 4, WIDTH), items, flops, len(batches), 1.0, (1e9, 1e9))
    assert [row.name for row in rows if not row.known] == []
    # Whatever takes work is done.
    assert [row.name for row in rows if row.work and not row.seconds] == []
    assert sum(row.seconds for row in rows[:-1]) * len(batches) == pytest.approx(sum(item.seconds for item in items))
    assert sum(row.flops_done for row in rows) * len(batches) == sum(flops.values())


def test_the_step_does_what_is_needed_and_little_more():
    batches = breakdown.make_videos(BATCH, "cpu")
    plain = breakdown.make_step(1.0, "fp32", "cpu", "off")
    plain.iteration = 1  # which does not clip
    with FlopCounterMode(display=False) as counter:
        plain(batches[0])
    needed = sum(work.flops for works in floors.iteration(BATCH, 4).values() for work in works)
    assert counter.get_total_flops() == pytest.approx(needed, rel=0.05)


def trace_of_an_iteration():
    batch, plain = breakdown.make_videos(BATCH, "cpu")[0], step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler, Attribution() as labels:
        plain(batch)
    return [e for e in attribution.trace_of(profiler) if e.get("ph") == "X"], labels


def rows_of_launches(trace, labels, launches):
    """The rows of kernels that are launched at such times on such threads."""
    for number, (ts, thread) in enumerate(launches):
        trace.append(event("cuda_runtime", "cudaLaunchKernel", ts, 0, thread, correlation=number))
        trace.append(event("kernel", "a kernel", ts, 1, "stream", correlation=number))
    return Counter(item.row for item in items_of(trace, labels.row_of_node))


def test_kernels_of_an_iteration_belong_where_their_operators_do():
    """As on a GPU, with a launch in the middle of every operator of a real trace."""
    trace, labels = trace_of_an_iteration()
    operators = [e for e in trace if e["name"].startswith(attribution._OPERATOR)]
    launches = [(operator["ts"] + operator["dur"] / 2, operator["tid"]) for operator in operators]
    assert rows_of_launches(trace, labels, launches) == Counter(item.row for item in labels.operators)


def test_kernels_without_operators_belong_to_the_module_the_node_or_the_file():
    """As Triton's, launched where an autograd function begins, its node, or an optimiser's step."""
    trace, labels = trace_of_an_iteration()
    node = attribution._NODE + "_BatchNormActBackward"
    begins = [e for e in trace if e["name"] in ("_BatchNormAct", node) or e["name"].startswith("Optimizer.step")]
    seen = Counter(e["name"].partition(".")[0] for e in begins)
    expected = {
        floors.row(floors.BATCH_NORM, floors.FORWARD): seen["_BatchNormAct"],
        floors.row(floors.BATCH_NORM, floors.BACKWARD): seen[node],
        floors.OPTIMIZERS: seen["Optimizer"],
    }
    assert min(expected.values()) > 1
    assert rows_of_launches(trace, labels, [(e["ts"] + 1e-3, e["tid"]) for e in begins]) == expected


def test_an_unknown_operator_shows_up_under_its_name():
    items, _ = profiled(lambda: torch.rand(4).erfinv(), "cpu")
    assert "aten.erfinv.default" in {item.row for item in items}
    rows = breakdown.rows_of({"known": []}, [*items, Item("known", 1.0)], {}, 1, 2.0, (1.0, 1.0))
    assert [row.known for row in rows if row.name in ("known", "aten.erfinv.default")] == [True, False]


@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_gradients_are_the_same_one_by_one(transposed, bias):
    convolution = F.conv_transpose2d if transposed else F.conv2d
    x, weight = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4, 7, 5), (4, 4, 3, 2)))
    vector = torch.randn(4, dtype=torch.float64, requires_grad=True) if bias else None
    wanted = [tensor for tensor in (x, weight, vector) if tensor is not None]

    def gradients():
        y = convolution(x, weight, vector, stride=2, padding=1)
        return torch.autograd.grad(y.square().sum(), wanted)

    expected = gradients()
    with Attribution():
        got = gradients()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_nothing_is_left_behind():
    with Attribution():
        step()(breakdown.make_videos(BATCH, "cpu")[0])
    assert sys.getprofile() is None
    hooks = nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks
    assert not any(hooks)


def event(category, name, ts, dur, thread=1, **arguments):
    return {"ph": "X", "cat": category, "name": name, "ts": ts, "dur": dur, "tid": thread, "args": arguments}


def test_kernels_belong_to_the_innermost_scope_of_their_launch():
    operator, scope, node = attribution._OPERATOR, attribution._SCOPE, attribution._NODE
    trace = [
        {"ph": "M", "name": "process_name"},
        event("user_annotation", f"{scope}layer, forward", 0, 50),
        event("user_annotation", f"{operator}copies", 10, 10),
        event("gpu_user_annotation", f"{operator}copies", 900, 10),
        event("cuda_runtime", "cudaLaunchKernel", 12, 2, correlation=1),
        event("cuda_driver", "cuLaunchKernelEx", 30, 2, correlation=2),
        event("cuda_runtime", "cudaLaunchKernel", 60, 2, correlation=3),
        event("cpu_op", f"{node}ABackward", 20, 20, thread=2, **{"Sequence number": 7}),
        event("cpu_op", f"{node}BBackward", 50, 20, thread=2, **{"Sequence number": 8}),
        event("cuda_runtime", "cudaLaunchKernel", 25, 2, thread=2, correlation=4),
        event("cuda_runtime", "cudaLaunchKernel", 55, 2, thread=2, correlation=5),
        event("cuda_runtime", "cudaLaunchKernel", 31, 2, thread=2, correlation=6),
        event("kernel", "a", 1000, 1, correlation=1),
        event("kernel", "b", 1001, 2, correlation=2),
        event("kernel", "c", 1003, 3, correlation=3),
        event("kernel", "d", 1006, 4, correlation=4),
        event("kernel", "e", 1010, 5, correlation=5),
        event("kernel", "cudnn::nchwToNhwcKernel<…>", 1015, 6, correlation=6),
        event("gpu_memset", "Memset (Device)", 1021, 7, correlation=99),
        event("gpu_memcpy", "Memcpy DtoD", 1028, 8),
    ]
    items = items_of(trace, {7: "layer, backward"}.get)
    expected = {
        "copies": 1,
        "layer, forward": 2,
        "c": 3,
        "layer, backward": 4,
        "e": 5,
        floors.LAYOUT: 6,
        "Memset (Device)": 7,
        "Memcpy DtoD": 8,
    }
    assert {item.row: round(item.seconds * 1e6) for item in items} == expected


def test_rows_add_up_to_the_total():
    work = Work(flops=8.0, nbytes=1.0)
    items = [Item("a, forward", 1.0), Item("a, forward", 2.0), Item("strange", 4.0)]
    rows = breakdown.rows_of({"a, forward": [work, work], "b": []}, items, {"a, forward": 40}, 2, 5.0, (4.0, 1.0))
    assert [(row.name, row.seconds, row.floor, row.flops_done, row.known) for row in rows] == [
        ("a, forward", 1.5, 4.0, 20, True),
        ("b", 0.0, 0.0, 0, True),
        ("strange", 2.0, 0.0, 0, False),
        (breakdown.GAPS, 1.5, 0.0, 0, True),
    ]
    assert [row.name for row in breakdown.largest_gaps(rows)] == ["strange", breakdown.GAPS, "b"]


def test_gradients_that_cannot_be_told_apart_share_a_row():
    work = Work(1.0, 0.0)
    needed = {f"{layer}, {part}": [work] for layer in "ab" for part in ("forward", "input gradient", "weight gradient")}
    items = [Item("a, input gradient", 1.0), Item("a, backward", 2.0), Item("b, weight gradient", 4.0)]
    rows = breakdown.rows_of(needed, items, {"a, input gradient": 3, "a, backward": 5}, 1, 7.0, (1.0, 1.0))
    table = {row.name: (row.seconds, row.floor, row.flops_done) for row in rows}
    assert table["a, backward"] == (3.0, 2.0, 8)
    assert "a, input gradient" not in table
    assert table["b, input gradient"] == (0.0, 1.0, 0)
    assert table["b, weight gradient"] == (4.0, 1.0, 0)


def test_groups_hold_every_row_once():
    names = [*floors.iteration(BATCH, 4), "Conv3d 2, backward", breakdown.GAPS]
    rows = [breakdown.Row(name, [], 1.0, index, 0, True) for index, name in enumerate(names)]
    rows.append(breakdown.Row("Conv3d of a library", [], 1.0, 100.0, 0, False))
    groups = {group["group"]: group for group in breakdown.groups_of(rows)}
    assert sum(group["floor_seconds"] for group in groups.values()) == len(rows)
    assert sum(group["seconds"] for group in groups.values()) == sum(row.seconds for row in rows)
    counts = {name: group["floor_seconds"] for name, group in groups.items()}
    assert counts == {
        "temporal generator and linears": 2,
        "copies": 1 + 5 + 4 + 1 + 1,
        "deconvolutions": 5 * 3,
        "batch norm + activation": 2,
        "Conv3d, last convolution": 4 * 3 + 1 + 3,
        "other element-wise work": 1,
        "optimisers": 1,
        "singular value clipping": 1,
        "launch gaps": 1,
        "rest": 2,  # communication, and what is not known
    }


def test_groups_without_anything_are_left_out():
    rows = [
        breakdown.Row(floors.CLIPPING, [], 0.0, 0.0, 0, True),
        breakdown.Row(breakdown.GAPS, [], 0.0, -1.0, 0, True),
    ]
    assert breakdown.groups_of(rows) == [{"group": "launch gaps", "seconds": -1.0, "floor_seconds": 0.0}]


@pytest.mark.slow
def test_what_runs_is_in_the_record(monkeypatch):
    monkeypatch.setattr(bench_step, "SMOKE_WIDTH", WIDTH)
    run = Run("cpu", smoke=True)
    suite, (case,) = Suite(run), breakdown.cases_for(run)
    record = suite.record(breakdown.SECTION, case)
    assert [Label(row["contender"]) for row in record["timings"]] == breakdown.labels_for(run, case)
    whole, parts = record["timings"][0], record["parts"]
    assert len(record["largest_gaps"]) == 3
    assert all(part["known"] for part in parts)
    for rows in (parts, record["groups"]):
        assert sum(row["seconds"] for row in rows) == pytest.approx(whole["seconds"], rel=1e-2)
        assert sum(row["floor_seconds"] for row in rows) == pytest.approx(whole["floor_seconds"], rel=1e-2)
    assert whole["share_of_floor"] == pytest.approx(whole["floor_seconds"] / whole["seconds"], rel=1e-3)
    needed = [work for works in floors.iteration(case.batch_size, 4, WIDTH).values() for work in works]
    assert whole["flops"] == pytest.approx(sum(work.flops for work in needed), rel=1e-3)
    assert whole["bytes"] == pytest.approx(sum(work.nbytes for work in needed), rel=1e-3)
    lines = "\n".join(breakdown.details(record))
    assert "largest gaps: " in lines
    assert "belongs to no known part: 0.00 %, 0 rows" in lines
    assert "has seen nothing" not in lines


@pytest.mark.gpu
@pytest.mark.slow
def test_most_of_a_gpus_time_is_attributed():
    batches = breakdown.make_videos(BATCH, "cuda")
    items, _ = breakdown.profile_cycle(breakdown.make_step(WIDTH, "fp32", "cuda", "off"), batches, "cuda")
    needed = floors.iteration(BATCH, 4, WIDTH)
    known = sum(item.seconds for item in items if item.row in needed)
    assert known > 0.8 * sum(item.seconds for item in items)
