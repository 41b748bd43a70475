"""The Triton kernels, natively on a GPU and in Triton's interpreter without one, against a float64 formula."""

from itertools import product

import pytest
import torch
from support.graphs import captured
from support.pairwise import covering
from torch import nn
from torch.utils.checkpoint import checkpoint

from tgan_fast.ops import BackendError, batch_norm_act

pytest.importorskip("triton")
from tgan_fast.ops.batch_norm import triton as launch
from tgan_fast.ops.batch_norm.geometry import to_walkable

EPS = 1e-5
# Errors may be twice those of separate eager layers in the same dtype, and this on top, since few values may happen to
# round well. Triton's interpreter needs more: it rounds bfloat16 toward zero, and adds float32 one after another where
# a CPU's eager layers have float64.
TOLERANCES = {torch.float32: 2e-7, torch.float16: 1e-4, torch.bfloat16: 2**-7 if launch.INTERPRETED else 1e-3}
SUM_TOLERANCE = 1e-6 if launch.INTERPRETED else 2e-7

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


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def every_second_sample(x):
    return torch.stack([x, torch.full_like(x, torch.nan)], 1).flatten(0, 1)[::2]


def inner_channels(x):
    padding = torch.full_like(x[:, :1], torch.nan)
    return torch.cat([padding, x, padding], 1)[:, 1:-1]


def inner_channels_last(x):
    padding = torch.full_like(x[:, :1], torch.nan)
    return channels_last(torch.cat([padding, x, padding], 1))[:, 1:-1]


def every_second_pixel(x):
    return torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2]


def transposed(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


VIEWS = {
    "every-second-sample": every_second_sample,
    "inner-channels": inner_channels,
    "inner-channels-last": inner_channels_last,
    "every-second-pixel": every_second_pixel,
    "transposed": transposed,
}
LAYOUTS = {"channels-first": torch.Tensor.contiguous, "channels-last": channels_last}


@pytest.fixture
def device(triton_device):
    return triton_device


@pytest.fixture(autouse=True)
def _nan_in_new_memory():
    """Fill new memory with NaN, so that an unwritten element shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    assert torch.ones(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def parameters(channels, device):
    return torch.rand(channels, device=device) + 0.5, torch.randn(channels, device=device)


def running(channels, device):
    return torch.zeros(channels, device=device), torch.ones(channels, device=device)


def separate_layers(x, weight, bias, mean, var, *, slope, groups=1, training=True, momentum=0.1):
    """Return what eager PyTorch computes; in float64 this is the truth."""
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


def assert_as_accurate_as_eager(x, laid_out, *, slope=0.2, groups=1, training=True, what=""):
    """Check against eager PyTorch; `laid_out` has the values of the dense x, `what` begins a failure's message."""
    weight, bias = parameters(x.shape[1], x.device)
    statistics = running(x.shape[1], x.device)
    options = {"slope": slope, "groups": groups, "training": training}

    def eager(*tensors):
        return separate_layers(*tensors, **options)

    def fused(*tensors):
        return batch_norm_act(
            *tensors, training=training, eps=EPS, negative_slope=slope, groups=groups, backend="triton"
        )

    wide = [tensor.double() for tensor in (x, weight, bias, *statistics)]
    v = separate_layers(*wide[:3], *(s.clone() for s in wide[3:]), **options | {"slope": 1.0})
    # No gradient where rounding may decide on which side of the activation a value falls.
    upstream = torch.randn(x.shape, device=x.device).to(x.dtype) * (v.abs() > 1e-4)
    exact = results(eager, wide[:3], wide[3:], upstream.double())
    expected = results(eager, (x, weight, bias), [s.clone() for s in statistics], upstream)
    got = results(fused, (laid_out, weight, bias), [s.clone() for s in statistics], upstream)
    assert got[0].dtype == x.dtype
    assert got[0].shape == x.shape
    assert got[1].dtype == x.dtype
    names = "y", "dx", "dweight", "dbias", "running_mean", "running_var"
    # A mean in float32, rounded, moves the values of a channel by this share of their spread.
    channels = wide[0].movedim(1, 0).flatten(1)
    rounded_mean = 2**-24 * (channels.mean(1).abs() / channels.var(1, correction=0).clamp(min=EPS).sqrt()).max()
    for name, mine, theirs, truth in zip(names, got, expected, exact, strict=True):
        # With two values a channel dx is what the cancellation of far larger numbers leaves.
        scale = torch.maximum(truth.norm(), 1e-2 * upstream.norm())
        bound = 2 * (theirs.double() - truth).norm() / scale
        error = (mine.double() - truth).norm() / scale
        tolerance = TOLERANCES[mine.dtype] + rounded_mean if name in ("y", "dx") else SUM_TOLERANCE
        assert error <= bound + tolerance, f"{what}{name}: {error:.1e}, eager {bound / 2:.1e}"


def values(shape, dtype, device):
    return (torch.randn(shape, device=device) * 2 + 3).to(dtype)


def rows_of(shapes, **others):
    """Return every shape in both layouts, and every pair of these, the dtypes and the other values."""
    values = {"shape": list(shapes.values()), "layout": list(LAYOUTS), "dtype": list(TOLERANCES), **others}
    rows = covering(values, lambda row: True)
    return pytest.mark.parametrize(rows[0].keys(), [row.values() for row in rows], ids=str)


# The shapes of either kind of kernel by themselves: dtype and layout change what each of them does.
@rows_of(SMALL)
def test_training_of_small_tensors_is_as_accurate_as_eager(shape, layout, dtype, device):
    x = values(shape, dtype, device)
    assert_as_accurate_as_eager(x, LAYOUTS[layout](x))


@rows_of(LARGE)
def test_training_is_as_accurate_as_eager(shape, layout, dtype, device):
    x = values(shape, dtype, device)
    assert_as_accurate_as_eager(x, LAYOUTS[layout](x))


@rows_of({"2d": SMALL["2d"], "one-sample": SMALL["one-sample"], "several-tiles": (100, 5, 3, 9)})
def test_evaluation_is_as_accurate_as_eager(shape, layout, dtype, device):
    x = values(shape, dtype, device)
    assert_as_accurate_as_eager(x, LAYOUTS[layout](x), training=False)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "slopes"), [((4, 6, 5, 3), (0.0, 0.2, 1.0, -0.5, 3.0)), ((2, 3, 64, 64), (0.0, 1.0, -0.5))], ids=str
)
def test_every_slope(shape, slopes, layout, device):
    x = values(shape, torch.float32, device)
    for slope in slopes:
        assert_as_accurate_as_eager(x, layout(x), slope=slope, what=f"slope {slope}, ")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), [((6, 5), 2), ((6, 5, 3), 3), ((4, 3, 64, 64), 2)], ids=str)
