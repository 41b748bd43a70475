"""The kernels of batch norm, in Triton and in C++, against a float64 formula.

The Triton kernels run natively on a GPU and in Triton's interpreter without one.
"""

from functools import partial
from itertools import product
from typing import get_args

import pytest
import torch
from support.batch_norm import EPS, LAYOUTS, VIEWS, every_second_pixel, parameters, running, values
from support.pairwise import covering
from torch import nn
from torch.utils.checkpoint import checkpoint

from tgan_fast.choices import ActivationName
from tgan_fast.ops import batch_norm_act
from tgan_fast.ops.batch_norm.activation import Activation
from tgan_fast.ops.batch_norm.autograd import launchers
from tgan_fast.ops.batch_norm.geometry import to_walkable
from tgan_fast.ops.cpu_extension import WHY_NOT_LOADED
from tgan_fast.ops.dispatch import TRITON_IS_INSTALLED

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

SMALL = {
    "two-rows": (2, 5),
    "one-channel": (3, 1, 7),
    "odd-columns": (33, 100),
    "1d": (4, 6, 5),
    "2d": (4, 6, 5, 3),
    "3d": (2, 3, 2, 4, 5),
    "one-sample": (1, 4, 3, 3, 3),
    "one-pixel": (6, 20, 1, 1),
}
LARGE = {
    "prime-signal": (1, 1, 10007),
    "several-blocks": (300, 40, 2, 2),
    "odd-channels": (6, 7, 32, 24),
    "few-channels": (2, 3, 2, 40, 50),
    "many-rows": (4500, 5),
}

ACTIVATIONS = Activation("leaky_relu", 0.2), *(Activation(name) for name in get_args(ActivationName))
FUNCTIONS = {
    "relu6": nn.functional.relu6,
    "silu": nn.functional.silu,
    "gelu_tanh": partial(nn.functional.gelu, approximate="tanh"),
    "hardswish": nn.functional.hardswish,
}
KINKS = -3.0, 0.0, 3.0, 6.0  # of any activation


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu), "cpu"])
def kernels(request):
    """Return the backend, and the device that it runs on."""
    if request.param == "cpu":
        if WHY_NOT_LOADED:
            pytest.skip(WHY_NOT_LOADED)
        return "cpu", torch.device("cpu")
    if not TRITON_IS_INSTALLED:
        pytest.skip("needs Triton")
    if request.param == "interpreter" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter stands in only where there is no GPU")
    return "triton", torch.device("cuda" if request.param == "gpu" else "cpu")


@pytest.fixture
def backend(kernels):
    return kernels[0]


@pytest.fixture
def device(kernels):
    return kernels[1]


@pytest.fixture(autouse=True)
def _nan_in_new_memory():
    """Fill new memory with NaN, so that an unwritten element shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    assert torch.ones(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def separate_layers(x, weight, bias, mean, var, *, slope, groups=1, training=True, momentum=0.1):
    """Return what eager PyTorch computes; in float64 this is the reference."""
    parts = [
        nn.functional.leaky_relu(
            nn.functional.batch_norm(part, mean, var, weight, bias, training, momentum, EPS), slope
        )
        for part in x.chunk(groups)
    ]
    return torch.cat(parts)


def results(operation, tensors, statistics, upstream):
    """Return output, gradients and running statistics."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    y = operation(*tensors, *statistics)
    return y, *torch.autograd.grad(y, tensors, upstream.to(y.dtype)), *statistics


def tolerance_of_triton(x):
    """Return the allowed error of y and dx; Triton's interpreter rounds bfloat16 toward zero."""
    return {torch.float32: 2e-7, torch.float16: 1e-4, torch.bfloat16: 1e-3 if x.is_cuda else 2**-7}[x.dtype]


def sum_tolerance_of_triton(x):
    """Return the allowed error of sums; the interpreter adds float32 sequentially, eager CPU layers add float64."""
    return 2e-7 if x.is_cuda else 1e-6


