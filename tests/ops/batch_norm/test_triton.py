"""Tests that only the Triton kernels of batch norm need, on a GPU, or in Triton's interpreter without one."""

import pytest
import torch
from support.batch_norm import EPS, LAYOUTS, parameters, running, values
from support.graphs import captured

from tgan_fast.ops import BackendError, batch_norm_act

pytest.importorskip("triton")
from tgan_fast.ops.batch_norm import triton as launch


@pytest.fixture
def device(triton_device):
    return triton_device


def test_sums_of_more_programs_than_are_combined_at_once(device):
    """The partial sums are made here, because the kernels before take a while in the interpreter."""
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


def test_frozen_parameters_in_evaluation_cost_no_sums(device, monkeypatch):
    x = values((2, 3, 64, 64), torch.float32, device).requires_grad_()
    monkeypatch.delattr(launch, "gradient_sums")
    batch_norm_act(x, *parameters(3, device), *running(3, device), training=False, backend="triton").sum().backward()
    assert x.grad.isfinite().all()


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