def test_groups_are_as_accurate_as_separate_eager_calls(shape, groups, layout, device):
    scale = torch.arange(1, 1 + shape[0], device=device).view(-1, *[1] * (len(shape) - 1))
    x = values(shape, torch.float32, device) * scale
    assert_as_accurate_as_eager(x, layout(x), groups=groups)


def test_sums_of_more_programs_than_are_combined_at_once(device):
    """Return what the kernels before would leave, which take a while in the interpreter."""
    groups, splits, rows, channels = 2, 300, 7, 5
    assert splits > launch.kernels.COMBINED_SPLITS.value
    grid = launch._combine_grid(torch.empty(1, channels))
    x = values((groups, splits, rows, channels), torch.float64, device)
    shift = x.mean(2, keepdim=True) + 0.1
    parts = shift.squeeze(2), (x - shift).sum(2), (x - shift).square().sum(2), torch.full_like(x[:, :, 0], rows)
    mean, var = (torch.empty(groups, channels, device=device) for _ in range(2))
    launch.kernels.combine_statistics_kernel[grid](
        torch.stack(parts, 2).float(), mean, None, var, *[None] * 5, splits * rows, channels, splits, groups,
        num_warps=4,
    )  # fmt: skip
    exact_var, exact_mean = torch.var_mean(x, (1, 2), correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-6, atol=0)

    parts = torch.randn(groups, splits, 2, channels, device=device)
    sums = torch.empty(groups, 2, channels, device=device)
    dweight, dbias = torch.empty(2, channels, device=device)
    rstd = torch.rand(groups, channels, device=device)
    launch.kernels.combine_gradients_kernel[grid](
        parts, sums, dweight, dbias, rstd, None, None, channels, splits, groups, num_warps=4
    )
    exact = parts.double().sum(1)
    torch.testing.assert_close(sums.double(), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dweight.double(), (exact[:, 1] * rstd).sum(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dbias.double(), exact[:, 0].sum(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
def test_views_give_what_their_values_give(shape, device):
    for name, view in VIEWS.items():
        x = values(shape, torch.float32, device)
        assert not view(x).is_contiguous(), name
        assert_as_accurate_as_eager(x, view(x), what=f"{name}, ")


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
def test_only_views_that_skip_pixels_are_copied(shape, device):
    x = values(shape, torch.float32, device)
    for name, view in VIEWS.items():
        laid_out = view(x)
        assert (to_walkable(laid_out) is laid_out) == (name != "every-second-pixel"), name


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_gradient_may_come_in_another_layout(shape, layout, device):
    x = layout(values(shape, torch.float32, device))
    x.requires_grad_()
    y = batch_norm_act(x, None, None, backend="triton")

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
def test_a_mean_far_from_zero_keeps_the_variance(offset, shape, layout, device):
    x = LAYOUTS[layout](torch.randn(shape, device=device)) + offset
    mean, var = running(shape[1], device)
    y = batch_norm_act(x, None, None, mean, var, momentum=1.0, negative_slope=1.0, backend="triton")
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3)), rtol=1e-6, atol=0)
    exact = nn.functional.batch_norm(x.double(), None, None, training=True, eps=EPS)
    separate = nn.functional.batch_norm(x.contiguous(), None, None, training=True, eps=EPS)
    assert (y - exact).abs().max() <= 2 * (separate - exact).abs().max()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_one_value_far_from_the_others_keeps_the_variance_of_the_rest(layout, device):
    """Sums about the first value, say, would be off by a thousandth here."""
    x = layout(torch.randn(8, 3, 28, 28, device=device))
    x[0, :, 0, 0] = 1e4
    var = torch.ones(3, device=device)
    batch_norm_act(x, None, None, torch.zeros(3, device=device), var, momentum=1.0, backend="triton")
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("shape", "groups"), [((6, 4, 5), 1), ((6, 4, 5), 2), ((4, 3, 64, 64), 2)], ids=str)
def test_without_momentum_the_running_statistics_are_the_mean_over_all_batches(shape, groups, device):
    module = nn.BatchNorm1d(shape[1], momentum=None).to(device)
    mean, var, count = module.running_mean.clone(), module.running_var.clone(), module.num_batches_tracked.clone()
    for _ in range(3):
        x = values(shape, torch.float32, device)
        for part in x.chunk(groups):
            module(part.flatten(2))
        batch_norm_act(
            x, None, None, mean, var, momentum=None, num_batches_tracked=count, groups=groups, backend="triton"
        )
        assert count == module.num_batches_tracked
        torch.testing.assert_close(mean, module.running_mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(var, module.running_var, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 3, 64, 64)], ids=str)
