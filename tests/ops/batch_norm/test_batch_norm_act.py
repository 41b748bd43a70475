"""batch_norm_act against a float64 formula, against nn.BatchNorm, and in groups against separate calls."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from support.pairwise import covering
from torch import nn

from tgan_fast.ops import BackendError, backends, batch_norm_act

SHAPES = {
    "two-rows": (2, 5),
    "one-channel": (3, 1, 7),
    "1d": (4, 6, 5),
    "2d": (4, 6, 5, 3),
    "3d": (2, 3, 2, 4, 5),
    "one-video": (1, 4, 3, 3, 3),
}
SLOPES = {"relu": 0.0, "leaky": 0.2, "none": 1.0}
EPS, MOMENTUM = 1e-5, 0.1


def formula(x, weight, bias, negative_slope):
    """Return the result by definition, in float64."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean, var = x.mean(dims, keepdim=True), x.var(dims, keepdim=True, unbiased=False)
    y = (x - mean) / (var + EPS).sqrt() * weight.view(shape) + bias.view(shape)
    return torch.where(y > 0, y, negative_slope * y)


def inputs(shape, dtype=torch.float32, device="cpu"):
    x = torch.randn(shape, device=device, dtype=dtype) * 2 + 3
    channels = shape[1]
    weight = torch.rand(channels, device=device, dtype=dtype) + 0.5
    return x, weight, torch.randn(channels, device=device, dtype=dtype)


def strided(x):
    """Return the values as every second element of a larger tensor along the last axis."""
    larger = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    larger[..., ::2] = x
    return larger[..., ::2]


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {"contiguous": lambda x: x, "channels-last": channels_last, "strided": strided}


def assert_same(got, expected, got_inputs, expected_inputs, what):
    """Check the output and the gradients."""

    def message(text):
        return f"{what}: {text}"

    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, msg=message)
    upstream = torch.randn_like(expected)
    grads = torch.autograd.grad(got, got_inputs, upstream), torch.autograd.grad(expected, expected_inputs, upstream)
    for mine, truth in zip(*grads, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10, msg=message)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_forward_and_gradients_match_the_formula_in_float64(shape, device):
    for (name, layout), slope in product(LAYOUTS.items(), SLOPES.values()):
        values = inputs(shape, torch.float64, device)
        expected_inputs = [v.clone().requires_grad_() for v in values]
        got_inputs = [layout(values[0]).requires_grad_(), *(v.clone().requires_grad_() for v in values[1:])]
        got = batch_norm_act(*got_inputs, negative_slope=slope)
        assert got.shape == shape
        # A value within rounding of zero could fall on the activation's other side, so its gradient is not compared.
        assert formula(*values, negative_slope=1.0).abs().min() > 1e-9
        assert_same(got, formula(*expected_inputs, slope), got_inputs, expected_inputs, (name, slope))