def assert_accurate(backend, x, laid_out, *, slope=0.2, groups=1, training=True, what=""):
    """Check against float64 layers; `laid_out` has the values of the dense x, and `what` begins a failure's message.

    Errors of the C++ kernels may be those of rounding the result, plus one or two float32 roundings. Errors of the
    Triton kernels may be twice those of separate eager layers in the same dtype, plus a tolerance, because a few values
    may round well by chance.
    """
    weight, bias = parameters(x.shape[1], x.device)
    statistics = running(x.shape[1], x.device)
    options = {"slope": slope, "groups": groups, "training": training}

    def eager(*tensors):
        return separate_layers(*tensors, **options)

    def fused(*tensors):
        return batch_norm_act(
            *tensors, training=training, eps=EPS, negative_slope=slope, groups=groups, backend=backend
        )

    wide = [tensor.double() for tensor in (x, weight, bias, *statistics)]
    v = separate_layers(*wide[:3], *(s.clone() for s in wide[3:]), **options | {"slope": 1.0})
    # The gradient is 0 where rounding may decide on which side of the activation a value falls.
    upstream = torch.randn(x.shape, device=x.device).to(x.dtype) * (v.abs() > 1e-4)
    exact = results(eager, wide[:3], wide[3:], upstream.double())
    expected = results(eager, (x, weight, bias), [s.clone() for s in statistics], upstream)
    got = results(fused, (laid_out, weight, bias), [s.clone() for s in statistics], upstream)
    assert got[0].dtype == x.dtype
    assert got[0].shape == x.shape
    assert got[1].dtype == x.dtype
    names = "y", "dx", "dweight", "dbias", "running_mean", "running_var"
    # Rounding the mean to float32 moves the values of a channel by this share of their standard deviation.
    channels = wide[0].movedim(1, 0).flatten(1)
    rounded_mean = 2**-24 * (channels.mean(1).abs() / channels.var(1, correction=0).clamp(min=EPS).sqrt()).max()
    for name, mine, theirs, truth in zip(names, got, expected, exact, strict=True):
        # A gradient can be the small difference of far larger numbers: dx with two values per channel, and sums.
        larger = upstream.norm() if backend == "cpu" and name in ("dx", "dweight", "dbias") else 1e-2 * upstream.norm()
        scale = torch.maximum(truth.norm(), larger)
        error, own, rounding = (
            ((t.double() - truth).norm() / scale).item() for t in (mine, theirs, truth.to(mine.dtype))
        )
        if backend == "cpu":
            bound = 1.01 * rounding + (1e-7 if name in ("y", "dx") else 4e-7)
        else:
            tolerance = tolerance_of_triton(x) + rounded_mean if name in ("y", "dx") else sum_tolerance_of_triton(x)
            bound = 2 * own + tolerance
        assert error <= bound, f"{what}{name}: {error:.1e}, eager {own:.1e}"


def rows_of(shapes, **others):
    """Return cases with every shape in both layouts, and with every pair of shapes, dtypes and other values."""
    values = {"shape": list(shapes.values()), "layout": list(LAYOUTS), "dtype": list(DTYPES), **others}
    rows = covering(values, lambda row: True)
    return pytest.mark.parametrize(rows[0].keys(), [row.values() for row in rows], ids=str)


def activated(v, activation):
    """Return what PyTorch's own function computes."""
    if activation.name == "leaky_relu":
        return nn.functional.leaky_relu(v, activation.negative_slope)
    return FUNCTIONS[activation.name](v)


def exact_results(x, residual, weight, bias, mean, var, upstream, activation, groups, training):
    """Return y, dx, dweight, dbias and g by PyTorch's separate layers in float64.

    Where rounding may decide on which side of a kink a value falls, `upstream` becomes 0.
    """
    x, weight, bias, mean, var = (t.detach().double() for t in (x, weight, bias, mean, var))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    norm = partial(nn.functional.batch_norm, weight=weight, bias=bias, training=training, eps=EPS)
    v = torch.cat([norm(part, mean.clone(), var.clone()) for part in x.chunk(groups)])
    if residual is not None:
        v = v + residual.detach().double()
    for kink in KINKS:
        upstream.mul_((v - kink).abs() > 1e-4)
    y = activated(v, activation)
    return y.detach(), *torch.autograd.grad(y, (*leaves, v), upstream.double())