def test_batches_are_counted(shape, device):
    x, count = values(shape, torch.float32, device), torch.tensor(7, device=device)
    options = {"num_batches_tracked": count, "groups": 3, "backend": "triton"}
    for momentum, expected in ((0.1, 10), (None, 13)):
        batch_norm_act(x, None, None, *running(shape[1], device), momentum=momentum, **options)
        assert count == expected


def test_changed_statistics_are_known_to_autograd(device):
    """Evaluation keeps them for its backward pass; a training step in between makes that wrong."""
    weight, bias = parameters(4, device)
    mean, var = running(4, device)
    x = values((3, 4, 5), torch.float32, device).requires_grad_()
    y = batch_norm_act(x, weight, bias, mean, var, training=False, backend="triton")
    batch_norm_act(x, weight, bias, mean, var, backend="triton")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("shape", "training"), [((4, 6, 5, 3), True), ((2, 3, 64, 64), True), ((4, 6, 5, 3), False)], ids=str
)
def test_only_wanted_gradients_are_computed_and_they_do_not_change(shape, training, device):
    tensors = values(shape, torch.float32, device), *parameters(shape[1], device)
    statistics = running(shape[1], device)
    upstream = torch.randn(shape, device=device)

    def gradients(*wanted):
        leaves = [tensor.clone().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
        y = batch_norm_act(*leaves, *statistics, training=training, momentum=0.0, backend="triton")
        y.backward(upstream)
        return [leaf.grad for leaf in leaves]

    every = gradients(True, True, True)
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (False, True, True)):
        for some, whole, want in zip(gradients(*wanted), every, wanted, strict=True):
            assert (some is not None) == want, wanted
            assert some is None or torch.equal(some, whole), wanted


