"""FlatParameters: only the places of a network's parameters and gradients in memory change."""

import copy

import pytest
import torch
from support.operations import Operations
from torch import nn

from tgan_fast.training.flat_parameters import FlatParameters

NAN = float("nan")
LAST, LAST_3D = torch.channels_last, torch.channels_last_3d


def tensors(dtype=torch.float32, device="cpu"):
    """Every kind of shape and of dense strides."""

    def values(*shape):
        return torch.randn(shape, dtype=dtype, device=device)

    return {
        "scalar": values(),
        "one": values(1),
        "vector": values(5),
        "empty": values(0, 3),
        "matrix": values(3, 4),
        "transposed": values(3, 4).t(),
        "image": values(4, 3, 2, 2).contiguous(memory_format=LAST),
        "image, one channel": values(4, 1, 3, 3).contiguous(memory_format=LAST),
        "one image": values(1, 8, 4, 4).contiguous(memory_format=LAST),
        "pixels": values(6, 3, 1, 1).contiguous(memory_format=LAST),
        "any strides for 1": values(6).as_strided((1, 6, 1), (77, 1, 50)),
        "video": values(4, 3, 2, 2, 2).contiguous(memory_format=LAST_3D),
        "contiguous video": values(4, 3, 2, 2, 2),
        "permuted": values(2, 3, 4).permute(1, 2, 0),
    }


def parameters_of(dtype=torch.float32, device="cpu"):
    return [nn.Parameter(tensor) for tensor in tensors(dtype, device).values()]


def small_network():
    network = nn.Sequential(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), nn.Flatten(2), nn.Linear(8, 1))
    network[0].weight.data = network[0].weight.data.contiguous(memory_format=LAST_3D)
    return network


def set_gradients(parameters, dtype=None):
    """Random ones with the strides of the parameters; returns copies."""
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter, dtype=dtype)
    return [parameter.grad.clone() for parameter in parameters]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_parameters_keep_values_shapes_and_strides_in_one_piece_of_memory(dtype, device):
    parameters = parameters_of(dtype, device)
    before = [parameter.detach().clone() for parameter in parameters]
    strides = [parameter.stride() for parameter in parameters]
    flat = FlatParameters(iter(parameters))
    assert flat.parameters == parameters
    assert flat.data.shape == flat.gradient.shape == (flat.starts[-1],)
    assert flat.copy is None
    names = list(tensors())
    for name, parameter, values, stride, start in zip(names, parameters, before, strides, flat.starts, strict=False):
        assert torch.equal(parameter, values), name
        assert parameter.stride() == stride, name
        assert parameter.requires_grad, name
        if parameter.numel():
            assert parameter.data_ptr() == flat.data[start:].data_ptr(), name
            assert parameter.data_ptr() % 64 == 0, name
    # None of the random numbers is 0.
    assert flat.data.count_nonzero() == sum(values.numel() for values in before)


def test_what_lies_between_is_zero():
    flat = FlatParameters([nn.Parameter(torch.ones(count)) for count in (1, 16, 17)])
    assert flat.starts == [0, 16, 32, 64]
    expected = torch.zeros(64)
    expected[0] = expected[16:49] = 1
    assert torch.equal(flat.data, expected)
    for view in flat.views(flat.data):
        view.zero_()
    assert torch.equal(flat.data, torch.zeros(64))


def test_a_network_computes_and_loads_as_before():
    network = small_network()
    other, expected = small_network().state_dict(), copy.deepcopy(network)
    flat = FlatParameters(network.parameters())
    x = torch.randn(2, 3, 3, 3, 3)
    for state in (None, other):
        if state is not None:
            network.load_state_dict(state), expected.load_state_dict(state)
        network.zero_grad(), expected.zero_grad()
        for model in (network, expected):
            model(x).square().sum().backward()
        for a, b in zip(network.parameters(), expected.parameters(), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a.grad, b.grad)
            assert a.stride() == b.stride()
        flat.check()
    flat.data.zero_()
    assert not any(parameter.any() for parameter in network.parameters())


