"""Every algorithm of every convolution against PyTorch's own."""

import importlib
from itertools import product
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from support.operations import RefusesHostCopies

from tgan_fast.ops import convolution
from tgan_fast.ops.convolution import (
    algorithms,
    conv3d_halving,
    conv3d_two_frames,
    conv_transpose1d_doubling,
    conv_transpose2d_doubling,
    conv_transpose2d_same,
)

HALVING, DOUBLING = {"stride": 2, "padding": 1}, {"stride": 2, "padding": 1}


class Case(NamedTuple):
    """An operation, its equivalent in PyTorch, and the shapes of x and weight."""

    operation: str
    native: object
    x: tuple[int, ...]
    weight: tuple[int, ...]
    options: dict

    @property
    def out(self):
        return self.weight[1 if "transpose" in self.operation else 0]

    @property
    def algorithms(self):
        return importlib.import_module(f"tgan_fast.ops.convolution.{self.operation}").ALGORITHMS

    def call(self, *tensors, algorithm="auto"):
        return getattr(convolution, self.operation)(*tensors, algorithm=algorithm)

    def call_native(self, *tensors):
        return self.native(*tensors, **self.options)


CASES = {
    "videos": Case("conv3d_halving", F.conv3d, (2, 3, 8, 6, 10), (5, 3, 4, 4, 4), HALVING),
    "gray videos": Case("conv3d_halving", F.conv3d, (2, 1, 4, 4, 4), (3, 1, 4, 4, 4), HALVING),
    "two channels": Case("conv3d_halving", F.conv3d, (1, 2, 2, 2, 2), (1, 2, 4, 4, 4), HALVING),
    "odd videos": Case("conv3d_halving", F.conv3d, (2, 3, 5, 7, 9), (5, 3, 4, 4, 4), HALVING),
    "odd time and height": Case("conv3d_halving", F.conv3d, (2, 3, 5, 7, 8), (5, 3, 4, 4, 4), HALVING),
    "many channels": Case("conv3d_halving", F.conv3d, (2, 6, 4, 6, 8), (7, 6, 4, 4, 4), HALVING),
    "wide videos": Case("conv3d_halving", F.conv3d, (2, 6, 4, 4, 4), (32, 6, 4, 4, 4), HALVING),
    "two frames": Case("conv3d_two_frames", F.conv3d, (2, 6, 2, 6, 10), (5, 6, 4, 4, 4), HALVING),
    "two odd frames": Case("conv3d_two_frames", F.conv3d, (3, 5, 2, 7, 5), (4, 5, 4, 4, 4), HALVING),
    "two small frames": Case("conv3d_two_frames", F.conv3d, (1, 1, 2, 2, 2), (1, 1, 4, 4, 4), HALVING),
    "sequence": Case("conv_transpose1d_doubling", F.conv_transpose1d, (3, 6, 5), (6, 4, 4), DOUBLING),
    "single step": Case("conv_transpose1d_doubling", F.conv_transpose1d, (3, 6, 1), (6, 4, 4), DOUBLING),
    "single channel": Case("conv_transpose1d_doubling", F.conv_transpose1d, (1, 1, 2), (1, 1, 4), DOUBLING),
    "images": Case("conv_transpose2d_doubling", F.conv_transpose2d, (3, 6, 4, 7), (6, 5, 4, 4), DOUBLING),
    "single pixel": Case("conv_transpose2d_doubling", F.conv_transpose2d, (2, 1, 1, 1), (1, 1, 4, 4), DOUBLING),
    "wide images": Case("conv_transpose2d_doubling", F.conv_transpose2d, (1, 3, 2, 3), (3, 16, 4, 4), DOUBLING),
    "colors": Case("conv_transpose2d_same", F.conv_transpose2d, (3, 6, 4, 16), (6, 3, 3, 3), {"padding": 1}),
    "gray, kernel 5": Case("conv_transpose2d_same", F.conv_transpose2d, (2, 5, 3, 8), (5, 1, 5, 5), {"padding": 2}),
    "kernel 1": Case("conv_transpose2d_same", F.conv_transpose2d, (2, 5, 3, 8), (5, 2, 1, 1), {"padding": 0}),
    "odd rows": Case("conv_transpose2d_same", F.conv_transpose2d, (2, 5, 3, 7), (5, 3, 3, 3), {"padding": 1}),
}
every_operation = pytest.mark.parametrize("name", ["videos", "two frames", "sequence", "images", "colors"])
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def algorithms_of(case):
    """Return every algorithm that can compute a case, and "auto"."""
    x, weight = torch.empty(case.x), torch.empty(case.weight)
    return ["auto", *(name for name, each in case.algorithms.items() if algorithms.why_not(each, x, weight) is None)]