def test_frozen_parameters_in_evaluation_cost_no_sums(device, monkeypatch):
    x = values((2, 3, 64, 64), torch.float32, device).requires_grad_()
    monkeypatch.delattr(launch, "gradient_sums")
    batch_norm_act(x, *parameters(3, device), *running(3, device), training=False, backend="triton").sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4, 6, 5), (2, 3, 64, 64)], ids=str)
def test_parameters_of_half_precision(shape, dtype, device):
    """Gradients have the parameters' dtype, for instance after model.half()."""
    x = values(shape, dtype, device)
    weight, bias = (p.to(dtype).requires_grad_() for p in parameters(shape[1], device))
    mean, var = (s.to(dtype) for s in running(shape[1], device))
    y = batch_norm_act(x, weight, bias, mean, var, negative_slope=0.2, backend="triton")
    exact = separate_layers(x.double(), weight.double(), bias.double(), None, None, slope=0.2)
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
    y.sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == mean.dtype == dtype
    assert mean.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (4, 3, 64, 64)], ids=str)
def test_results_repeat_bit_for_bit(shape, layout, device):
    x = layout(values(shape, torch.float32, device))
    tensors = x, *parameters(shape[1], device)
    upstream = torch.randn(shape, device=device)

    def run():
        def fused(*arguments):
            return batch_norm_act(*arguments, groups=2, backend="triton")

        return results(fused, tensors, running(shape[1], device), upstream)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 64, 64)], ids=str)
def test_not_a_number_and_infinity_come_through(shape, device):
    """The result in evaluation is PyTorch's: relu(-inf) is 0, and NaN stays."""
    x = values(shape, torch.float32, device)
    x[0, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device).repeat(shape[-1])[: shape[-1]]
    statistics = running(shape[1], device)
    for slope in (0.0, 0.2):
        got = batch_norm_act(x, None, None, *statistics, training=False, negative_slope=slope, backend="triton")
        expected = batch_norm_act(x, None, None, *statistics, training=False, negative_slope=slope, backend="torch")
        torch.testing.assert_close(got, expected, equal_nan=True)
    got = batch_norm_act(x, None, None, backend="triton")
    assert got[:, 0].isnan().all()
    assert got[:, 1:].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0)], ids=str)
def test_an_empty_batch(shape, device):
    for layout, training in product(LAYOUTS.values(), (True, False)):
        x = layout(torch.zeros(shape, device=device)).requires_grad_()
        weight, bias = (p.requires_grad_() for p in parameters(4, device))
        statistics = running(4, device)
        count = torch.tensor(5, device=device)
        y = batch_norm_act(
            x, weight, bias, *statistics, training=training, groups=2, num_batches_tracked=count, backend="triton"
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
def test_offsets_beyond_32_bits(pixels, layout, device):
    """A view whose samples lie 2³⁰ elements apart; of its memory only the pages in use are ever touched."""
    torch.use_deterministic_algorithms(False)
    memory = torch.empty(2**31 + 2**16, dtype=torch.float16, device=device)
    if layout == "channels-first":
        x = memory.as_strided((3, 4, pixels), (2**30, pixels, 1))
    else:
        # The samples as rows of pixels: one stride walks them.
        x = memory.as_strided((3, 4), (2**30, 1)) if pixels == 4 else memory.as_strided((1, 4, 3), (1, 1, 2**30))
    x.copy_(values(x.shape, torch.float16, device))
    assert to_walkable(x) is x
    assert_as_accurate_as_eager(x.contiguous(), x)


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    x = torch.randn(2**15 + 1, 64, 32, 32, dtype=torch.float16, device="cuda")
    assert x.numel() > 2**31
    for laid_out in (x, x.to(memory_format=torch.channels_last)):
        y = batch_norm_act(laid_out, None, None, backend="triton")
        for part in (slice(0, 64), slice(-64, None)):
            var, mean = torch.var_mean(x.transpose(0, 1).flatten(1).float(), 1, correction=0)
            v = (x[part].float() - mean[:, None, None]) * (var[:, None, None] + EPS).rsqrt()
            torch.testing.assert_close(y[part], v.relu().half(), rtol=2e-3, atol=2e-3)


def test_autocast_keeps_dtypes(device):
    x = values((4, 6, 5, 3), torch.bfloat16, device).requires_grad_()
    weight, bias = (p.requires_grad_() for p in parameters(6, device))
    with torch.autocast(device.type, torch.bfloat16):
        y = batch_norm_act(x, weight, bias, backend="triton")
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


def test_activation_checkpointing(device):
    x = values((4, 6, 5, 3), torch.float32, device).requires_grad_()
    weight, bias = (p.requires_grad_() for p in parameters(6, device))

    def block(x):
        return batch_norm_act(x * 2, weight, bias, negative_slope=0.2, backend="triton")

    grads = [
        torch.autograd.grad(run(x).square().sum(), (x, weight, bias))
        for run in (block, lambda x: checkpoint(block, x, use_reentrant=False))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_gradients_cannot_be_differentiated_again(device):
    x = values((4, 6), torch.float32, device).requires_grad_()
    (grad,) = torch.autograd.grad(batch_norm_act(x, None, None, backend="triton").square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "training"), [("channels-last", True), ("channels-first", False)])
def test_torch_compile_takes_it_as_one_graph(layout, training, device):
    module = BatchNormThenDouble(training).to(device)
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
    def __init__(self, training):
        super().__init__(6)
        self.train(training)

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
            backend="triton",
        )


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_registered_operations_keep_their_promises(layout, device):
    torch.use_deterministic_algorithms(False)
    x = layout(values((4, 6, 5, 3), torch.float32, device))
    weight, bias = parameters(6, device)
    mean, var = running(6, device)
    count = torch.tensor(3, device=device)
    check = torch.library.opcheck
    check(torch.ops.tgan_fast.batch_norm_act_train, ("triton", x, weight, bias, mean, var, count, 0.1, EPS, 0.2, 2))
    check(torch.ops.tgan_fast.batch_norm_act_train, ("triton", x, None, None, None, None, None, None, EPS, 0.2, 1))
    check(torch.ops.tgan_fast.batch_norm_act_evaluate, ("triton", x, mean, var, weight, bias, 0.2, EPS))
    for wanted in ((True, True, True), (True, False, False), (False, True, False)):
        for rstd_or_var in ((var[None], None), (None, var[None])):
            arguments = "triton", x, x, mean[None], *rstd_or_var, weight, bias, 0.2, EPS, *wanted
            check(torch.ops.tgan_fast.batch_norm_act_backward, arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (16, 32, 64, 64)], ids=str)