def test_views_of_other_tensors_have_the_parameters_shapes_and_strides(device):
    parameters = parameters_of(device=device)
    flat = FlatParameters(parameters)
    other = torch.full_like(flat.data, NAN, dtype=torch.bfloat16)
    for view, parameter in zip(flat.views(other), parameters, strict=True):
        assert view.shape == parameter.shape
        assert view.stride() == parameter.stride()
        assert view.dtype == torch.bfloat16
        view.copy_(parameter.detach())
    # In the order in which the parameters lie in memory.
    held = ~other.isnan()
    assert held.sum() == sum(parameter.numel() for parameter in parameters)
    assert torch.equal(other[held], flat.data[held].bfloat16())
    for wrong in (flat.data[1:], flat.data.view(-1, 2), flat.data.repeat(2)[::2]):
        with pytest.raises(ValueError, match="views need a contiguous tensor"):
            flat.views(wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_copy_is_made_and_refreshed(dtype, device):
    flat = FlatParameters(parameters_of(device=device), dtype)
    assert torch.equal(flat.copy, flat.data.to(dtype))
    address = flat.copy.data_ptr()
    flat.data.mul_(3)
    flat.refresh_copy()
    assert torch.equal(flat.copy, flat.data.to(dtype))
    assert flat.copy.data_ptr() == address
    FlatParameters([nn.Parameter(torch.ones(3, device=device))]).refresh_copy()


def test_gradients_are_gathered(device):
    parameters = parameters_of(device=device)
    flat = FlatParameters(parameters)
    address = flat.gradient.data_ptr()
    for _ in range(2):
        expected = set_gradients(parameters)
        assert not any(map(flat.gathered, range(len(parameters))))
        flat.gather()
        assert all(map(flat.gathered, range(len(parameters))))
        for gradient, parameter, view in zip(expected, parameters, flat.views(flat.gradient), strict=True):
            assert torch.equal(parameter.grad, gradient)
            assert torch.equal(view, gradient)
            assert parameter.grad.stride() == parameter.stride()
        # None of the random numbers is 0, but all that lies between the gradients is.
        assert flat.gradient.count_nonzero() == sum(gradient.numel() for gradient in expected)
        for parameter in parameters:
            parameter.grad = None
    assert flat.gradient.data_ptr() == address


def test_gradients_of_a_compute_copy_in_half_precision_are_gathered(device):
    """Every third parameter is the master's own, as the batch norms of a compute copy are."""
    masters = parameters_of(device=device)
    flat = FlatParameters(masters, torch.bfloat16)
    copies = [nn.Parameter(view) for view in flat.views(flat.copy)]
    copies[::3] = masters[::3]
    expected = set_gradients(copies)
    flat.gather(copies)
    for master, copied, gradient in zip(masters, copies, expected, strict=True):
        assert torch.equal(master.grad, gradient.float())
        assert copied is master or copied.grad is None


def test_gathering_takes_one_copy_for_each_dtype():
    """Autograd may choose any strides for dimensions of size 1."""
    masters = parameters_of()
    flat = FlatParameters(masters)
    copies = [nn.Parameter(view) for view in flat.views(flat.data.bfloat16())]
    copies[::3] = masters[::3]
    expected = set_gradients(copies)
    for copied in copies:
        strides = [7 if size == 1 else stride for size, stride in zip(copied.shape, copied.stride(), strict=True)]
        copied.grad = copied.grad.as_strided(copied.shape, strides)
    with Operations() as operations:
        flat.gather(copies)
    assert [name for name in operations.names if "copy" in name] == ["_foreach_copy_"] * 2
    for master, gradient in zip(masters, expected, strict=True):
        assert torch.equal(master.grad, gradient.float())


def test_gradients_in_other_layouts_are_gathered(device):
    parameters = parameters_of(device=device)
    flat = FlatParameters(parameters)
    expected = [gradient.contiguous() for gradient in set_gradients(parameters)]
    for parameter, gradient in zip(parameters, expected, strict=True):
        parameter.grad = gradient.clone()
    parameters[2].grad = torch.tensor(3.0, device=device).expand(5)
    expected[2] = torch.full((5,), 3.0, device=device)
    flat.gather()
    for parameter, gradient, view in zip(parameters, expected, flat.views(flat.gradient), strict=True):
        assert torch.equal(view, gradient)
        assert parameter.grad.stride() == parameter.stride()


def test_parameters_without_a_gradient_have_none_afterwards(device):
    masters = parameters_of(device=device)
    flat = FlatParameters(masters)
    copies = [nn.Parameter(view) for view in flat.views(flat.data.bfloat16())]
    set_gradients(masters)
    expected = set_gradients(copies)
    copies[3].grad = copies[6].grad = None
    flat.gather(copies)
    for index, (master, gradient) in enumerate(zip(masters, expected, strict=True)):
        if index in (3, 6):
            assert master.grad is None
            assert not flat.gathered(index)
        else:
            assert torch.equal(master.grad, gradient.float())


def test_what_was_gathered_is_overwritten_by_a_copys_and_added_to_by_autograd():
    parameter = nn.Parameter(torch.ones(3))
    flat = FlatParameters([parameter])
    copied = nn.Parameter(torch.ones(3))
    for _ in range(2):
        (2 * copied).sum().backward()
        flat.gather([copied])
        assert torch.equal(parameter.grad, torch.full((3,), 2.0))
    parameter.sum().backward()
    assert flat.gathered(0)
    flat.gather()
    assert torch.equal(flat.gradient[:3], torch.full((3,), 3.0))


def test_further_numbers_travel_with_the_gradients(device):
    flat = FlatParameters([nn.Parameter(torch.ones(5, dtype=torch.float64, device=device))], allreduce_extra=3)
    assert flat.allreduce_buffer.shape == (flat.starts[-1] + 3,)
    assert flat.allreduce_buffer.is_contiguous()
    flat.gradient.fill_(1)
    flat.allreduce_extra.fill_(2)
    assert flat.allreduce_buffer.tolist() == [1.0] * flat.starts[-1] + [2.0] * 3
    assert flat.allreduce_buffer.dtype == torch.float64
    assert FlatParameters([nn.Parameter(torch.ones(5))]).allreduce_extra.shape == (0,)


def test_only_small_gradients_are_gathered_on_demand():
    parameters = [nn.Parameter(torch.ones(count)) for count in (3, 20, 19)]
    flat = FlatParameters(parameters)
    expected = set_gradients(parameters)
    kept = parameters[1].grad
    flat.gather(smaller_than=20)
    assert [flat.gathered(index) for index in range(3)] == [True, False, True]
    assert parameters[1].grad is kept
    assert not flat.gradient[flat.starts[1] : flat.starts[2]].any()
    for index, gradient in enumerate(expected):
        assert torch.equal(parameters[index].grad, gradient)
        assert torch.equal(flat.gradient_row(index), gradient)


@pytest.mark.gpu
def test_gathering_never_waits_for_the_gpu():
    masters = parameters_of(device="cuda")
    flat = FlatParameters(masters)
    copies = [nn.Parameter(view) for view in flat.views(flat.data.bfloat16())]
    for index, copied in enumerate(copies):
        copied.grad = torch.full_like(copied, index)
    torch.cuda.set_sync_debug_mode("error")
    try:
        flat.gather(copies)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all((master.grad == index).all() for index, master in enumerate(masters))


def test_parameters_that_were_moved_out_are_noticed():
    network = small_network()
    flat = FlatParameters(network.parameters())
    flat.check()
    network[1].bias.data = network[1].bias.data.clone()
    with pytest.raises(RuntimeError, match="parameter 3 was moved out of its flat tensor"):
        flat.check()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "there are no parameters"),
        ([torch.zeros(3), torch.zeros(3, dtype=torch.int64)], "parameter 1 must be floating-point and is torch.int64"),
        (
            [torch.zeros(3), torch.zeros(3).double()],
            "parameter 1 is torch.float64 on cpu, but the first is torch.float",
        ),
        ([torch.zeros(3), torch.zeros(3, device="meta")], "parameter 1 is torch.float32 on meta, but the first is"),
        ([torch.zeros(3, 4)[:, ::2]], "parameter 0 has gaps or overlaps"),
        ([torch.zeros(3, 1).expand(3, 4)], "parameter 0 has gaps or overlaps"),
    ],
)
def test_parameters_that_cannot_be_laid_out_are_refused(parameters, message):
    parameters = [nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) for tensor in parameters]
    addresses = [parameter.data_ptr() for parameter in parameters]
    with pytest.raises(ValueError, match=message):
        FlatParameters(parameters)
    assert [parameter.data_ptr() for parameter in parameters] == addresses


def test_a_parameter_given_twice_is_refused():
    parameter = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="a parameter is given twice"):
        FlatParameters([parameter, parameter])


def test_gradients_of_other_shapes_are_refused():
    parameter = nn.Parameter(torch.zeros(3, 4))
    flat = FlatParameters([parameter])
    source = nn.Parameter(torch.zeros(4))
    source.grad = torch.ones(4)
    with pytest.raises(ValueError, match="a gradient is \\[4\\], but its parameter is \\[3, 4\\]"):
        flat.gather([source])