# Every algorithm but the library's own, with the first case that it can compute.
OWN_ALGORITHMS = {
    f"{case.operation}-{algorithm}": (case, algorithm)
    for case in reversed(CASES.values())
    for algorithm in algorithms_of(case)
    if algorithm not in ("auto", "direct")
}


def channels_last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def strided(t):
    """Return the values as every second element of a larger tensor along the last axis."""
    larger = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"))
    larger[..., ::2] = t
    return larger[..., ::2]


LAYOUTS = {"contiguous": torch.Tensor.contiguous, "channels-last": channels_last, "strided": strided}


@pytest.fixture(autouse=True)
def _nan_in_new_memory():
    """Fill new memory with NaN, so that an unwritten element shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def test_no_algorithm_makes_a_gpu_wait():
    for case in CASES.values():
        leaves = inputs(case)
        for algorithm in algorithms_of(case):
            with RefusesHostCopies():
                y = case.call(*leaves, algorithm=algorithm)
                torch.autograd.grad(y, leaves, torch.ones_like(y))


def inputs(case, dtype=torch.float64, device="cpu", layout=torch.Tensor.contiguous):
    """Return x, weight and bias, as leaves."""
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in (case.x, case.weight, (case.out,)))
    weight /= weight[0].numel() ** 0.5
    x, weight = (layout(t.to(device, dtype)) for t in (x, weight))
    return [t.requires_grad_() for t in (x, weight, bias.to(device, dtype))]


def outcome(y, leaves, upstream):
    """Return y and the gradients of the leaves."""
    return [y, *torch.autograd.grad(y, leaves, upstream.to(y))]


def assert_close(got, expected, tolerance, what):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


def assert_same_outcome(got, expected, leaves, upstream, what):
    for a, b in zip(outcome(got, leaves, upstream), outcome(expected, leaves, upstream), strict=True):
        assert_close(a, b, 1e-11, what)


@every_case
def test_it_is_pytorchs_convolution_in_float64(case, device):
    for algorithm, (name, layout), with_bias in product(algorithms_of(case), LAYOUTS.items(), (True, False)):
        leaves = inputs(case, device=device, layout=layout)[: 2 + with_bias]
        tensors = leaves if with_bias else [*leaves, None]
        expected, got = case.call_native(*tensors), case.call(*tensors, algorithm=algorithm)
        upstream = layout(torch.randn_like(expected))
        assert_same_outcome(
            got, expected, leaves, upstream, f"{algorithm}, {name}, {'with' if with_bias else 'no'} bias"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("case", "algorithm"), OWN_ALGORITHMS.values(), ids=OWN_ALGORITHMS)
def test_it_is_as_accurate_as_pytorchs(case, algorithm, dtype, device):
    """Errors are taken over several draws, since a single result may be exact by chance."""
    errors, norms = [], []
    for _ in range(8):
        leaves = inputs(case, dtype, device, channels_last)
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        truth = case.call_native(*exact)
        upstream = torch.randn_like(truth).to(dtype)
        truth = outcome(truth, exact, upstream)
        results = outcome(case.call(*leaves, algorithm=algorithm), leaves, upstream)
        assert all(result.dtype == dtype for result in results)
        results += outcome(case.call_native(*leaves), leaves, upstream)
        errors.append([(a.double() - t).norm().item() for a, t in zip(results, truth * 2, strict=True)])
        norms.append([t.norm().item() for t in truth])
    got, native = torch.tensor(errors).sum(0).chunk(2)
    # The error of rounding the result alone.
    floor = torch.tensor(norms).sum(0) * torch.finfo(dtype).eps / 2
    assert (got <= 2 * native + floor).all(), (got, native)


@every_case
def test_channels_stay_last_and_gradients_lie_as_their_tensors_do(case, device):
    for algorithm in algorithms_of(case):
        leaves = inputs(case, torch.float32, device, channels_last)
        y = case.call(*leaves, algorithm=algorithm)
        dx, dweight, _ = torch.autograd.grad(y, leaves, channels_last(torch.randn_like(y)))
        for tensor in (y, dx, dweight):
            assert tensor.movedim(1, -1).is_contiguous(), algorithm


@every_case
def test_only_the_gradients_that_are_wanted(case, device):
    leaves = inputs(case, device=device)
    for algorithm in algorithms_of(case):
        y = case.call(*leaves, algorithm=algorithm)
        upstream = torch.randn_like(y)
        for wanted, whole in enumerate(torch.autograd.grad(y, leaves, upstream)):
            alone = [leaf.detach().requires_grad_(index == wanted) for index, leaf in enumerate(leaves)]
            (gradient,) = torch.autograd.grad(
                case.call(*alone, algorithm=algorithm), alone[wanted : wanted + 1], upstream
            )
            assert_close(gradient, whole, 1e-12, algorithm)


@every_case
def test_an_activation_may_overwrite_the_output(case, device):
    for algorithm in algorithms_of(case):
        leaves = inputs(case, device=device, layout=channels_last)
        got, expected = (
            F.leaky_relu_(case.call(*leaves, algorithm=algorithm), 0.2),
            F.leaky_relu(case.call_native(*leaves), 0.2),
        )
        assert_same_outcome(got, expected, leaves, torch.randn_like(expected), algorithm)


@every_operation
def test_autocast_is_that_of_pytorch(name, device):
    case = CASES[name]
    leaves = inputs(case, torch.float32, device, channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        got, expected = case.call(*leaves), case.call_native(*leaves)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
    for gradient in torch.autograd.grad(got, leaves, torch.ones_like(got)):
        assert gradient.dtype == torch.float32


@every_operation
def test_gradients_of_gradients_are_refused(name):
    case = CASES[name]
    x, *parameters = inputs(case)
    (dx,) = torch.autograd.grad(case.call(x, *parameters).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"for gradients of gradients, .*native_ops"):
        dx.sum().backward()


def test_the_table_names_algorithms_that_have_the_direction():
    operations = {case.operation: case.algorithms for case in CASES.values()}
    assert algorithms.TABLE.keys() == operations.keys()
    for operation, devices in algorithms.TABLE.items():
        assert devices.keys() == {"cpu", "cuda"}
        for entry in devices.values():
            for which, name in zip(algorithms.PerDirection._fields, entry, strict=True):
                assert getattr(operations[operation][name], which) is not None, (operation, name, which)


def test_auto_takes_the_table_and_direct_for_what_it_cannot_compute(monkeypatch):
    monkeypatch.setitem(algorithms.TABLE["conv3d_halving"], "cpu", algorithms.PerDirection("pairs", "blocks", "pairs"))

    def chosen(name):
        case = CASES[name]
        return algorithms.choose(case.operation, case.algorithms, "auto", torch.empty(case.x), torch.empty(case.weight))

    assert chosen("videos") == ("pairs", "blocks", "pairs")
    assert chosen("odd time and height") == ("pairs", "direct", "pairs")
    assert chosen("odd videos") == chosen("many channels") == algorithms.DIRECT


def test_an_algorithm_leaves_the_directions_that_it_lacks_to_direct_and_algorithms_may_be_mixed():
    case = CASES["videos"]
    x, weight = torch.empty(case.x), torch.empty(case.weight)
    assert algorithms.choose("conv3d_halving", case.algorithms, "blocks", x, weight) == ("direct", "blocks", "direct")
    mixed = algorithms.PerDirection("pairs", "blocks", "direct")
    assert algorithms.choose("conv3d_halving", case.algorithms, mixed, x, weight) == mixed
    leaves = inputs(case)
    got, expected = case.call(*leaves, algorithm=mixed), case.call_native(*leaves)
    assert_same_outcome(got, expected, leaves, torch.randn_like(expected), mixed)


@pytest.mark.parametrize(
    ("name", "algorithm", "message"),
    [
        ("videos", "fast", "conv3d_halving has no algorithm 'fast': choose auto, direct, pairs, blocks, images"),
        ("odd videos", "pairs", "algorithm 'pairs' cannot be used: it needs rows of even length, and x has 9"),
        ("many channels", "pairs", "algorithm 'pairs' cannot be used: it has room for 3 channels, and x has 6"),
        ("odd videos", "images", "algorithm 'images' cannot be used: it needs an even number of frames, and x has 5"),
        ("wide videos", "images", "cannot be used: it is slow with 6 channels and 32 output channels"),
        ("wide images", "phases", "cannot be used: on a CPU it is for fewer than 16 output channels, and y has 16"),
        ("colors", "four gray pixels", "cannot be used: it is for one output channel, and y has 3"),
        ("odd videos", "blocks", r"algorithm 'blocks' cannot be used: it needs even sizes, and x has \[5, 7, 9\]"),
        ("many channels", "blocks", "algorithm 'blocks' cannot be used: it is for fewer than 4 channels, and x has 6"),
        (
            "odd rows",
            "eight pixels",
            "algorithm 'eight pixels' cannot be used: it needs rows of a multiple of 8 pixels, and x has 7",
        ),
    ],
)
def test_algorithms_that_do_not_exist_or_do_not_fit_are_named(name, algorithm, message):
    with pytest.raises(ValueError, match=message):
        CASES[name].call(*inputs(CASES[name]), algorithm=algorithm)


def test_a_kernel_wider_than_a_group_and_its_neighbors_is_refused():
    x, weight = torch.zeros(1, 2, 11, 16), torch.zeros(2, 1, 11, 11)
    with pytest.raises(ValueError, match="a kernel of 11 reaches beyond the next group"):
        conv_transpose2d_same(x, weight, algorithm="four pixels")


@pytest.mark.parametrize(
    ("function", "x", "weight", "message"),
    [
        (conv3d_two_frames, (1, 2, 3, 4, 4), (1, 2, 4, 4, 4), r"takes \[N, C, 2, H, W\] and got \[1, 2, 3, 4, 4\]"),
        (conv_transpose2d_same, (1, 2, 4, 4), (2, 1, 4, 4), r"of odd k and got \[2, 1, 4, 4\]"),
        (conv3d_halving, (1, 2, 4, 4, 4), (1, 2, 3, 3, 3), r"takes weights \[out, 2, 4, 4, 4\] and got \[1, 2, 3, 3"),
        (conv3d_halving, (1, 4, 4, 4), (1, 4, 4, 4, 4), r"takes x of 5 dimensions and got \[1, 4, 4, 4\]"),
        (conv_transpose1d_doubling, (1, 2, 4), (3, 1, 4), r"takes weights \[2, out, 4\] and got \[3, 1, 4\]"),
        (conv_transpose2d_doubling, (1, 2, 4, 4), (2, 1, 3, 3), r"takes weights \[2, out, 4, 4\] and got \[2, 1, 3"),
    ],
)
def test_shapes_that_do_not_fit_are_named(function, x, weight, message):
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(x), torch.zeros(weight))