def rstd_of(x, groups):
    """Return 1 / sqrt(var + EPS) of each value's channel and group."""
    dims = [d for d in range(x.dim()) if d != 1]
    parts = [part.var(dims, correction=0, keepdim=True).expand_as(part) for part in x.chunk(groups)]
    return (torch.cat(parts) + EPS).rsqrt()


def assert_within(got, exact, bound, what):
    """Check that no element differs by more than its bound."""
    assert torch.isfinite(got).all(), what
    excess = ((got.double() - exact).abs() - bound).max().item()
    assert excess <= 0, f"{what}: {excess:.1e} more than its bound"


# Each kind of kernel has its own shapes, because dtype and layout change what each of them does.
@rows_of(SMALL)
def test_training_of_small_tensors_is_accurate(shape, layout, dtype, backend, device):
    x = values(shape, dtype, device)
    assert_accurate(backend, x, LAYOUTS[layout](x))


@rows_of(LARGE)
def test_training_is_accurate(shape, layout, dtype, backend, device):
    x = values(shape, dtype, device)
    assert_accurate(backend, x, LAYOUTS[layout](x))


@rows_of({"2d": SMALL["2d"], "one-sample": SMALL["one-sample"], "several-tiles": (100, 5, 3, 9)})
def test_evaluation_is_accurate(shape, layout, dtype, backend, device):
    x = values(shape, dtype, device)
    assert_accurate(backend, x, LAYOUTS[layout](x), training=False)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "slopes"), [((4, 6, 5, 3), (0.0, 0.2, 1.0, -0.5, 3.0)), ((2, 3, 64, 64), (0.0, 1.0, -0.5))], ids=str
)
def test_every_slope(shape, slopes, layout, backend, device):
    x = values(shape, torch.float32, device)
    for slope in slopes:
        assert_accurate(backend, x, layout(x), slope=slope, what=f"slope {slope}, ")


@rows_of(
    {"small": (4, 6, 5, 3), "one-pixel": (6, 20, 1, 1), "large": (4, 7, 32, 24), "several-blocks": (300, 40, 2, 2)},
    activation=ACTIVATIONS,
    residual=["none", "alike", "other-layout"],
    statistics=["batch", "groups", "running"],
)
def test_every_activation_with_and_without_a_residual(
    shape, layout, dtype, activation, residual, statistics, backend, device
):
    """Results may be off by one unit of their dtype, because Triton's interpreter rounds bfloat16 toward zero."""
    x = LAYOUTS[layout](values(shape, dtype, device))
    weight, bias = parameters(shape[1], device)
    training, groups = statistics != "running", 2 if statistics == "groups" else 1
    mean_and_var = running(shape[1], device)
    added = None
    if residual != "none":
        others = dict(zip(LAYOUTS, reversed(LAYOUTS.values()), strict=True))
        added = (LAYOUTS if residual == "alike" else others)[layout]((torch.randn(shape, device=device) * 3).to(dtype))
    upstream = torch.randn(shape, device=device).to(dtype)
    y, dx, dweight, dbias, g = exact_results(
        x, added, weight, bias, *mean_and_var, upstream, activation, groups, training
    )
    leaves = [t.requires_grad_() for t in (x, weight, bias, added) if t is not None]
    got = batch_norm_act(
        x, weight, bias, *mean_and_var, training=training, eps=EPS, residual=added, groups=groups,
        activation=activation.name, negative_slope=activation.negative_slope, backend=backend,
    )  # fmt: skip
    gradients = torch.autograd.grad(got, leaves, upstream)
    assert {t.dtype for t in (got, gradients[0], gradients[-1 if residual != "none" else 0])} == {dtype}
    assert got.stride() == x.stride()

    eps, tiny = torch.finfo(dtype).eps, 4e-6
    x, weight = x.detach().double(), weight.detach().double()
    rstd = rstd_of(x, groups) if training else torch.ones_like(x)
    scale = rstd * weight.view(-1, *[1] * (x.dim() - 2))
    assert_within(got, y, eps * y.abs() + tiny, "y")
    # The large kernels read the rounded g.
    rounded = eps * (dx.abs() + (0 if added is None else scale * g.abs()))
    assert_within(gradients[0], dx, rounded + tiny * (1 + scale), "dx")
    if added is not None:
        assert_within(gradients[3], g, eps * g.abs() + tiny, "dresidual")
    terms, farthest = upstream.double().abs(), 2 * x.abs() * rstd
    terms, farthest = (t.movedim(1, 0).flatten(1) for t in (terms, farthest))
    assert_within(gradients[1], dweight, 1e-6 * terms.sum(1) * farthest.amax(1), "dweight")
    assert_within(gradients[2], dbias, 1e-6 * terms.sum(1), "dbias")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
