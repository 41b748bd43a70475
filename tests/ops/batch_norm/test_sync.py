"""Statistics across processes: two processes must give the results of one process with both batches."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.two_processes import outcomes_of_two

from tgan_fast.nn import BatchNormAct2d
from tgan_fast.ops import batch_norm_act

CHANNELS = 5
SAMPLES = 4, 6  # of each process
# The momentum does not depend on the backend.
CASES = [*itertools.product(["torch"], [1, 2], [0.1, None]), ("triton", 1, 0.1), ("triton", 2, None)]
EMPTY_CASES = list(itertools.product(CASES, [(0,), (0, 1)]))  # with the ranks of the processes without samples
IDS = [f"{backend}-{groups}-groups-momentum-{momentum}" for backend, groups, momentum in CASES]


def device_of(backend):
    """Return the device of a backend; Triton kernels run on a GPU, or in the interpreter without one."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def dtype_of(backend):
    """Return float64 if the backend supports it, so that rounding hides no error."""
    return torch.float64 if backend == "torch" else torch.float32


def batches():
    """Return x and a gradient for each process, with different means far from zero."""
    random = torch.Generator().manual_seed(0)
    shapes = [(samples, CHANNELS, 6, 7) for samples in SAMPLES]
    return [
        (torch.randn(shape, generator=random) + 100 + rank, torch.randn(shape, generator=random))
        for rank, shape in enumerate(shapes)
    ]


def run(x, upstream, backend, groups, momentum, **options):
    """Run two training steps; return results and buffers."""
    device, dtype = device_of(backend), dtype_of(backend)
    torch.manual_seed(1)
    module = BatchNormAct2d(CHANNELS, 0.2, momentum=momentum, backend=backend, **options)
    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.nn.init.normal_(module.bias)
    module.to(device, dtype)
    for scale in (2, 1):
        module.zero_grad()
        leaf = (x * scale).to(device, dtype).requires_grad_()
        y = module(leaf, groups=groups)
        y.backward(upstream.to(device, dtype))
    tensors = {"y": y.detach(), "dx": leaf.grad, "dweight": module.weight.grad, "dbias": module.bias.grad}
    return {name: tensor.cpu() for name, tensor in (tensors | dict(module.named_buffers())).items()}


def without_samples(rank, empty):
    """Return the inputs of a process in a step in which the processes with the ranks `empty` have no samples."""
    return [tensor[:0] if rank in empty else tensor for tensor in batches()[rank]]


def outcomes(rank):
    group = dist.group.WORLD
    ordinary = [run(*batches()[rank], *case, process_group=group) for case in CASES]
    return ordinary + [run(*without_samples(rank, empty), *case, process_group=group) for case, empty in EMPTY_CASES]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return list(zip(*outcomes_of_two(outcomes, tmp_path_factory.mktemp("processes")), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "case"), list(enumerate(CASES)), ids=IDS)
def test_two_processes_are_one_with_both_batches(number, case, two_processes):
    if case[0] == "triton":
        pytest.importorskip("triton")
    groups = case[1]
    first, second = two_processes[number]

    def together(name_or_index):
        """Join the batches of both processes, group by group."""
        pairs = zip(*(part.chunk(groups) for part in name_or_index), strict=True)
        return torch.cat([part for pair in pairs for part in pair])

    x, upstream = (together(both) for both in zip(*batches(), strict=True))
    expected = run(x, upstream, *case)
    tolerance = 1e-9 if case[0] == "torch" else 3e-5
    for name in ("y", "dx"):
        torch.testing.assert_close(
            together((first[name], second[name])), expected[name], rtol=tolerance, atol=tolerance
        )
    for name in ("dweight", "dbias"):
        torch.testing.assert_close(first[name] + second[name], expected[name], rtol=tolerance, atol=tolerance)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected[name], rtol=min(1e-5, tolerance), atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "case"),
    list(enumerate(EMPTY_CASES, start=len(CASES))),
    ids=[f"{name}-{len(empty)}-empty" for name, (_, empty) in zip(np.repeat(IDS, 2), EMPTY_CASES, strict=True)],
)
def test_a_process_without_samples_takes_what_the_other_has(number, case, two_processes):
    (backend, *options), empty = case
    if backend == "triton":
        pytest.importorskip("triton")
    first, second = two_processes[number]
    expected = run(*without_samples(1, empty), backend, *options)
    tolerance = 1e-9 if backend == "torch" else 3e-5
    for name, value in expected.items():
        torch.testing.assert_close(second[name], value, rtol=tolerance, atol=tolerance)
    for name in ("y", "dx"):
        assert first[name].shape == (0, CHANNELS, 6, 7)
    for name in ("dweight", "dbias"):
        assert torch.equal(first[name], torch.zeros(CHANNELS, dtype=dtype_of(backend)))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[name], second[name])


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_one_process_is_ordinary_batch_norm(alone):
    x = torch.randn(6, CHANNELS, 3, 3)
    for dtype in (torch.float32, torch.float64):
        got = batch_norm_act(x.to(dtype), None, None, process_group=alone)
        torch.testing.assert_close(got, batch_norm_act(x.to(dtype), None, None), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="more than one value per channel"):
        batch_norm_act(torch.ones(1, 3), None, None, process_group=alone)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_one_process_adds_a_residual_as_ordinary_batch_norm_does(backend, alone):
    if backend == "triton":
        pytest.importorskip("triton")
    x, residual = torch.randn(2, 6, CHANNELS, 3, 3).to(device_of(backend))
    tensors = [x, torch.rand(CHANNELS).to(x), torch.randn(CHANNELS).to(x), residual]
    outcomes = []
    for options in ({"backend": backend, "process_group": alone}, {"backend": "torch"}):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        y = batch_norm_act(*leaves[:3], residual=leaves[3], activation="silu", groups=2, **options)
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-5)


def test_gradients_without_values_are_zero_where_rstd_is_infinite(alone):
    weight, bias = (torch.ones(CHANNELS, requires_grad=True) for _ in range(2))
    batch_norm_act(torch.empty(0, CHANNELS, 3, 3), weight, bias, eps=0.0, process_group=alone).sum().backward()
    for gradient in (weight.grad, bias.grad):
        assert torch.equal(gradient, torch.zeros(CHANNELS))


def test_a_copy_works_with_the_same_processes(alone):
    module = BatchNormAct2d(CHANNELS, process_group=alone)
    clone = copy.deepcopy(torch.nn.Sequential(module))[0]
    assert clone.process_group is alone
    assert clone.weight is not module.weight
    x = torch.randn(3, CHANNELS, 2, 2)
    assert torch.equal(clone(x), module(x))


def test_evaluation_asks_no_other_process():
    """There is no process group that could be used."""
    module = BatchNormAct2d(CHANNELS, process_group="nobody").eval()
    assert module(torch.randn(2, CHANNELS, 3, 3)).shape == (2, CHANNELS, 3, 3)