@pytest.mark.parametrize("slope", [-0.5, -2.0, 3.0])
def test_slopes_below_zero_and_above_one(slope, device):
    """With slopes below zero, an output's sign does not show the input's sign."""
    statistics = torch.full((6,), 3.0, device=device).double(), torch.full((6,), 4.0, device=device).double()
    for (name, layout), training, groups in product(LAYOUTS.items(), (True, False), (1, 2)):
        values = inputs((4, 6, 5, 3), torch.float64, device)
        got_inputs = [layout(values[0]).requires_grad_(), *(v.clone().requires_grad_() for v in values[1:])]
        expected_inputs = [v.clone().requires_grad_() for v in values]
        own_statistics = [s.clone() for s in statistics]
        got = batch_norm_act(*got_inputs, *own_statistics, training=training, negative_slope=slope, groups=groups)
        parts = (
            nn.functional.batch_norm(part, *statistics, *expected_inputs[1:], training, 0.0)
            for part in expected_inputs[0].chunk(groups)
        )
        v = torch.cat(list(parts))
        expected = torch.where(v > 0, v, slope * v)
        assert_same(got, expected, got_inputs, expected_inputs, (name, training, groups))


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3), (6, 4, 0, 3), (6, 0, 2)], ids=str)
def test_an_empty_tensor_moves_nothing_and_has_gradients_of_zero(shape, device):
    layouts = LAYOUTS["contiguous"], LAYOUTS["channels-last"]
    for layout, training, groups in product(layouts, (True, False), (1, 3)):
        x = layout(torch.ones(shape, device=device, dtype=torch.float16)).requires_grad_()
        mean, var, weight, bias = (torch.randn(shape[1], device=device) for _ in range(4))
        before = mean.clone(), var.clone()
        count = torch.tensor(5, device=device)
        leaves = x, weight.requires_grad_(), bias.requires_grad_()
        y = batch_norm_act(
            *leaves, mean, var, training=training, momentum=None, groups=groups, num_batches_tracked=count
        )
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert y is not x
        for grad, leaf in zip(torch.autograd.grad(y.sum(), leaves), leaves, strict=True):
            assert torch.equal(grad, torch.zeros_like(leaf))
        assert torch.equal(mean, before[0])
        assert torch.equal(var, before[1])
        assert count == (5 + groups if training else 5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_is_as_accurate_as_separate_eager_layers(shape, device):
    x, weight, bias = inputs(shape, device=device)
    exact = formula(x, weight, bias, 0.2)
    separate = nn.functional.leaky_relu(nn.functional.batch_norm(x, None, None, weight, bias, True, 0, EPS), 0.2)
    error = (batch_norm_act(x, weight, bias, negative_slope=0.2) - exact).abs().max()
    assert error <= 2 * (separate - exact).abs().max() + 1e-7


MANY = covering(
    {
        "shape": [(64, 4, 64, 64), (16, 96, 24, 24), (2, 320, 4, 12, 12)],
        "layout": list(LAYOUTS),
        "slope": list(SLOPES.values()),
    },
    lambda row: True,
)


@pytest.mark.parametrize(MANY[0].keys(), [row.values() for row in MANY], ids=str)
def test_float32_keeps_its_digits_over_many_values(shape, layout, slope, device):
    """Compare output, gradients and statistics with separate eager layers on a contiguous tensor."""
    x, weight, bias = inputs(shape, device=device)
    exact = [v.double().requires_grad_() for v in (x, weight, bias)]
    expected = formula(*exact, slope)
    upstream = torch.randn(shape, device=device)
    # The gradient is 0 where rounding may decide on which side of the activation a value falls.
    upstream[formula(x, weight, bias, 1.0).abs() < 1e-4] = 0
    expected_grads = torch.autograd.grad(expected, exact, upstream.double())
    dims = [d for d in range(x.dim()) if d != 1]
    expected_statistics = (x.double().mean(dims), x.double().var(dims))

    def errors(x, operation):
        values = [x.requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        statistics = [torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)]
        y = operation(*values, *statistics)
        pairs = zip(
            (y, *torch.autograd.grad(y, values, upstream), *statistics),
            (expected, *expected_grads, *expected_statistics),
            strict=True,
        )
        return [((got.double() - wanted).norm() / wanted.norm()).item() for got, wanted in pairs]

    def separate(x, weight, bias, mean, var):
        y = nn.functional.batch_norm(x, mean, var, weight, bias, True, 1.0, EPS)
        return nn.functional.leaky_relu(y, slope)

    def together(x, weight, bias, mean, var):
        return batch_norm_act(x, weight, bias, mean, var, momentum=1.0, eps=EPS, negative_slope=slope)

    own, got = errors(x.clone(), separate), errors(LAYOUTS[layout](x.clone()).detach(), together)
    for name, error, bound in zip(("y", "dx", "dweight", "dbias", "mean", "var"), got, own, strict=True):
        assert error <= 2 * bound + 1e-7, name


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_mean_far_from_zero_keeps_the_variance(offset, device):
    x = channels_last(torch.randn(8, 6, 32, 32, device=device)) + offset
    var = torch.ones(6, device=device)
    y = batch_norm_act(x, None, None, torch.zeros(6, device=device), var, momentum=1.0, negative_slope=1.0)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3)), rtol=1e-6, atol=0)
    exact = formula(x, torch.ones(6, device=device), torch.zeros(6, device=device), 1.0)
    separate = nn.functional.batch_norm(x.contiguous(), None, None, training=True, eps=EPS)
    assert (y - exact).abs().max() <= 2 * (separate - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(dtype, device):
    x, weight, bias = inputs((8, 6, 16, 16), device=device)
    x = channels_last(x.to(dtype)).requires_grad_()
    y = batch_norm_act(x, weight, bias, negative_slope=0.2)
    assert y.dtype == dtype
    torch.testing.assert_close(y, formula(x, weight, bias, 0.2).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    y.sum().backward()
    assert x.grad.dtype == dtype


def test_no_scale_and_no_shift_have_gradients_in_any_layout(device):
    x = torch.randn(4, 3, 5, 5, device=device, dtype=torch.float64)
    upstream = torch.randn_like(x)
    grads = []
    for layout in LAYOUTS.values():
        leaf = layout(x.clone()).requires_grad_()
        batch_norm_act(leaf, None, None).backward(upstream)
        grads.append(leaf.grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 2, 4, 5)], ids=["2d", "3d"])