def test_the_residual_may_come_in_another_layout(shape, training, backend, device):
    """Slices have NaN between their values."""
    weight, bias = parameters(shape[1], device)
    residual, upstream = torch.randn(2, *shape, device=device)

    def outcome(x, residual):
        x, residual = (t.detach().requires_grad_() for t in (x, residual))
        y = batch_norm_act(
            x, weight, bias, *running(shape[1], device), training=training, activation="silu", residual=residual,
            backend=backend,
        )  # fmt: skip
        return y, *torch.autograd.grad(y, (x, residual), upstream)

    for layout in LAYOUTS.values():
        x = layout(values(shape, torch.float32, device))
        expected = outcome(x, layout(residual))
        for name, view in {**LAYOUTS, **VIEWS}.items():
            torch.testing.assert_close(
                outcome(x, view(residual)),
                expected,
                rtol=1e-6,
                atol=1e-6,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        one = residual[:1, :, :1, :1]
        torch.testing.assert_close(
            outcome(x, one.expand(shape)), outcome(x, one.expand(shape).contiguous()), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize(
    ("shape", "training"), [((4, 6, 5, 3), True), ((2, 3, 64, 64), True), ((4, 6, 5, 3), False)], ids=str
)
def test_with_a_residual_only_wanted_gradients_are_computed_and_they_do_not_change(shape, training, backend, device):
    tensors = values(shape, torch.float32, device), *parameters(shape[1], device), torch.randn(shape, device=device)
    upstream = torch.randn(shape, device=device)

    def gradients(*wanted):
        x, weight, bias, residual = leaves = [t.clone().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
        statistics = running(shape[1], device)
        y = batch_norm_act(
            x, weight, bias, *statistics, training=training, activation="hardswish", residual=residual, backend=backend
        )
        y.backward(upstream)
        return [leaf.grad for leaf in leaves]

    every = gradients(True, True, True, True)
    for wanted in [w for w in product((True, False), repeat=4) if any(w)]:
        for some, whole, want in zip(gradients(*wanted), every, wanted, strict=True):
            assert (some is not None) == want, wanted
            assert some is None or torch.equal(some, whole), wanted


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != Activation("leaky_relu", 0.0)], ids=str)
@pytest.mark.parametrize(("pixels", "training"), [(6, True), (5000, True), (6, False)])
def test_kinks_and_numbers_of_any_size(pixels, training, activation, backend, device):
    """A weight of 0 leaves the bias, or the residual, as the input of the activation.

    The reference is PyTorch in float64, where no power of these numbers is infinite.
    """
    largest = torch.finfo(torch.float32).max
    inputs = [-7.0, -2.5, 2.5, 7.0, 1e30, -1e30, largest, -largest, torch.inf, -torch.inf, torch.nan, *KINKS]
    v = torch.tensor(inputs, device=device)
    exact = v.double().requires_grad_()
    y = activated(exact, activation)
    (slope,) = torch.autograd.grad(y.sum(), exact)
    shape, zeros = (2, len(v), pixels), torch.zeros_like(v)
    x, statistics = values(shape, torch.float32, device), running(len(v), device)
    operation = partial(
        batch_norm_act, training=training, activation=activation.name, negative_slope=activation.negative_slope,
        backend=backend,
    )  # fmt: skip
    bias, residual = v.clone().requires_grad_(), v[:, None].expand(shape).clone().requires_grad_()
    of_bias = operation(x, zeros, bias, *statistics)
    of_residual = operation(x, zeros, zeros, *statistics, residual=residual)
    gradients = torch.autograd.grad((of_bias.sum() / (2 * pixels), of_residual.sum()), (bias, residual))
    slopes = [gradients[0], *gradients[1].movedim(1, 2).flatten(0, 1)]
    rows = [*of_bias.movedim(1, 2).flatten(0, 1), *of_residual.movedim(1, 2).flatten(0, 1)]
    got, slopes = torch.stack(rows).double(), torch.stack(slopes).double()
    numbers = ~v.isnan()  # a NaN has no slope
    tolerances = {"rtol": 2e-6, "atol": 2e-7, "equal_nan": True}
    torch.testing.assert_close(got, y.detach().expand_as(got), **tolerances)
    torch.testing.assert_close(slopes[:, numbers], slope.expand_as(slopes)[:, numbers], **tolerances)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
def test_the_residual_may_be_the_input(shape, backend, device):
    x = values(shape, torch.float32, device)
    weight, bias = parameters(shape[1], device)
    upstream = torch.randn(shape, device=device)
    *_, dx, _, _, g = exact_results(
        x, x, weight, bias, *running(shape[1], device), upstream, Activation("silu"), 1, True
    )
    x.requires_grad_()
    batch_norm_act(x, weight, bias, activation="silu", residual=x, backend=backend).backward(upstream)
    torch.testing.assert_close(x.grad.double(), dx + g, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), [((6, 5), 2), ((6, 5, 3), 3), ((4, 3, 64, 64), 2)], ids=str)
