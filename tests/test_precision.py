"""Precisions are refused where a device lacks them, and the switches behind them are put back."""

from itertools import product

import pytest
import torch

from tgan_fast.errors import InputError
from tgan_fast.precision import arithmetic, compute_dtype, resolve_evaluation_precision, resolve_precision

CPU = torch.device("cpu")


def switches():
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    return convolutions.fp32_precision, products.fp32_precision, torch.backends.cudnn.benchmark


def test_precisions_of_a_cpu():
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(InputError, match=r"^the CPU does not compute in TF32: choose --precision fp32$"):
        resolve_precision("tf32", CPU)
    assert [resolve_evaluation_precision(name, CPU) for name in ("auto", "bf16")] == ["fp32", "bf16"]
    with pytest.raises(InputError, match="does not compute in TF32"):
        resolve_evaluation_precision("tf32", CPU)


@pytest.mark.gpu
def test_precisions_of_a_gpu_are_those_of_its_generation():
    device = torch.device("cuda")
    if torch.cuda.get_device_capability() >= (8, 0):
        assert [resolve_precision(name, device) for name in ("auto", "tf32", "fp32")] == ["bf16", "tf32", "fp32"]
        assert resolve_evaluation_precision("auto", device) == "tf32"
    else:
        assert resolve_precision("auto", device) == "fp32"
        with pytest.raises(InputError, match="does not compute in TF32"):
            resolve_precision("tf32", device)


def test_only_bf16_changes_the_type():
    assert compute_dtype("bf16", torch.float32) == torch.bfloat16
    assert compute_dtype("tf32", torch.float32) == compute_dtype("fp32", torch.float32) == torch.float32
    assert compute_dtype("fp32", torch.float64) == torch.float64


@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_switches_are_set_inside_and_as_before_afterwards(precision):
    of_convolutions, of_products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    originally = of_convolutions.fp32_precision, of_products.fp32_precision
    inside = "tf32" if precision == "tf32" else "ieee"
    try:
        for settings in product(("none", "ieee", "tf32"), repeat=2):
            of_convolutions.fp32_precision, of_products.fp32_precision = settings
            before = switches()
            with pytest.raises(KeyError), arithmetic(precision):  # noqa: PT012
                assert switches() == (inside, inside, True)
                raise KeyError
            assert switches() == before, settings
    finally:
        of_convolutions.fp32_precision, of_products.fp32_precision = originally


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_convolutions_and_products_have_the_precision(precision):
    """TF32 keeps 10 bits of the 23 of float32: its error is some hundred times larger."""
    random = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(8, 64, 16, 16, device="cuda", generator=random)
    weight = torch.randn(64, 64, 3, 3, device="cuda", generator=random)
    matrix = x.flatten(1)
    with arithmetic(precision):
        got = torch.nn.functional.conv2d(x, weight), matrix @ matrix.mT
    exact = torch.nn.functional.conv2d(x.double(), weight.double()), matrix.double() @ matrix.double().mT
    for value, truth in zip(got, exact, strict=True):
        error = ((value - truth).norm() / truth.norm()).item()
        assert (error > 2e-5) == (precision == "tf32"), error