def test_the_memory_format_is_kept(shape, device):
    x, weight, bias = inputs(shape, device=device)
    for layout, groups in product((LAYOUTS["contiguous"], LAYOUTS["channels-last"]), (1, 2)):
        laid_out = layout(x)
        assert batch_norm_act(laid_out, weight, bias, groups=groups).stride() == laid_out.stride()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_equal_separate_calls(groups, device):
    x, weight, bias = inputs((8, 3, 5, 5), torch.float64, device)
    together = [torch.zeros(3, device=device).double(), torch.ones(3, device=device).double()]
    apart = [statistic.clone() for statistic in together]
    x_together, x_apart = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = batch_norm_act(x_together, weight, bias, *together, groups=groups)
    expected = torch.cat([batch_norm_act(part, weight, bias, *apart) for part in x_apart.chunk(groups)])
    upstream = torch.randn_like(x)
    # On a CPU "auto" takes kernels for groups and PyTorch's operations for a small batch.
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    got.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x_together.grad, x_apart.grad, rtol=1e-12, atol=1e-12)


def test_running_statistics_are_those_of_nn_batch_norm(device):
    x, weight, bias = inputs((6, 4, 3), device=device)
    module = nn.BatchNorm1d(4, eps=EPS, momentum=MOMENTUM).to(device)
    mean, var = module.running_mean.clone(), module.running_var.clone()
    module(x)
    batch_norm_act(x, weight, bias, mean, var, momentum=MOMENTUM, eps=EPS)
    tolerance = 0 if device.type == "cpu" else 1e-6
    torch.testing.assert_close(mean, module.running_mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(var, module.running_var, rtol=tolerance, atol=tolerance)


def test_evaluation_uses_and_keeps_the_running_statistics(device):
    x, weight, bias = inputs((3, 2, 4), torch.float64, device)
    mean, var = torch.tensor([1.0, -2.0], device=device).double(), torch.tensor([4.0, 0.25], device=device).double()
    got = batch_norm_act(x, weight, bias, mean.clone(), var.clone(), training=False)
    y = (x - mean[:, None]) / (var[:, None] + EPS).sqrt() * weight[:, None] + bias[:, None]
    torch.testing.assert_close(got, y.clamp(min=0), rtol=1e-12, atol=1e-12)
    kept_mean, kept_var = mean.clone(), var.clone()
    batch_norm_act(x, weight, bias, kept_mean, kept_var, training=False)
    assert torch.equal(kept_mean, mean)
    assert torch.equal(kept_var, var)


def test_no_scale_and_no_shift_are_one_and_zero(device):
    x, _, _ = inputs((4, 3, 5), torch.float64, device)
    y = batch_norm_act(x, None, None)
    torch.testing.assert_close(y, batch_norm_act(x, x.new_ones(3), x.new_zeros(3)), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(4)}, "needs \\[N, C, \\*\\]"),
        ({"x": torch.ones(4, 3, dtype=torch.int64)}, "x must be float64, .* not torch.int64"),
        ({"x": torch.ones(4, 3, dtype=torch.complex64)}, "x must be float64, .* not torch.complex64"),
        ({"x": torch.ones(4, 3).to(torch.float8_e4m3fn)}, "x must be float64, .* not torch.float8_e4m3fn"),
        ({"x": torch.ones(4, 3).to_sparse()}, "x must be a dense tensor, not torch.sparse_coo"),
        ({"x": torch.ones(4, 3, device="meta")}, "weight is on cpu, but x is on meta"),
        ({"weight": torch.ones(3).to_sparse()}, "weight must be a dense tensor"),
        ({"negative_slope": float("inf")}, "negative_slope must be finite and is inf"),
        ({"negative_slope": float("nan")}, "negative_slope must be finite and is nan"),
        ({"x": torch.ones(1, 3)}, "more than one value per channel"),
        ({"x": torch.ones(2, 3), "groups": 2}, "more than one value per channel and group"),
        ({"weight": torch.ones(2)}, "weight has the shape \\[2\\], but x has 3 channels"),
        ({"groups": 3}, "groups must divide the batch"),
        ({"groups": 0}, "groups must divide the batch"),
        ({"training": False}, "needs running_mean and running_var"),
        ({"training": False, "running_mean": torch.ones(3)}, "pass both running_mean and running_var"),
        ({"running_mean": torch.ones(2), "running_var": torch.ones(2)}, "running_mean has the shape"),
        ({"bias": torch.ones(3, dtype=torch.int64)}, "bias must be float64, .* not torch.int64"),
        ({"bias": torch.ones(3, device="meta")}, "bias is on meta, but x is on cpu"),
        ({"num_batches_tracked": torch.tensor(0.0)}, "must be one int64 on cpu, and is \\[\\] torch.float32 on cpu"),
        ({"num_batches_tracked": torch.zeros((), dtype=torch.int64, device="meta")}, "torch.int64 on meta"),
        (
            {"running_mean": torch.ones(3), "running_var": torch.ones(3), "momentum": None},
            "needs num_batches_tracked",
        ),
        ({"backend": "cudnn"}, "no backend 'cudnn': choose auto"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"x": torch.ones(4, 3), "weight": torch.ones(3), "bias": torch.zeros(3)} | changes
    with pytest.raises(ValueError, match=message):
        batch_norm_act(**arguments)


