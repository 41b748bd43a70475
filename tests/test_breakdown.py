"""The breakdown of an iteration loses nothing, and its floors are what is computed."""

from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import attribution, bench_step, breakdown, floors
from benchmarks.attribution import seconds_of
from benchmarks.ceilings import Work
from benchmarks.contenders import Start

WIDTH, BATCH = 1 / 32, 2


def step(width=WIDTH, device="cpu"):
    return bench_step.Fast(Start.random(device, width), "fp32", 5, cuda_graph="off").step


def batches(device="cpu"):
    return [batch[torch.channels_last_3d] for batch in bench_step.make_batches(BATCH, device)]


def test_sizes_of_an_iteration_are_the_papers():
    needed = floors.iteration(32, 2)
    assert sum(work.flops for works in needed.values() for work in works) == pytest.approx(988e9, rel=1e-3)
    # Weight, average and gradient of 15,482,440 parameters, and the weights that compute, of bfloat16 as gradients are.
    assert sum(work.nbytes for work in needed[floors.OPTIMIZERS]) == 15_482_440 * 20
    # x [32·16, 32, 64, 64] of the largest batch norm alone: read twice and written once, twice, in bfloat16.
    forward = sum(work.nbytes for work in needed[floors.row(floors.BATCH_NORM, floors.FORWARD)])
    assert forward > 2 * 3 * 2 * 32 * 16 * 32 * 64 * 64


def test_the_step_does_what_is_needed_and_little_more():
    plain = step(1.0)
    plain.iteration = 1  # which does not clip
    with FlopCounterMode(display=False) as counter:
        plain(batches()[0])
    needed = sum(work.flops for works in floors.iteration(BATCH, 4).values() for work in works)
    assert counter.get_total_flops() == pytest.approx(needed, rel=0.05)


def test_all_of_an_iteration_belongs_to_known_parts():
    seconds = breakdown.profile_cycle(step(), batches(), "cpu")
    needed = floors.iteration(BATCH, 4, WIDTH)
    assert seconds.keys() == needed.keys()
    assert min(seconds.values()) > 0


def test_kernels_belong_where_the_operators_around_their_launches_do():
    """As on a GPU, with a launch in every operator and autograd function of a real trace, as Triton's are."""
    marked, (batch, *_) = step(), batches()
    attribution.mark(marked)
    trace = attribution.trace_of(lambda: marked(batch), "cpu")
    seconds_of(trace, "cpu")  # names the part of each event
    operators = [operator for operator in trace if operator.get("part") and operator["dur"]]
    for number, operator in enumerate(operators):
        trace.append(event("cuda_driver", "cuLaunch", operator["ts"] + 1e-4, 0, operator["tid"], correlation=number))
        trace.append(event("kernel", "a kernel", operator["ts"], 1e6, "stream", correlation=number))
    assert seconds_of(trace, "cuda") == Counter(operator["part"] for operator in operators)


def event(category, name, ts, dur, thread=1, **arguments):
    return {"ph": "X", "cat": category, "name": name, "ts": ts, "dur": dur, "tid": thread, "args": arguments}


def test_kernels_belong_to_the_innermost_part_of_their_launch():
    layer, node = "part: Conv3d 2, forward", "autograd::engine::evaluate_function: "
    trace = [
        {"ph": "M", "name": "process_name"},
        event("user_annotation", layer, 0, 50),
        event("gpu_user_annotation", layer, 900, 10),
        event("cpu_op", "aten::convolution", 1, 5, **{"Sequence number": 7}),
        event("cpu_op", "aten::clone", 10, 10),
        event("cuda_runtime", "cudaLaunchKernel", 12, 2, correlation=1),
        event("cuda_driver", "cuLaunchKernelEx", 30, 2, correlation=2),
        event("cuda_runtime", "cudaLaunchKernel", 60, 2, correlation=3),
        event("cpu_op", f"{node}ConvolutionBackward0", 70, 20, thread=2, **{"Sequence number": 7}),
        event("cuda_runtime", "cudaLaunchKernel", 75, 2, thread=2, correlation=4),
        event("cuda_runtime", "cudaLaunchKernel", 80, 2, thread=2, correlation=5),
        event("cpu_op", f"{node}AccumulateGrad", 100, 20, thread=2),
        event("cpu_op", "aten::erfinv", 105, 5, thread=2),
        event("cuda_runtime", "cudaLaunchKernel", 106, 2, thread=2, correlation=6),
        event("kernel", "a", 1000, 1, correlation=1),
        event("kernel", "b", 1001, 2, correlation=2),
        event("kernel", "c", 1003, 3, correlation=3),
        event("kernel", "d", 1006, 4, correlation=4),
        event("kernel", "cudnn::nchwToNhwcKernel<…>", 1010, 5, correlation=5),
        event("kernel", "e", 1015, 6, correlation=6),
        event("gpu_memcpy", "Memcpy DtoD", 1021, 7),
    ]
    assert {name: round(seconds * 1e6) for name, seconds in seconds_of(trace, "cuda").items()} == {
        "copies": 1 + 5,
        "Conv3d 2, forward": 2,
        "c": 3,
        "Conv3d 2, backward": 4,
        "aten::erfinv": 6,
        "Memcpy DtoD": 7,
    }


def test_parts_and_groups_add_up_to_the_total():
    work = Work(flops=8.0, nbytes=1.0)
    needed = {"Conv3d 1, forward": [work, work], "last convolution, backward": [work], "copies": []}
    seconds = {"Conv3d 1, forward": 1.5, "aten::strange": 2.0, "copies": 0.5}
    parts = breakdown.parts_of(needed, lambda work: work.seconds(4.0, 1.0), seconds, 5.0)
    assert [tuple(part.values()) for part in parts] == [
        ("Conv3d 1, forward", 4.0, 1.5, True),
        ("last convolution, backward", 2.0, 0.0, True),
        ("copies", 0.0, 0.5, True),
        ("aten::strange", 0.0, 2.0, False),
        ("launch gaps", 0.0, 1.0, True),
    ]
    assert [tuple(group.values()) for group in breakdown.groups_of(parts)] == [
        ("Conv3d, last convolution", 1.5, 6.0),
        ("copies", 0.5, 0.0),
        ("rest", 2.0, 0.0),
        ("launch gaps", 1.0, 0.0),
    ]


@pytest.mark.gpu
@pytest.mark.slow
def test_most_of_a_gpus_time_is_attributed():
    seconds = breakdown.profile_cycle(step(device="cuda"), batches("cuda"), "cuda")
    known = sum(seconds.get(name, 0) for name in floors.iteration(BATCH, 4, WIDTH))
    assert known > 0.8 * sum(seconds.values())