def test_groups_are_as_accurate_as_separate_calls(shape, groups, layout, backend, device):
    scale = torch.arange(1, 1 + shape[0], device=device).view(-1, *[1] * (len(shape) - 1))
    x = values(shape, torch.float32, device) * scale
    assert_accurate(backend, x, layout(x), groups=groups)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
def test_views_give_what_their_values_give(shape, backend, device):
    for name, view in VIEWS.items():
        x = values(shape, torch.float32, device)
        assert not view(x).is_contiguous(), name
        assert_accurate(backend, x, view(x), what=f"{name}, ")


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
def test_only_views_that_skip_pixels_are_copied(shape, device):
    x = values(shape, torch.float32, device)
    for name, view in VIEWS.items():
        laid_out = view(x)
        assert (to_walkable(laid_out) is laid_out) == (name != "every-second-pixel"), name


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_gradient_may_come_in_another_layout(shape, layout, backend, device):
    x = layout(values(shape, torch.float32, device))
    x.requires_grad_()
    y = batch_norm_act(x, None, None, backend=backend)

    def gradient(upstream):
        return torch.autograd.grad(y, x, upstream, retain_graph=True)[0]

    upstream = torch.randn(shape, device=device)
    expected = gradient(layout(upstream))
    for other in (*LAYOUTS.values(), every_second_pixel):
        assert torch.equal(gradient(other(upstream)), expected)
    ones = torch.ones(shape, device=device)
    assert torch.equal(gradient(ones[:1, :1, :1, :1].expand(shape)), gradient(ones))


@pytest.mark.parametrize(
    ("offset", "shape", "layout"),
    [(1e2, (4, 6, 5, 3), "channels-first"), (1e4, (4, 6, 5, 3), "channels-last")]
    + [(offset, (8, 6, 28, 28), layout) for offset in (1e2, 1e4) for layout in LAYOUTS],
    ids=str,
)
def test_a_mean_far_from_zero_keeps_the_variance(offset, shape, layout, backend, device):
    x = LAYOUTS[layout](torch.randn(shape, device=device)) + offset
    mean, var = running(shape[1], device)
    y = batch_norm_act(x, None, None, mean, var, momentum=1.0, negative_slope=1.0, backend=backend)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3)), rtol=1e-6, atol=0)
    exact = nn.functional.batch_norm(x.double(), None, None, training=True, eps=EPS)
    separate = nn.functional.batch_norm(x.contiguous(), None, None, training=True, eps=EPS)
    assert (y - exact).abs().max() <= 2 * (separate - exact).abs().max()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_one_value_far_from_the_others_keeps_the_variance_of_the_rest(layout, backend, device):
    """Sums relative to the first value, for example, would be off by a thousandth here."""
    x = layout(torch.randn(8, 3, 28, 28, device=device))
    x[0, :, 0, 0] = 1e4
    var = torch.ones(3, device=device)
    batch_norm_act(x, None, None, torch.zeros(3, device=device), var, momentum=1.0, backend=backend)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("shape", "groups"), [((6, 4, 5), 1), ((6, 4, 5), 2), ((4, 3, 64, 64), 2)], ids=str)
