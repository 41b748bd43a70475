"""The breakdown of an iteration accounts for all time, and its floors match the computation."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_step, breakdown, floors
from benchmarks.breakdown import seconds_by_group
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
    # x [32·16, 32, 64, 64] of the largest batch norm alone, in bfloat16: forward it is read twice and written once,
    # twice; back it is read twice, as its gradient is, and that of x is written.
    assert sum(work.nbytes for work in needed[floors.BATCH_NORM]) > (2 * 3 + 5) * 2 * 32 * 16 * 32 * 64 * 64


def test_the_step_does_what_is_needed_and_little_more():
    plain = step(1.0)
    plain.iteration = 1  # which does not clip
    with FlopCounterMode(display=False) as counter:
        plain(batches()[0])
    needed = sum(work.flops for works in floors.iteration(BATCH, 4).values() for work in works)
    assert counter.get_total_flops() == pytest.approx(needed, rel=0.05)


def test_all_of_an_iteration_belongs_to_known_groups():
    seconds = breakdown.profile_cycle(step(), batches(), "cpu")
    assert seconds.keys() == floors.iteration(BATCH, 4, WIDTH).keys()
    assert min(seconds.values()) > 0
    assert seconds[floors.OTHERS] < 0.2 * sum(seconds.values())


def event(category, name, ts, dur, thread=1, **arguments):
    return {"ph": "X", "cat": category, "name": name, "ts": ts, "dur": dur, "tid": thread, "args": arguments}


def test_kernels_belong_to_the_innermost_group_of_their_launch():
    layer, node = "part: deconvolutions", "autograd::engine::evaluate_function: "
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
        event("cpu_op", "aten::contiguous", 105, 8, thread=2),
        event("cpu_op", "aten::clone", 106, 5, thread=2),
        event("cuda_runtime", "cudaLaunchKernel", 107, 2, thread=2, correlation=6),
        event("kernel", "a", 1000, 1, correlation=1),
        event("kernel", "b", 1001, 2, correlation=2),
        event("kernel", "c", 1003, 3, correlation=3),
        event("kernel", "d", 1006, 4, correlation=4),
        event("kernel", "cudnn::nchwToNhwcKernel<…>", 1010, 5, correlation=5),
        event("kernel", "e", 1015, 6, correlation=6),
        event("gpu_memcpy", "Memcpy DtoD", 1021, 7),
    ]
    found = {name: round(seconds * 1e6) for name, seconds in seconds_by_group(trace, "cuda").items()}
    assert found == {floors.COPIES: 1 + 5 + 6, floors.DECONVOLUTIONS: 2 + 4, floors.OTHERS: 3 + 7}


@pytest.mark.gpu
@pytest.mark.slow
def test_most_of_a_gpus_time_is_attributed():
    seconds = breakdown.profile_cycle(step(device="cuda"), batches("cuda"), "cuda")
    assert seconds[floors.OTHERS] < 0.2 * sum(seconds.values())