@pytest.mark.parametrize("value", [None, np.ones((4, 3)), [1.0], nn.ReLU()], ids=lambda value: type(value).__name__)
def test_what_is_no_tensor_is_named(value):
    with pytest.raises(TypeError, match=f"x must be a tensor, not {type(value).__name__}"):
        batch_norm_act(value, None, None)
    if value is not None:
        with pytest.raises(TypeError, match="running_mean must be a tensor"):
            batch_norm_act(torch.ones(4, 3), None, None, value, value)
        with pytest.raises(TypeError, match="num_batches_tracked must be a tensor"):
            batch_norm_act(torch.ones(4, 3), None, None, num_batches_tracked=value)


def test_shapes_are_known_without_values():
    """The tensors are on the meta device."""
    with torch.device("meta"):
        x, statistics, count = (
            torch.ones(4, 3, 5),
            [torch.ones(3) for _ in range(4)],
            torch.zeros((), dtype=torch.int64),
        )
    assert batch_norm_act(x, *statistics, num_batches_tracked=count).shape == x.shape
    with pytest.raises(ValueError, match="has no value on the meta device"):
        batch_norm_act(x, *statistics, num_batches_tracked=count, momentum=None)


@pytest.mark.parametrize(("hidden", "reason"), [("gpu", "PyTorch finds no GPU"), ("triton", "Triton is not installed")])
def test_a_backend_asked_for_by_name_never_falls_back(hidden, reason):
    """The process sees no GPU and, in one case, no Triton."""
    program = (
        "import importlib.util, sys, torch\n"
        "find = importlib.util.find_spec\n"
        "if sys.argv[1] == 'triton':\n"
        "    importlib.util.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "from tgan_fast.ops import BackendError, backends, batch_norm_act\n"
        "print(backends()['batch_norm_act'])\n"
        "batch_norm_act(torch.ones(4, 3), None, None)\n"
        "try:\n"
        "    batch_norm_act(torch.ones(4, 3), None, None, backend='triton')\n"
        "except BackendError as error:\n"
        "    print(error)\n"
    )
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    command = [sys.executable, "-c", program, hidden]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    states, error = result.stdout.splitlines()
    assert reason in states
    assert "'torch': 'available'" in states
    assert error.startswith("batch_norm_act: backend 'triton' cannot be used: ")
    assert reason in error