def test_without_momentum_the_running_statistics_are_the_mean_over_all_batches(shape, groups, backend, device):
    module = nn.BatchNorm1d(shape[1], momentum=None).to(device)
    mean, var, count = module.running_mean.clone(), module.running_var.clone(), module.num_batches_tracked.clone()
    for _ in range(3):
        x = values(shape, torch.float32, device)
        for part in x.chunk(groups):
            module(part.flatten(2))
        batch_norm_act(
            x, None, None, mean, var, momentum=None, num_batches_tracked=count, groups=groups, backend=backend
        )
        assert count == module.num_batches_tracked
        torch.testing.assert_close(mean, module.running_mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(var, module.running_var, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 3, 64, 64)], ids=str)
def test_batches_are_counted(shape, backend, device):
    x, count = values(shape, torch.float32, device), torch.tensor(7, device=device)
    options = {"num_batches_tracked": count, "groups": 3, "backend": backend}
    for momentum, expected in ((0.1, 10), (None, 13)):
        batch_norm_act(x, None, None, *running(shape[1], device), momentum=momentum, **options)
        assert count == expected


def test_changed_statistics_are_known_to_autograd(backend, device):
    """Evaluation saves the statistics for its backward pass; a training step in between makes them invalid."""
    weight, bias = parameters(4, device)
    mean, var = running(4, device)
    x = values((3, 4, 5), torch.float32, device).requires_grad_()
    y = batch_norm_act(x, weight, bias, mean, var, training=False, backend=backend)
    batch_norm_act(x, weight, bias, mean, var, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("shape", "training"), [((4, 6, 5, 3), True), ((2, 3, 64, 64), True), ((4, 6, 5, 3), False)], ids=str
)
def test_only_wanted_gradients_are_computed_and_they_do_not_change(shape, training, backend, device):
    tensors = values(shape, torch.float32, device), *parameters(shape[1], device)
    statistics = running(shape[1], device)
    upstream = torch.randn(shape, device=device)

    def gradients(*wanted):
        leaves = [tensor.clone().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
        y = batch_norm_act(*leaves, *statistics, training=training, momentum=0.0, backend=backend)
        y.backward(upstream)
        return [leaf.grad for leaf in leaves]

    every = gradients(True, True, True)
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (False, True, True)):
        for some, whole, want in zip(gradients(*wanted), every, wanted, strict=True):
            assert (some is not None) == want, wanted
            assert some is None or torch.equal(some, whole), wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4, 6, 5), (2, 3, 64, 64)], ids=str)
def test_parameters_of_half_precision(shape, dtype, backend, device):
    """Gradients have the parameters' dtype, for instance after model.half()."""
    x = values(shape, dtype, device)
    weight, bias = (p.to(dtype).requires_grad_() for p in parameters(shape[1], device))
    mean, var = (s.to(dtype) for s in running(shape[1], device))
    y = batch_norm_act(x, weight, bias, mean, var, negative_slope=0.2, backend=backend)
    exact = separate_layers(x.double(), weight.double(), bias.double(), None, None, slope=0.2)
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
    y.sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == mean.dtype == dtype
    assert mean.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (4, 3, 64, 64)], ids=str)
def test_results_repeat_bit_for_bit(shape, layout, backend, device):
    x = layout(values(shape, torch.float32, device))
    tensors = x, *parameters(shape[1], device)
    upstream = torch.randn(shape, device=device)

    def run():
        def fused(*arguments):
            return batch_norm_act(*arguments, groups=2, backend=backend)

        return results(fused, tensors, running(shape[1], device), upstream)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
def test_not_a_number_and_infinity_come_through(shape, backend, device):
    """The result in evaluation is the same as PyTorch's: relu(-inf) is 0, and NaN stays NaN."""
    x = values(shape, torch.float32, device)
    x[0, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device).repeat(shape[-1])[: shape[-1]]
    statistics = running(shape[1], device)
    for slope in (0.0, 0.2):
        got = batch_norm_act(x, None, None, *statistics, training=False, negative_slope=slope, backend=backend)
        expected = batch_norm_act(x, None, None, *statistics, training=False, negative_slope=slope, backend="torch")
        torch.testing.assert_close(got, expected, equal_nan=True)
    got = batch_norm_act(x, None, None, backend=backend)
    assert got[:, 0].isnan().all()
    assert got[:, 1:].isfinite().all()


