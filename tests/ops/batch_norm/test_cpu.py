"""Tests that only the C++ kernels of batch norm need: instruction sets, threads, float64, and unusual strides."""

from itertools import product

import pytest
import torch
from support.batch_norm import LAYOUTS, VIEWS, parameters, running, values

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


def everything(x, upstream, weight, bias, *, slope=0.2, groups=2, backend="cpu"):
    """Return y, dx, dweight, dbias and the running statistics of a step."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    statistics = [s.to(weight.dtype) for s in running(x.shape[1], x.device)]
    options = {"eps": EPS, "negative_slope": slope, "groups": groups, "backend": backend}
    y = batch_norm_act(*leaves, *statistics, **options)
    return y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype)), *statistics


def inputs(layout, shape, dtype=torch.float32):
    x, upstream = (LAYOUTS[layout](values(shape, torch.float32, "cpu")).to(dtype) for _ in range(2))
    return x, upstream, *parameters(shape[1], "cpu")


def assert_near(got, exact, upstream, tolerance):
    """Check errors relative to the norm; rounding the result may add to them."""
    for name, mine, truth in zip(("y", "dx", "dweight", "dbias", "mean", "var"), got, exact, strict=True):
        # A gradient can be the small difference of far larger numbers.
        scale = max(truth.norm(), upstream.norm()) if name in ("dx", "dweight", "dbias") else truth.norm()
        error, rounding = ((t.double() - truth).norm() / scale for t in (mine, truth.to(mine.dtype)))
        assert error <= 1.01 * rounding + tolerance, (name, error)


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


@arrangement
def test_every_number_of_threads_gives_the_same_bits(layout, shape, set_threads):
    arguments = inputs(layout, shape)
    set_threads(1)
    expected = everything(*arguments)
    for threads in (2, 3, 7):
        set_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(everything(*arguments), expected, strict=True)), threads


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


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (4, 19, 23, 21)], ids=str)
@pytest.mark.parametrize("view", ["every-second-sample", "inner-channels", "inner-channels-last"])
def test_memory_outside_of_the_outputs_is_not_written(view, shape, monkeypatch):
    """The outputs are views of larger tensors that are NaN elsewhere."""
    outputs = []

    def empty_output(x, geometry):
        output = VIEWS[view](torch.full_like(x, torch.nan))
        if not x.is_meta:  # a meta tensor has only strides
            outputs.append(output)
        return output

    layout = "channels-last" if view == "inner-channels-last" else "channels-first"
    arguments = inputs(layout, shape)
    exact = everything(*(tensor.double() for tensor in arguments), backend="torch")
    monkeypatch.setattr(cpu, "empty_output", empty_output)
    # The cached layouts have the strides of ordinary outputs before the test, and of these outputs after it.
    monkeypatch.setattr(cpu, "_layout", cpu._layout.__wrapped__)
    assert_near(everything(*arguments), exact, arguments[1], 1e-7)
    assert len(outputs) == 2
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
