"""Tests that only the C++ kernels of batch norm need: instruction sets, threads, float64, strides and activations."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from support.batch_norm import LAYOUTS, VIEWS, parameters, running, values
from support.pairwise import covering

from tgan_fast.ops import batch_norm_act
from tgan_fast.ops.batch_norm import cpu
from tgan_fast.ops.cpu_extension import WHY_NOT_LOADED, extension

pytestmark = pytest.mark.skipif(WHY_NOT_LOADED is not None, reason=str(WHY_NOT_LOADED))
EPS = 1e-3
SETS = [] if WHY_NOT_LOADED else extension().instruction_sets()
# Each arrangement of csrc/cpu/slices.h, with a tail that fills no tile and enough values for eight threads.
ARRANGEMENTS = {
    "columns": ("channels-last", (64, 13, 18, 18)),
    "wide columns": ("channels-last", (40, 100, 8, 8)),
    "samples": ("channels-first", (2000, 13, 3, 3)),
    "runs": ("channels-first", (6, 9, 81, 61)),
    "runs in slices": ("channels-first", (4, 3, 151, 151)),
}
ACTIVATIONS = ("leaky_relu", "relu6", "silu", "gelu_tanh", "hardswish")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
arrangement = pytest.mark.parametrize(("layout", "shape"), ARRANGEMENTS.values(), ids=ARRANGEMENTS)


@pytest.fixture
def use_instruction_set():
    yield extension().use_instruction_set
    extension().use_instruction_set(SETS[0])


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(x, upstream, weight, bias, residual=None, *, slope=0.2, groups=2, backend="cpu", **options):
    """Return y, dx, dweight, dbias and the running statistics of a step, and dresidual if there is a residual."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias, residual) if tensor is not None]
    # Not zero, since errors are relative.
    statistics = [s.to(weight.dtype) + 0.5 for s in running(x.shape[1], x.device)]
    options = {"eps": EPS, "negative_slope": slope, "groups": groups, "backend": backend, **options}
    y = batch_norm_act(*leaves[:3], *statistics, residual=leaves[3] if residual is not None else None, **options)
    dx, dweight, dbias, *dresidual = torch.autograd.grad(y, leaves, upstream.to(y.dtype))
    return y.detach(), dx, dweight, dbias, *statistics, *dresidual


def inputs(layout, shape, dtype=torch.float32):
    x, upstream = (LAYOUTS[layout](values(shape, torch.float32, "cpu")).to(dtype) for _ in range(2))
    return x, upstream, *parameters(shape[1], "cpu")


def assert_near(got, exact, upstream, tolerance):
    """Check errors relative to the norm; rounding the result may add to them."""
    names = ("y", "dx", "dweight", "dbias", "mean", "var", "dresidual")[: len(exact)]
    for name, mine, truth in zip(names, got, exact, strict=True):
        # A gradient can be the small difference of far larger numbers.
        scale = max(truth.norm(), upstream.norm()) if name in ("dx", "dweight", "dbias") else truth.norm()
        error, rounding = ((t.double() - truth).norm() / scale for t in (mine, truth.to(mine.dtype)))
        # dx is computed from the rounded gradient of the residual.
        roundings = 3 if name == "dx" and "dresidual" in names else 1.01
        assert error <= roundings * rounding + tolerance, (name, error)


@pytest.mark.parametrize("name", SETS)
@arrangement
def test_every_instruction_set_is_accurate(name, layout, shape, use_instruction_set):
    use_instruction_set(name)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        arguments = inputs(layout, shape, dtype)
        exact = everything(*(tensor.double() for tensor in arguments), backend="torch")
        assert_near(everything(*arguments), exact, arguments[1], 1e-7)


@pytest.mark.parametrize("name", SETS)
def test_float64_keeps_its_digits(name, use_instruction_set):
    use_instruction_set(name)
    shapes = [shape for _, shape in ARRANGEMENTS.values()] + [(2, 5), (33, 100), (3, 1, 7), (4, 6, 5, 3), (6, 20, 1, 1)]
    for layout, shape in product(LAYOUTS, shapes):
        groups = 1 if shape[0] < 4 or shape[0] % 2 else 2
        arguments = [tensor.double() for tensor in inputs(layout, shape)]
        exact = everything(*arguments, groups=groups, backend="torch")
        assert_near(everything(*arguments, groups=groups), exact, arguments[1], 4e-15)


@pytest.mark.parametrize("with_residual", [False, True])
@arrangement
def test_every_number_of_threads_gives_the_same_bits(layout, shape, with_residual, set_threads):
    arguments = inputs(layout, shape)
    options = {"residual": values(shape, torch.float32, "cpu"), "activation": "silu", "slope": 0.0}
    options = options if with_residual else {}
    set_threads(1)
    expected = everything(*arguments, **options)
    for threads in (2, 3, 7):
        set_threads(threads)
        got = everything(*arguments, **options)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), threads


