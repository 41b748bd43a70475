"""Every operation checks its arguments before anything is changed."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from tgan_fast.ops import (
    adam_,
    clamp_batch_norm_scale_,
    constrain_layers_,
    rmsprop_,
    singular_value_clip,
    singular_value_clip_,
    tanh_to_levels,
)

ONES = torch.ones(5)


def ones(count):
    return [torch.ones(5) for _ in range(count)]


# The places of a tensor: calls with `others`, valid tensors that the operation would change first, and the tensor.
WRITTEN = {
    "weights": lambda tensor, *others: singular_value_clip_([*others, tensor], 0.1),
    "layers": lambda tensor, *others: constrain_layers_([*others, tensor], [], [], 0.1),
    "scales": lambda tensor, *others: clamp_batch_norm_scale_([*others, tensor], [ONES, ONES][-1 - len(others) :]),
    "parameter": lambda tensor, *_: rmsprop_(tensor, *ones(2), learning_rate=0.1),
    "square_average": lambda tensor, *others: rmsprop_(*(*others, *ones(2))[:2], tensor, learning_rate=0.1),
}
CONVERTED = {
    "copies": lambda tensor, other: singular_value_clip_([other, ONES.clone()], 0.1, copies=[None, tensor]),
    "gradient": lambda tensor, other: rmsprop_(other, tensor, *ones(1), learning_rate=0.1),
    "levels": lambda tensor, _: tanh_to_levels(tensor),
}
READ = {
    "weight": lambda tensor, _: singular_value_clip(tensor, 0.1),
    "running_vars": lambda tensor, other: clamp_batch_norm_scale_([other, ONES.clone()], [ONES, tensor]),
    "layers' running_vars": lambda tensor, other: constrain_layers_([other], [ONES.clone()], [tensor]),
    "step": lambda tensor, other: adam_(other, *ones(3), tensor, learning_rate=0.1),
}
NO_DENSE_FLOATS = [
    lambda: ONES.to_sparse(),
    lambda: torch.eye(5).to_sparse_csr(),
    lambda: ONES.to_mkldnn(),
    lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    lambda: torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8),
    lambda: ONES.to(torch.complex64),
    lambda: ONES.int(),
    lambda: ONES > 0,
]


def refused(call, tensor, error, message):
    other = torch.full((5,), 3.0)
    with pytest.raises(error, match=message) as caught:
        call(tensor, other)
    assert "\n" not in str(caught.value)
    assert torch.equal(other, torch.full((5,), 3.0))


EVERYWHERE = {**WRITTEN, **CONVERTED, **READ}


@pytest.mark.parametrize("place", EVERYWHERE)
def test_what_is_no_tensor_is_named(place):
    for value in (None, 3.0, np.ones(5, np.float32), [1.0], nn.Linear(5, 1)):
        if value is not None or place != "copies":  # None is no copy
            refused(EVERYWHERE[place], value, TypeError, f"must be a tensor, not {type(value).__name__}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", EVERYWHERE)
def test_what_is_not_dense_or_not_floating_point_is_named(place):
    message = "must be a dense tensor|must be float64, float32|must be a floating-point tensor"
    for make in NO_DENSE_FLOATS:
        refused(EVERYWHERE[place], make(), ValueError, message)


def test_eight_bits_are_too_few_to_compute_with():
    for call in (*WRITTEN.values(), *READ.values()):
        refused(call, ONES.to(torch.float8_e4m3fn), ValueError, "not torch.float8_e4m3fn|must be one float32")


def test_eight_bits_are_converted():
    eighths = ONES.to(torch.float8_e4m3fn)
    copy, parameter = torch.zeros(5).to(torch.float8_e4m3fn), torch.ones(5)
    singular_value_clip_(torch.full((5,), 3.0), 5**0.5, copies=copy)
    assert torch.equal(copy.float(), ONES)
    rmsprop_(parameter, eighths, *ones(1), learning_rate=0.1)
    assert (parameter < 1).all()
    assert torch.equal(tanh_to_levels(eighths), tanh_to_levels(ONES))


@pytest.mark.parametrize("place", WRITTEN)
def test_what_cannot_be_changed_in_place_is_named(place):
    with torch.inference_mode():
        inference = torch.ones(5)
    refused(WRITTEN[place], inference, ValueError, "is an inference tensor: pass a .clone()")
    with torch.inference_mode():
        WRITTEN[place](inference)
    refused(WRITTEN[place], ONES.to("meta"), ValueError, "is on the meta device|on meta, but the parameter")
    if place in ("weights", "layers"):
        for overlapping in (torch.ones(1, 4).expand(3, 4), torch.arange(9.0).unfold(0, 3, 1)):
            before = overlapping.clone()
            refused(WRITTEN[place], overlapping, ValueError, "has elements that share memory")
            assert torch.equal(overlapping, before)


def test_overlapping_tensors_are_read():
    weight = torch.full((1, 4), 2.0).expand(3, 4)
    torch.testing.assert_close(singular_value_clip(weight), torch.full((3, 4), 12**-0.5))
    scales = torch.full((4,), 2.0)
    clamp_batch_norm_scale_(scales, torch.ones(1).expand(4))
    assert torch.equal(scales, torch.ones(4))
    with pytest.raises(ValueError, match="a copy has elements that share memory"):
        singular_value_clip_(torch.ones(3, 4), copies=torch.ones(1, 4).expand(3, 4))


def test_dense_tensors_of_any_order_do_not_overlap():
    for view in (
        torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(5, 7).mT,
        torch.randn(6, 9)[:, ::2],
        torch.randn(2, 1, 3).expand(2, 1, 3).movedim(0, -1),
        torch.randn(3, 1).expand(3, 1),
    ):
        singular_value_clip_(view, 0.1)
        matrix = view.flatten(1)
        assert torch.linalg.matrix_norm(matrix, ord=2) <= 0.1 * (1 + 1e-6)


def test_one_tensor_is_a_list_of_one():
    """A matrix must not be taken for a list of its rows."""
    weight = 3 * torch.randn(5, 5)
    one, several, layer = weight.clone(), weight.clone(), weight.clone()
    copy = torch.empty_like(weight, dtype=torch.bfloat16)
    singular_value_clip_(one, copies=copy)
    singular_value_clip_([several])
    scale, scales = torch.full((5,), 3.0), torch.full((5,), 3.0)
    constrain_layers_(layer, scale, ONES)
    clamp_batch_norm_scale_(scales, ONES)
    assert torch.linalg.matrix_norm(one, ord=2) <= 1 + 1e-6
    assert torch.equal(one, several)
    assert torch.equal(one, layer)
    assert torch.equal(copy, one.bfloat16())
    assert torch.equal(scale, ONES)
    assert torch.equal(scales, ONES)


def test_any_iterable_of_tensors_is_a_list():
    weights = [3 * torch.randn(5, 5), 3 * torch.randn(4, 2)]
    expected = [singular_value_clip(weight) for weight in weights]
    kinds = {
        "generator": lambda tensors: (tensor for tensor in tensors),
        "parameters": lambda tensors: nn.ParameterList(tensors),
        "dict's values": lambda tensors: dict(enumerate(tensors)).values(),
        "tuple": tuple,
    }
    for kind in kinds.values():
        given, copies = [weight.clone() for weight in weights], [torch.empty_like(weight) for weight in weights]
        singular_value_clip_(kind(given), copies=kind(copies))
        assert all(torch.equal(a, b) for a, b in zip([*given, *copies], expected * 2, strict=True))
        given, scales = [weight.clone() for weight in weights], [torch.full((5,), 3.0)]
        constrain_layers_(kind(given), kind(scales), kind([ONES]))
        assert all(torch.equal(a, b) for a, b in zip([*given, *scales], [*expected, ONES], strict=True))
        scales = [torch.full((5,), 3.0)]
        clamp_batch_norm_scale_(kind(scales), kind([ONES]))
        assert torch.equal(scales[0], ONES)


@pytest.mark.parametrize("tensors", [None, {"weight": torch.eye(2)}, np.eye(2), nn.Linear(2, 2), "weights", 3], ids=str)
def test_what_is_no_list_of_tensors_is_named(tensors):
    message = f"must be a list of tensors or a tensor, not {type(tensors).__name__}"
    for call in (
        lambda: singular_value_clip_(tensors),
        lambda: constrain_layers_([], tensors, []),
        lambda: constrain_layers_([], [], tensors),
        lambda: clamp_batch_norm_scale_(tensors, []),
        lambda: clamp_batch_norm_scale_([], tensors),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    if tensors is not None:
        with pytest.raises(TypeError, match=f"copies {message}"):
            singular_value_clip_([torch.eye(2)], copies=tensors)


def test_a_tensor_that_is_listed_twice_is_changed_once():
    weight = 3 * torch.randn(5, 5)
    expected, copies = singular_value_clip(weight), [torch.empty_like(weight) for _ in range(2)]
    singular_value_clip_([weight, weight], copies=copies)
    for tensor in (weight, *copies):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=2e-7)
    scale = torch.full((5,), 3.0)
    clamp_batch_norm_scale_([scale, scale], [ONES, ONES])
    assert torch.equal(scale, ONES)


def test_subclasses_and_leaves_that_require_gradients_are_tensors():
    class Named(torch.Tensor):
        pass

    for weight in (nn.Parameter(3 * torch.randn(5, 5)), (3 * torch.randn(5, 5)).as_subclass(Named)):
        kind, required = type(weight), weight.requires_grad
        singular_value_clip_(weight)
        assert type(weight) is kind
        assert weight.requires_grad == required
        assert torch.linalg.matrix_norm(weight.detach(), ord=2) <= 1 + 1e-6


NUMBERS = {
    "lowest": lambda value: clamp_batch_norm_scale_([ONES.clone()], [ONES], lowest=value),
    "eps": lambda value: clamp_batch_norm_scale_([ONES.clone()], [ONES], eps=value),
    "learning_rate": lambda value: rmsprop_(*ones(3), learning_rate=value),
    "alpha": lambda value: rmsprop_(*ones(3), learning_rate=0.1, alpha=value),
    "beta2": lambda value: adam_(*ones(4), torch.ones(()), learning_rate=0.1, beta2=value),
    "max_singular_value": lambda value: singular_value_clip(torch.eye(2), value),
}


@pytest.mark.parametrize("call", NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_numbers_within_their_range(call):
    for good in (1, 0.5, np.float32(0.5), np.float16(0.5), np.int64(1), Fraction(1, 2)):
        call(good)
    for bad in ("0.5", None, True, 1j, [0.5], np.ones(1)):
        with pytest.raises(TypeError, match="must be a number from"):
            call(bad)
    for bad in (-0.5, float("nan"), float("inf"), np.float32("nan"), 10**400):
        with pytest.raises(ValueError, match=r"must be a number from .* to .*, not .{3,40}$"):
            call(bad)
