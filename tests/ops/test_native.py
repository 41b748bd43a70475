"""Inside `native_ops` all operations are PyTorch's own: with the same results, differentiable twice and exportable."""

import importlib
import re
import threading
from functools import partial
from itertools import product
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tgan_fast.models.layers import DoublingConvTranspose2d, SameConvTranspose2d
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.nn import BatchNormAct2d
from tgan_fast.ops import BackendError, batch_norm_act, convolution, native_ops
from tgan_fast.ops.convolution import conv3d_halving, conv_transpose2d_doubling
from tgan_fast.ops.convolution.algorithms import DIRECT, why_not
from tgan_fast.ops.native import uses_native_ops


class Case(NamedTuple):
    """A convolution and the shapes of x and weight, which all of its algorithms can compute."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]

    @property
    def operation(self):
        return getattr(convolution, self.name)

    @property
    def algorithms(self):
        return importlib.import_module(f"tgan_fast.ops.convolution.{self.name}").ALGORITHMS

    def tensors(self, device="cpu"):
        """Return x, weight and bias in float64, channels last, as leaves."""
        out = self.weight[1 if "transpose" in self.name else 0]
        tensors = (torch.randn(shape, dtype=torch.float64) for shape in (self.x, self.weight, (out,)))
        return [channels_last(tensor.to(device)).requires_grad_() for tensor in tensors]


CASES = [
    Case("conv3d_halving", (2, 2, 4, 2, 4), (3, 2, 4, 4, 4)),
    Case("conv3d_two_frames", (2, 2, 2, 2, 4), (3, 2, 4, 4, 4)),
    Case("conv_transpose1d_doubling", (2, 3, 3), (3, 2, 4)),
    Case("conv_transpose2d_doubling", (2, 3, 2, 3), (3, 2, 4, 4)),
    Case("conv_transpose2d_same", (2, 3, 2, 8), (3, 2, 3, 3)),
]
SLOPES = {"relu": 0.0, "leaky": 0.2, "none": 1.0}

every_convolution = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_mode = pytest.mark.parametrize(
    "options", [{}, {"groups": 2}, {"training": False}], ids=["training", "two groups", "evaluation"]
)


def channels_last(tensor):
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 1 else tensor


def assert_same(got, expected, leaves):
    """Check that values and gradients are equal."""
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    upstream = channels_last(torch.randn_like(expected))
    gradients, wanted = (torch.autograd.grad(y, leaves, upstream) for y in (got, expected))
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def differentiate_twice(operation, x, *parameters):
    """Differentiate twice, as a gradient penalty does."""
    (dx,) = torch.autograd.grad(operation(x, *parameters).square().sum(), x, create_graph=True)
    dx.square().sum().backward()


def assert_differentiable_once(operation, x, *parameters):
    """Check that second derivatives raise: of a constant upstream gradient, and of one that depends on the input.

    The derivatives by a parameter alone need no gradient of what arrives.
    """
    upstream = channels_last(torch.randn_like(operation(x, *parameters)))
    refused = pytest.raises(RuntimeError, match=r"for gradients of gradients, .*native_ops")
    for value in (lambda y: (y * upstream).sum(), lambda y: (y.square() * upstream).sum()):
        first, again = (
            torch.autograd.grad(value(operation(x, *parameters)), (x, *parameters), create_graph=create_graph)
            for create_graph in (False, True)
        )
        for gradient, same in zip(first, again, strict=True):
            assert torch.equal(gradient, same)
        for leaf in (x, *parameters):
            with refused:
                torch.autograd.grad(again[0].square().sum() + leaf.sum(), leaf)


@every_convolution
def test_convolutions_are_what_they_are_outside(case, device):
    for with_bias in (True, False):
        leaves = case.tensors(device)[: 2 + with_bias]
        expected = case.operation(*leaves)
        with native_ops():
            got = case.operation(*leaves)
        assert (expected.grad_fn.name(), got.grad_fn.name()) == ("_ConvolutionBackward", "ConvolutionBackward0")
        assert_same(got, expected, leaves)


@every_convolution
def test_convolutions_are_differentiable_twice_inside_alone(case, device):
    tensors = case.tensors(device)
    with native_ops():
        assert torch.autograd.gradgradcheck(case.operation, tensors)
    assert_differentiable_once(case.operation, *tensors[:2])


@every_convolution
def test_algorithms_that_are_asked_for_by_name_are_refused(case):
    tensors = case.tensors()
    named = [name for name in case.algorithms if name != "direct"]
    assert named
    with native_ops():
        for algorithm in (*named, DIRECT._replace(forward=named[0])):
            message = re.escape(f"{case.name}: algorithm {algorithm!r} cannot be used within native_ops")
            with pytest.raises(ValueError, match=message):
                case.operation(*tensors, algorithm=algorithm)
        assert torch.equal(case.operation(*tensors, algorithm="direct"), case.operation(*tensors))
    # Outside they can be requested again, if they fit.
    fitting = [name for name in named if why_not(case.algorithms[name], *tensors[:2]) is None]
    assert fitting
    for algorithm in fitting:
        case.operation(*tensors, algorithm=algorithm)


def of_batch_norm(shape, device="cpu"):
    """Return float64 leaves x (channels last), weight and bias, and running statistics."""
    x = channels_last(torch.randn(shape, dtype=torch.float64, device=device) * 2 + 3)
    vectors = torch.rand(4, shape[1], dtype=torch.float64, device=device) + 0.5
    weight, bias, mean, var = vectors.unbind(0)
    return [tensor.clone().requires_grad_() for tensor in (x, weight, bias)], [mean.clone(), var.clone()]


@every_mode
def test_batch_norm_is_what_it_is_outside(options, device):
    for shape, slope in product([(4, 3), (4, 3, 5), (4, 3, 2, 3), (4, 2, 2, 3, 2)], SLOPES.values()):
        leaves, statistics = of_batch_norm(shape, device)
        own = [statistic.clone() for statistic in statistics]
        counts = torch.zeros(2, dtype=torch.int64, device=device)
        given = {"negative_slope": slope, **options}
        expected = batch_norm_act(*leaves, *statistics, num_batches_tracked=counts[0], **given)
        with native_ops():
            got = batch_norm_act(*leaves, *own, num_batches_tracked=counts[1], **given)
        assert_same(got, expected, leaves)
        torch.testing.assert_close(own, statistics, rtol=1e-12, atol=1e-12)
        assert counts[0] == counts[1]


@every_mode
def test_batch_norm_is_differentiable_twice_inside(options, device):
    for slope in SLOPES.values():
        leaves, statistics = of_batch_norm((4, 2, 2, 3), device)
        if not options.get("training", True):
            options = {**options, "running_mean": statistics[0], "running_var": statistics[1]}
        with native_ops():
            assert torch.autograd.gradgradcheck(partial(batch_norm_act, negative_slope=slope, **options), leaves)


@every_mode
def test_batch_norm_is_differentiable_once_outside(options):
    leaves, statistics = of_batch_norm((4, 2, 2, 3))
    if not options.get("training", True):
        options = {**options, "running_mean": statistics[0], "running_var": statistics[1]}
    operation = partial(batch_norm_act, backend="cpu", activation="silu", **options)
    assert_differentiable_once(operation, *leaves)
    residual = torch.randn_like(leaves[0]).requires_grad_()
    assert_differentiable_once(lambda x, residual: operation(x, *leaves[1:], residual=residual), leaves[0], residual)


def test_triton_is_refused_for_batch_norm():
    leaves, _ = of_batch_norm((4, 2, 2, 3))
    with native_ops():
        with pytest.raises(BackendError, match="'triton' cannot be used within native_ops"):
            batch_norm_act(*leaves, backend="triton")
        assert torch.equal(batch_norm_act(*leaves, backend="torch"), batch_norm_act(*leaves))


def test_backends_that_do_not_exist_are_refused_inside_too():
    leaves, _ = of_batch_norm((4, 2, 2, 3))
    with native_ops(), pytest.raises(ValueError, match="batch_norm_act has no backend 'fast'"):
        batch_norm_act(*leaves, backend="fast")


def test_statistics_over_processes_are_refused_in_training_alone(tmp_path):
    leaves, statistics = of_batch_norm((4, 2, 2, 3))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        options = {"process_group": dist.group.WORLD}
        with native_ops():
            with pytest.raises(BackendError, match="over several processes are not supported within native_ops"):
                batch_norm_act(*leaves, **options)
            evaluated = batch_norm_act(*leaves, *statistics, training=False, **options)
        torch.testing.assert_close(evaluated, batch_norm_act(*leaves, *statistics, training=False))
        batch_norm_act(*leaves, **options)
    finally:
        dist.destroy_process_group()


def test_still_and_moving_channels_are_what_they_are_outside_and_differentiable_twice(device):
    layer = to_channels_last_(DoublingConvTranspose2d(4, 2).double().to(device))
    still, moving = (
        channels_last(torch.randn(count, 2, 2, 2, dtype=torch.float64, device=device)).requires_grad_()
        for count in (2, 4)
    )
    expected = layer.on_still_and_moving(still, moving)
    assert expected.grad_fn.name() == "_AddToFramesBackward"
    with native_ops():
        got = layer.on_still_and_moving(still, moving)
        assert got.grad_fn.name() != "_AddToFramesBackward"
        assert_same(got, expected, [still, moving, layer.weight])
        assert torch.autograd.gradgradcheck(layer.on_still_and_moving, (still, moving))
    with pytest.raises(RuntimeError, match=r"for gradients of gradients, .*native_ops"):
        differentiate_twice(lambda moving: layer.on_still_and_moving(still, moving), moving)


def test_leaving_restores_what_was_before():
    assert not uses_native_ops()
    with native_ops():
        assert uses_native_ops()
        with native_ops():
            assert uses_native_ops()
        assert uses_native_ops()
    assert not uses_native_ops()


def test_leaving_by_an_error_restores_what_was_before():
    with pytest.raises(ValueError, match="takes x of 5 dimensions"), native_ops():
        conv3d_halving(torch.zeros(2, 2), torch.zeros(2, 2))
    assert not uses_native_ops()
    with native_ops():
        with pytest.raises(ValueError, match="takes x of 5 dimensions"), native_ops():
            conv3d_halving(torch.zeros(2, 2), torch.zeros(2, 2))
        assert uses_native_ops()
    assert not uses_native_ops()


def test_other_threads_are_not_inside():
    tensors, seen = CASES[3].tensors(), {}

    def note(name):
        seen[name] = uses_native_ops(), type(conv_transpose2d_doubling(*tensors).grad_fn).__name__

    def enter_and_note(entered, left):
        with native_ops():
            entered.set()
            left.wait(60)
            note("inside, in a thread")

    with native_ops():
        thread = threading.Thread(target=note, args=["beside"])
        thread.start()
        thread.join()
        note("inside")
    entered, left = threading.Event(), threading.Event()
    thread = threading.Thread(target=enter_and_note, args=[entered, left])
    thread.start()
    assert entered.wait(60)
    note("beside one that is inside")
    left.set()
    thread.join()
    fast, own = (False, "_ConvolutionBackward"), (True, "ConvolutionBackward0")
    assert seen == {
        "beside": fast,
        "inside": own,
        "beside one that is inside": fast,
        "inside, in a thread": own,
    }


@pytest.fixture
def _precision_as_in_a_new_process():
    """Reset the precision, because PyTorch's exporters need the same for convolutions and recurrent cells."""
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision


@pytest.mark.usefixtures("_precision_as_in_a_new_process")
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_a_network_in_evaluation_mode_can_be_exported(slope):
    """The exported program has only PyTorch's operations, and takes any number of images."""
    layers = DoublingConvTranspose2d(3, 4), BatchNormAct2d(4, slope), SameConvTranspose2d(4, 2, 3)
    network = to_channels_last_(nn.Sequential(*layers).double())
    for _ in range(3):
        network(torch.randn(5, 3, 4, 4, dtype=torch.float64))
    network.eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with native_ops(), torch.no_grad():
        exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("images")},))
    called = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    assert called
    assert {target.namespace for target in called if isinstance(target, torch._ops.OpOverload)} == {"aten"}
    more = torch.randn(7, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(exported.module()(more), network(more), rtol=1e-12, atol=1e-12)