def every_rounding(dtype):
    """Return float32 numbers about all ties of a half-precision dtype, and their surroundings."""
    bits = torch.arange(torch.tensor(torch.inf, dtype=dtype).view(torch.int16).item() + 1, dtype=torch.int16)
    numbers = bits.view(dtype).double()
    numbers[-1] = 2 * numbers[-2] - numbers[-3]  # the number that infinity stands for in the last tie
    ties = ((numbers[1:] + numbers[:-1]) / 2).float()
    up, down = (torch.nextafter(ties, torch.tensor(end)) for end in (torch.inf, -torch.inf))
    positive = torch.cat([numbers[:-1].float(), ties, up, down, torch.tensor([3.4e38, torch.nan])])
    return torch.cat([positive, -positive])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_as_pytorch_rounds_it(dtype, name, use_instruction_set):
    """An evaluation of ones returns the rounded weights; an evaluation without weights returns its input."""
    use_instruction_set(name)
    weight = every_rounding(dtype)
    options = {"training": False, "eps": 0.0, "negative_slope": 1.0, "backend": "cpu"}
    y = batch_norm_act(torch.ones(1, len(weight), dtype=dtype), weight, None, *running(len(weight), "cpu"), **options)
    torch.testing.assert_close(y[0], weight.to(dtype), rtol=0, atol=0, equal_nan=True)
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None]
    y = batch_norm_act(x, None, None, *running(x.shape[1], "cpu"), **options)
    torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)


@arrangement
def test_one_value_not_a_number_or_infinite_stays_in_its_channel(layout, shape):
    x, upstream, weight, bias = inputs(layout, shape)
    expected = everything(x, upstream, weight, bias)
    for value, slope in product((torch.nan, torch.inf, -torch.inf), (0.0, 0.2)):
        changed = x.clone()
        changed[-1, 1, -1, -1] = value  # in a tail
        y, dx, dweight, *_ = everything(changed, upstream, weight, bias, slope=slope)
        half = len(x) // 2
        assert y[half:, 1].isnan().all()
        assert y[:half].isfinite().all()
        assert y[:, 2:].isfinite().all()
        assert dx[half:, 1].isnan().all() or slope == 0
        assert dweight[1].isnan() or slope == 0
        if slope:
            assert torch.equal(y[:half], expected[0][:half])
            assert torch.equal(dx[:, 2:], expected[1][:, 2:])


def test_without_gradients_the_output_is_the_same():
    x, upstream, weight, bias = inputs("channels-last", (64, 13, 18, 18))
    expected, *_ = everything(x, upstream, weight, bias)
    with torch.no_grad():
        options = {"eps": EPS, "negative_slope": 0.2, "groups": 2, "backend": "cpu"}
        y = batch_norm_act(x, weight.requires_grad_(), bias, **options)
    assert not y.requires_grad
    assert torch.equal(y, expected)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (4, 19, 23, 21)], ids=str)
@pytest.mark.parametrize("view", ["every-second-sample", "inner-channels", "inner-channels-last"])
def test_memory_outside_of_the_outputs_is_not_written(view, shape, with_residual, monkeypatch):
    """The outputs are views of larger tensors that are NaN elsewhere."""
    outputs = []

    def empty_output(x, geometry):
        output = VIEWS[view](torch.full_like(x, torch.nan))
        if not x.is_meta:  # a meta tensor has only strides
            outputs.append(output)
        return output

    layout = "channels-last" if view == "inner-channels-last" else "channels-first"
    arguments = inputs(layout, shape)
    if with_residual:
        arguments = *arguments, values(shape, torch.float32, "cpu")
    exact = everything(*(tensor.double() for tensor in arguments), backend="torch")
    monkeypatch.setattr(cpu, "empty_output", empty_output)
    # The cached layouts have the strides of ordinary outputs before the test, and of these outputs after it.
    monkeypatch.setattr(cpu, "_layout", cpu._layout.__wrapped__)
    assert_near(everything(*arguments), exact, arguments[1], 2e-7 if with_residual else 1e-7)
    assert len(outputs) == 2 + with_residual
    for output in outputs:
        whole = output._base if output._base is not None else output
        assert whole.isnan().sum() == whole.numel() - output.numel() > 0


def test_evaluation_is_accurate():
    x, upstream, weight, bias = inputs("channels-first", (6, 9, 81, 61))
    mean, var = torch.randn(9), torch.rand(9) + 0.1
    grads = []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, "torch")):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, weight, bias)]
        options = {"training": False, "eps": EPS, "negative_slope": 0.2, "backend": backend}
        y = batch_norm_act(*leaves, mean.to(dtype), var.to(dtype), **options)
        grads.append((y.detach(), *torch.autograd.grad(y, leaves, upstream.to(dtype))))
    assert_near([*grads[0], mean, var], [*grads[1], mean.double(), var.double()], upstream, 1e-7)