def test_the_kernels_on_a_gpu_take_no_tensor_of_the_cpu():
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        pytest.skip("without a GPU they run in Triton's interpreter, on the CPU")
    with pytest.raises(BackendError, match="it runs on a GPU, and x is on cpu"):
        batch_norm_act(torch.ones(4, 3), None, None, backend="triton")


def large_inputs(*dtypes):
    """Return enough values for "auto" to choose the CPU kernels, and the vectors of an evaluation."""
    x_dtype, dtype = dtypes or (torch.float32, torch.float32)
    x = torch.randn(64, 16, 16, 17).to(x_dtype)
    return x, *((torch.rand(16) + 0.5).to(dtype) for _ in range(4))


def test_what_reads_no_memory_takes_pytorchs_operations():
    """Traces, tangents and lazily negated tensors are not in the memory that the CPU kernels read."""
    x, *vectors = large_inputs()

    def evaluate(x):
        return batch_norm_act(x, *vectors, training=False)

    traced = torch.jit.trace(evaluate, x, check_trace=False)
    other = torch.randn_like(x)
    torch.testing.assert_close(traced(other), evaluate(other), rtol=1e-5, atol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = evaluate(torch.autograd.forward_ad.make_dual(x, other))
        assert torch.autograd.forward_ad.unpack_dual(dual).tangent is not None
    torch.testing.assert_close(evaluate(torch._neg_view(x)), evaluate(-x), rtol=1e-5, atol=1e-6)


def test_batched_gradients_are_refused():
    x, weight, bias, *_ = large_inputs()
    y = batch_norm_act(x.requires_grad_(), weight, bias)
    with pytest.raises(RuntimeError, match="one gradient at a time: use native_ops"):
        torch.autograd.grad(y, x, torch.randn(2, *x.shape), is_grads_batched=True)


@pytest.mark.parametrize(
    "dtypes", [(torch.float64, torch.float32), (torch.float32, torch.float64), (torch.bfloat16, torch.float64)], ids=str
)
def test_dtypes_may_differ_whatever_the_size(dtypes):
    if backends()["batch_norm_act"]["cpu"] != "available":
        pytest.skip("PyTorch's own operations take fewer dtypes")
    x, *vectors = large_inputs(*dtypes)
    y = batch_norm_act(x, *vectors, training=False)
    few = batch_norm_act(x[:2], *vectors, training=False)
    assert y.dtype == few.dtype == x.dtype
    torch.testing.assert_close(few, y[:2])