def test_a_cuda_graph_replays_it(shape, layout):
    x = layout(values(shape, torch.bfloat16, "cuda")).requires_grad_()
    tensors = x, *(p.requires_grad_() for p in parameters(shape[1], "cuda"))
    upstream = layout(torch.randn(shape, device="cuda").bfloat16())
    statistics = running(shape[1], "cuda")
    count = torch.tensor(0, device="cuda")

    def run():
        y = batch_norm_act(*tensors, *statistics, num_batches_tracked=count, groups=2, backend="triton")
        return y, *torch.autograd.grad(y, tensors, upstream)

    graph, results = captured(run, warm_up=3)
    before = count.clone()
    with torch.no_grad():
        x.copy_(values(shape, torch.bfloat16, "cuda"))
    graph.replay()
    assert count == before + 2
    assert all(torch.equal(a, b) for a, b in zip(results, run(), strict=True))


def test_dtypes_that_the_kernels_do_not_take(device):
    with pytest.raises(BackendError, match=r"takes float32, float16 and bfloat16, and x is torch\.float64"):
        batch_norm_act(torch.ones(4, 3, dtype=torch.float64, device=device), None, None, backend="triton")


def test_an_expanded_tensor(device):
    """All samples share one memory; the results do not."""
    x = values((1, 3, 5), torch.float32, device).expand(4, -1, -1)
    assert_as_accurate_as_eager(x.contiguous(), x)


@pytest.mark.parametrize("training", [True, False])
def test_vectors_with_gaps(training, device):
    """Every second element of a longer vector, as parameters and as running statistics."""
    x = values((4, 6, 5), torch.float32, device)
    dense = [*parameters(6, device), *running(6, device)]
    gaps = [torch.stack([vector, torch.full_like(vector, torch.nan)], 1).flatten()[::2] for vector in dense]
    weights = dense[0].requires_grad_(), gaps[0].detach().requires_grad_()
    got, expected = (
        batch_norm_act(x, weight, *vectors, training=training, backend="triton")
        for weight, vectors in zip(weights, (dense[1:], gaps[1:]), strict=True)
    )
    assert torch.equal(got, expected)
    for mine, truth in zip(gaps[2:], dense[2:], strict=True):
        assert torch.equal(mine, truth)
    got.sum().backward()
    expected.sum().backward()
    assert torch.equal(weights[0].grad, weights[1].grad)