def test_in_evaluation_other_gradients_do_not_depend_on_infinity(backend, device):
    x = values((4, 6, 5, 3), torch.float32, device)
    x[0, 0, 0, :2] = torch.tensor([torch.inf, -torch.inf])
    finite, x = x.isfinite(), x.requires_grad_()
    statistics, upstream = running(6, device), torch.randn(x.shape, device=device)
    got, expected = (
        torch.autograd.grad(batch_norm_act(x, None, None, *statistics, training=False, backend=name), x, upstream)[0]
        for name in (backend, "torch")
    )
    torch.testing.assert_close(got[finite], expected[finite])


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0)], ids=str)
def test_an_empty_batch(shape, backend, device):
    for layout, training in product(LAYOUTS.values(), (True, False)):
        x = layout(torch.zeros(shape, device=device)).requires_grad_()
        weight, bias = (p.requires_grad_() for p in parameters(4, device))
        statistics = running(4, device)
        count = torch.tensor(5, device=device)
        y = batch_norm_act(
            x, weight, bias, *statistics, training=training, groups=2, num_batches_tracked=count, backend=backend
        )
        assert y.shape == x.shape
        y.sum().backward()
        assert x.grad.shape == x.shape
        for gradient in (weight.grad, bias.grad):
            assert torch.equal(gradient, torch.zeros(4, device=device))
        for moved, start in zip(statistics, running(4, device), strict=True):
            assert torch.equal(moved, start)
        assert count == (7 if training else 5)


@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
@pytest.mark.parametrize("pixels", [4, 5000])
def test_offsets_beyond_32_bits(pixels, layout, backend, device):
    """The samples of a view lie 2³⁰ elements apart; only the pages in use are ever touched."""
    torch.use_deterministic_algorithms(False)
    memory = torch.empty(2**31 + 2**16, dtype=torch.float16, device=device)
    if layout == "channels-first":
        x = memory.as_strided((3, 4, pixels), (2**30, pixels, 1))
    else:
        # The samples are rows of pixels, so one stride walks them.
        x = memory.as_strided((3, 4), (2**30, 1)) if pixels == 4 else memory.as_strided((1, 4, 3), (1, 1, 2**30))
    x.copy_(values(x.shape, torch.float16, device))
    assert to_walkable(x) is x
    assert_accurate(backend, x.contiguous(), x)


def test_autocast_keeps_dtypes(backend, device):
    x = values((4, 6, 5, 3), torch.bfloat16, device).requires_grad_()
    weight, bias = (p.requires_grad_() for p in parameters(6, device))
    with torch.autocast(device.type, torch.bfloat16):
        y = batch_norm_act(x, weight, bias, backend=backend)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


def test_activation_checkpointing(backend, device):
    x = values((4, 6, 5, 3), torch.float32, device).requires_grad_()
    weight, bias = (p.requires_grad_() for p in parameters(6, device))

    def block(x):
        return batch_norm_act(x * 2, weight, bias, negative_slope=0.2, backend=backend)

    grads = [
        torch.autograd.grad(run(x).square().sum(), (x, weight, bias))
        for run in (block, lambda x: checkpoint(block, x, use_reentrant=False))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_gradients_cannot_be_differentiated_again(backend, device):
    x = values((4, 6), torch.float32, device).requires_grad_()
    (grad,) = torch.autograd.grad(batch_norm_act(x, None, None, backend=backend).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"for gradients of gradients, .*native_ops"):
        grad.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "training"), [("channels-last", True), ("channels-first", False)])