RESIDUALS = {"none": None, **LAYOUTS, **VIEWS}
CASES = covering(
    {
        "activation": ACTIVATIONS,
        "residual": list(RESIDUALS),
        "layout": list(LAYOUTS),
        "dtype": DTYPES,
        "shape": [(34, 5), (6, 13, 5, 3), (6, 13, 9, 7), (4, 19, 23, 21)],
        "groups": (1, 2),
        "training": (True, False),
        "set": SETS,
    },
    lambda row: row["residual"] != "every-second-pixel" or len(row["shape"]) > 2,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_every_activation_and_residual_is_accurate(case, use_instruction_set):
    use_instruction_set(case["set"])
    shape, dtype = case["shape"], case["dtype"]
    arguments = inputs(case["layout"], shape, dtype)
    if dtype == torch.float64:
        arguments = [tensor.double() for tensor in arguments]
    if case["residual"] != "none":
        view = RESIDUALS[case["residual"]]
        arguments = *arguments, view(values(shape, torch.float32, "cpu").to(dtype))
    options = {name: case[name] for name in ("activation", "groups", "training")}
    options["slope"] = 0.2 if case["activation"] == "leaky_relu" else 0.0
    exact = everything(*(tensor.double() for tensor in arguments), backend="torch", **options)
    tolerance = 4e-15 if dtype == torch.float64 else 2e-7
    assert_near(everything(*arguments, **options), exact, arguments[1], tolerance)


def activate(v, activation, slope=0.0):
    """Return the activation of each value, and its derivative."""
    v = v[None].requires_grad_()
    options = {"training": False, "eps": 0.0, "negative_slope": slope, "activation": activation, "backend": "cpu"}
    statistics = [s.to(v.dtype) for s in running(v.shape[1], "cpu")]
    y = batch_norm_act(torch.zeros_like(v), None, None, *statistics, residual=v, **options)
    return y[0].detach(), torch.autograd.grad(y.sum(), v)[0][0]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("dtype", "lowest"), [(torch.float32, -110), (torch.float64, -760)], ids=str)
def test_silu_is_accurate_where_its_exponential_is_normal_subnormal_and_zero(dtype, lowest, name, use_instruction_set):
    use_instruction_set(name)
    v = torch.linspace(lowest, -lowest, 10**5, dtype=torch.float64).to(dtype)
    y, slope = activate(v, "silu")
    small = v.double().abs().neg().exp()
    sigmoid = torch.where(v < 0, small / (1 + small), 1 / (1 + small))
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps
    assert ((y - v * sigmoid).abs() <= 3 * limits.eps * (v * sigmoid).abs() + v.abs() * smallest).all()
    # The derivative is 0 near −1.28.
    assert ((slope - sigmoid - v * small / (1 + small) ** 2).abs() <= 3 * limits.eps).all()
    assert y[(v < 0) & (y != 0)].abs().min() < limits.smallest_normal
    assert y[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_are_pytorchs_at_kinks_and_infinite_values(dtype):
    kinks, far = (torch.tensor(numbers, dtype=dtype) for numbers in ([-3, 0, 3, 6], [1e30, torch.inf]))
    v = torch.cat([kinks, kinks.nextafter(far[1]), kinks.nextafter(-far[1]), far, -far])
    aten, ones = torch.ops.aten, torch.ones_like(v)
    limits = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 0, "equal_nan": True}
    for activation, slope, function, derivative in (
        ("leaky_relu", 0.0, F.relu, aten.threshold_backward(ones, v, 0)),
        ("leaky_relu", 0.2, lambda v: F.leaky_relu(v, 0.2), aten.leaky_relu_backward(ones, v, 0.2, False)),
        ("relu6", 0.0, F.relu6, aten.hardtanh_backward(ones, v, 0.0, 6.0)),
        ("hardswish", 0.0, F.hardswish, aten.hardswish_backward(ones, v)),
    ):
        y, slopes = activate(v.clone(), activation, slope)
        torch.testing.assert_close(y, function(v), **limits)
        torch.testing.assert_close(slopes, derivative, **limits)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_large_number_is_not_made_nan_and_nan_stays_nan(dtype, activation):
    v = torch.tensor([1e4, 1e10, 1e19, 1e30, torch.finfo(dtype).max], dtype=dtype)
    for sign in (1, -1):
        y, slope = activate(sign * v, activation)
        inside = float(sign > 0)
        expected = v.clamp(max=6) if activation == "relu6" else v
        assert torch.equal(y, inside * expected)
        assert torch.equal(slope, v.new_full(v.shape, inside if activation != "relu6" else 0))
    assert activate(v * torch.nan, activation)[0].isnan().all()