def test_torch_compile_takes_it_as_one_graph(layout, training, backend, device):
    module = BatchNormThenDouble(training, backend).to(device)
    x = LAYOUTS[layout](values((4, 6, 5, 3), torch.float32, device))
    compiled = torch.compile(module, fullgraph=True)
    outcomes = []
    for run in (module, compiled):
        torch.manual_seed(1)
        module.reset()
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        y.square().sum().backward()
        outcomes.append([y, leaf.grad, module.weight.grad, *(buffer.clone() for buffer in module.buffers())])
        assert y.stride() == x.stride()
    for eager, graph in zip(*outcomes, strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-6, atol=1e-6)


class BatchNormThenDouble(nn.BatchNorm2d):
    def __init__(self, training, backend):
        super().__init__(6)
        self.train(training)
        self.backend = backend

    def reset(self):
        self.reset_parameters()
        self.zero_grad()

    def forward(self, x):
        return 2 * batch_norm_act(
            x + 1,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=self.training,
            negative_slope=0.2,
            groups=2 if self.training else 1,
            num_batches_tracked=self.num_batches_tracked,
            backend=self.backend,
        )


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_registered_operations_keep_their_promises(layout, backend, device):
    x = layout(values((4, 6, 5, 3), torch.float32, device))
    check_operations(backend, x, None, "leaky_relu", 0.2)


@pytest.mark.slow
def test_registered_operations_with_a_residual_keep_their_promises(backend, device):
    x = values((4, 6, 5, 3), torch.float32, device)
    check_operations(backend, x, LAYOUTS["channels-last"](x + 1), "silu", 0.0)


def check_operations(backend, x, residual, *activation):
    torch.use_deterministic_algorithms(False)
    weight, bias = parameters(x.shape[1], x.device)
    mean, var = running(x.shape[1], x.device)
    count = torch.tensor(3, device=x.device)
    check, operations = torch.library.opcheck, torch.ops.tgan_fast
    train = operations.batch_norm_act_train
    check(train, (backend, x, weight, bias, mean, var, count, residual, 0.1, EPS, *activation, 2))
    check(train, (backend, x, None, None, None, None, None, residual, None, EPS, *activation, 1))
    check(operations.batch_norm_act_evaluate, (backend, x, mean, var, weight, bias, residual, *activation, EPS))
    dtype = launchers(backend).STATISTICS_DTYPE
    of_batch, of_running = (mean[None].to(dtype), var[None].to(dtype), None), (mean[None], None, var[None])
    for wanted in ((True, True, True), (True, False, False), (False, True, False)):
        for statistics in (of_batch, of_running):
            arguments = backend, x, x, *statistics, weight, bias, residual, *activation, EPS, *wanted
            check(operations.batch_norm_act_backward, arguments)


@pytest.mark.slow
def test_torch_compile_takes_a_residual(backend, device):
    leaves = [values((4, 6, 5, 3), torch.float32, device).requires_grad_() for _ in range(2)]

    def run(x, residual):
        return 2 * batch_norm_act(x + 1, None, None, residual=residual, activation="gelu_tanh", backend=backend)

    outcomes = []
    for function in (run, torch.compile(run, fullgraph=True)):
        y = function(*leaves)
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.testing.assert_close(*outcomes, rtol=1e-6, atol=1e-6)


def test_an_expanded_tensor(backend, device):
    """All samples share the same memory, but the results do not."""
    x = values((1, 3, 5), torch.float32, device).expand(4, -1, -1)
    assert_accurate(backend, x.contiguous(), x)


@pytest.mark.parametrize("training", [True, False])
def test_vectors_with_gaps(training, backend, device):
    """Parameters and running statistics are every second element of a longer vector."""
    x = values((4, 6, 5), torch.float32, device)
    dense = [*parameters(6, device), *running(6, device)]
    gaps = [torch.stack([vector, torch.full_like(vector, torch.nan)], 1).flatten()[::2] for vector in dense]
    weights = dense[0].requires_grad_(), gaps[0].detach().requires_grad_()
    got, expected = (
        batch_norm_act(x, weight, *vectors, training=training, backend=backend)
        for weight, vectors in zip(weights, (dense[1:], gaps[1:]), strict=True)
    )
    assert torch.equal(got, expected)
    for mine, truth in zip(gaps[2:], dense[2:], strict=True):
        assert torch.equal(mine, truth)
    got.sum().backward()
    expected.sum().backward()
    assert torch.equal(weights[0].grad, weights[1].grad)
