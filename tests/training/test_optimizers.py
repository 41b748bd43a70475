"""RMSprop and Adam over flat parameters against PyTorch's own."""

import copy
import io
from unittest import mock

import pytest
import torch
from support.graphs import captured
from support.operations import Operations
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tgan_fast.training import optimizers
from tgan_fast.training.flat_parameters import FlatParameters
from tgan_fast.training.optimizers import Adam, RMSprop

PAIRS = {"rmsprop": (RMSprop, torch.optim.RMSprop), "adam": (Adam, torch.optim.Adam)}
AVERAGES = {"rmsprop": ["square_avg"], "adam": ["exp_avg", "exp_avg_sq"]}
SHAPES = ((), (1,), (7, 3), (4, 3, 2, 2, 2), (5, 1, 3, 3), (16, 1, 1), (130,), (2, 20_000))
STEPS, RATE = 12, 1e-2
both = pytest.mark.parametrize("name", PAIRS)
double_and_single = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.fixture(params={"gathered": 0, "small ones gathered": 20, "apart": 0}.items(), ids=lambda item: item[0])
def gathered(request, monkeypatch):
    """Whether all gradients are gathered before the step; otherwise a CPU's step gathers only small ones."""
    monkeypatch.setattr(optimizers, "_LARGE", request.param[1])
    return request.param[0] == "gathered"


def channels_last(tensor):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


def parameters_of(dtype=torch.float32, device="cpu", layout=channels_last, seed=1):
    random = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=random, dtype=torch.float64).to(device, dtype) for shape in SHAPES]
    return [nn.Parameter(layout(value)) for value in values]


def gradients_of(step, dtype=torch.float32, device="cpu"):
    random = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(device, dtype) for shape in SHAPES]


def give(parameters, gradients, without=()):
    """Set gradients with the parameters' strides, as autograd does."""
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        parameter.grad = None if index in without else torch.empty_like(parameter).copy_(gradient)


class Ours:
    """An optimizer of this package and its parameters."""

    def __init__(self, name, *, dtype=torch.float32, device="cpu", copy_dtype=None, gathered=False, **options):
        self.parameters = parameters_of(dtype, device)
        self.flat = FlatParameters(self.parameters, copy_dtype)
        self.optimizer = PAIRS[name][0](self.flat, **({"lr": RATE} | options))
        self.gathered, self.dtype, self.device = gathered, dtype, device

    def step(self, number, without=()):
        give(self.parameters, gradients_of(number, self.dtype, self.device), without)
        if self.gathered:
            self.flat.gather()
        self.optimizer.step()


class Torchs:
    """PyTorch's optimizer and its parameters."""

    def __init__(self, name, *, dtype=torch.float32, device="cpu", layout=channels_last, **options):
        self.parameters = parameters_of(dtype, device, layout)
        self.optimizer = PAIRS[name][1](self.parameters, **({"lr": RATE, "foreach": False} | options))
        self.dtype, self.device = dtype, device

    def step(self, number, without=()):
        give(self.parameters, gradients_of(number, self.dtype, self.device), without)
        self.optimizer.step()


def assert_same(a, b):
    """Check for equality; the float32 kernels round elsewhere than PyTorch, by up to 6e-8 of a parameter and step."""
    tolerance = 0 if type(a) is type(b) or a.dtype == torch.float64 else 2 * STEPS * 6e-8
    for x, y in zip(a.parameters, b.parameters, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def way(optimizer):
    """Return the movement of all parameters, in float64."""
    moved = zip(optimizer.parameters, parameters_of(torch.float64), strict=True)
    return torch.cat([(p.detach().double().cpu() - start).flatten() for p, start in moved]).detach()


@double_and_single
@both
def test_on_a_cpu_the_numbers_are_pytorchs(name, dtype, gathered):
    ours, torchs = Ours(name, dtype=dtype, gathered=gathered), Torchs(name, dtype=dtype)
    for number in range(STEPS):
        ours.step(number), torchs.step(number)
    assert_same(ours, torchs)
    assert way(ours).norm() > 1


@double_and_single
@both
def test_many_steps_are_as_accurate_as_pytorchs(name, dtype, gathered, device):
    ours, torchs = (kind(name, dtype=dtype, device=device) for kind in (Ours, Torchs))
    ours.gathered, exact = gathered, Torchs(name, dtype=torch.float64)
    for number in range(STEPS):
        ours.step(number), torchs.step(number), exact.step(number)
    error, own = ((way(optimizer) - way(exact)).norm() / way(exact).norm() for optimizer in (ours, torchs))
    assert error <= max(2 * own, 1e-13)


@both
def test_options_are_pytorchs(name):
    options = {"rmsprop": {"lr": 0.3, "alpha": 0.7, "eps": 0.1}, "adam": {"lr": 0.3, "betas": (0.4, 0.8), "eps": 0.1}}
    ours, torchs = Ours(name, **options[name]), Torchs(name, **options[name])
    ours.step(0), torchs.step(0)
    assert_same(ours, torchs)
    created = PAIRS[name][0](FlatParameters(parameters_of())), PAIRS[name][1](parameters_of())
    assert created[0].defaults == created[1].defaults
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        PAIRS[name][0](FlatParameters(parameters_of()), lr=-1)


@both
def test_a_changed_learning_rate_counts(name):
    ours, torchs = Ours(name), Torchs(name)
    for number in range(4):
        for optimizer in (ours.optimizer, torchs.optimizer):
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        ours.step(number), torchs.step(number)
    assert_same(ours, torchs)


@both
def test_the_copy_follows(name, gathered, device):
    ours = Ours(name, device=device, copy_dtype=torch.bfloat16, gathered=gathered)
    for number in range(3):
        ours.step(number)
        for parameter, rounded in zip(ours.parameters, ours.flat.views(ours.flat.copy), strict=True):
            assert torch.equal(rounded, parameter.bfloat16())


@both
def test_a_compute_copy_in_half_precision_steps_its_master(name, device):
    """The gradients are those that PyTorch's optimizer gets when they are cast one by one."""
    ours, torchs = Ours(name, device=device, copy_dtype=torch.bfloat16), Torchs(name, device=device)
    copies = [nn.Parameter(view) for view in ours.flat.views(ours.flat.copy)]
    for number in range(STEPS):
        halves = [gradient.bfloat16() for gradient in gradients_of(number, device=device)]
        give(copies, halves), give(torchs.parameters, halves)
        ours.flat.gather(copies)
        ours.optimizer.step()
        torchs.optimizer.step()
    for a, b, copied in zip(ours.parameters, torchs.parameters, copies, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert torch.equal(copied, a.bfloat16())


@both
def test_parameters_without_gradients_stay_as_they_are(name, gathered, device):
    """Once they get a gradient, Adam corrects the bias by their own number of steps."""
    ours, torchs = (kind(name, device=device, dtype=torch.float64) for kind in (Ours, Torchs))
    ours.gathered = gathered
    frozen = [(), (2, 3), (0,), (7,), (0, 2, 4), tuple(range(len(SHAPES))), (), ()]
    for number, without in enumerate(frozen):
        before = [ours.parameters[index].detach().clone() for index in without]
        ours.step(number, without), torchs.step(number, without)
        assert all(torch.equal(ours.parameters[index], value) for index, value in zip(without, before, strict=True))
    for a, b in zip(ours.parameters, torchs.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    steps = {index: entry["step"].item() for index, entry in torchs.optimizer.state_dict()["state"].items()}
    assert {index: e["step"].item() for index, e in ours.optimizer.state_dict()["state"].items()} == steps
    assert len(set(steps.values())) > 1


@pytest.mark.parametrize(("large", "updates"), [(0, 8), (20, 7), (10**6, 1)])
@both
def test_what_was_gathered_is_updated_at_once_and_what_was_not_is_not_copied(name, large, updates, monkeypatch):
    monkeypatch.setattr(optimizers, "_LARGE", large)
    ours = Ours(name)
    give(ours.parameters, gradients_of(0))
    step = mock.Mock(wraps=getattr(optimizers, f"{name}_"))
    monkeypatch.setattr(optimizers, f"{name}_", step)
    with Operations() as apart:
        ours.optimizer.step()
    assert step.call_count == updates
    assert sum("copy" in operation or "clone" in operation for operation in apart.names) == (large > 0)
    ours.flat.gather()
    with Operations() as together:
        ours.optimizer.step()
    assert step.call_count == updates + 1
    assert not any("copy" in operation or "clone" in operation for operation in together.names)


def test_gradients_in_another_layout_are_taken():
    ours, torchs = Ours("rmsprop"), Torchs("rmsprop")
    give(ours.parameters, gradients_of(0)), give(torchs.parameters, gradients_of(0))
    for parameter in ours.parameters:
        parameter.grad = parameter.grad.contiguous()
    ours.optimizer.step(), torchs.optimizer.step()
    assert_same(ours, torchs)


@both
def test_hooks_closures_and_zero_grad_are_pytorchs(name):
    ours, seen = Ours(name), []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])
    )
    try:
        give(ours.parameters, gradients_of(0))
        ours.flat.gather()
        ours.optimizer.step()
    finally:
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(seen[0], gradients_of(0), strict=True))

    def closure():
        assert torch.is_grad_enabled()
        ours.optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in ours.parameters)
        loss = sum(parameter.sum() for parameter in ours.parameters)
        loss.backward()
        return loss

    before = ours.parameters[0].item()
    assert torch.is_tensor(ours.optimizer.step(closure))
    assert ours.parameters[0].item() < before
    ours.optimizer.zero_grad(set_to_none=False)
    assert not any(parameter.grad.any() for parameter in ours.parameters)


def test_a_schedule_of_pytorchs_works():
    ours = Ours("adam")
    schedule = torch.optim.lr_scheduler.StepLR(ours.optimizer, step_size=1, gamma=0.5)
    for number in range(2):
        ours.step(number)
        schedule.step()
    assert ours.optimizer.param_groups[0]["lr"] == RATE / 4


def test_autograd_refuses_what_a_step_has_overwritten():
    ours = Ours("rmsprop")
    loss = ours.parameters[2].square().sum()
    ours.step(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameters_that_were_moved_out_are_not_updated_in_vain():
    ours = Ours("rmsprop")
    ours.parameters[1].data = ours.parameters[1].data.clone()
    with pytest.raises(RuntimeError, match="parameter 1 was moved out"):
        ours.step(0)


def test_there_is_one_group():
    with pytest.raises(ValueError, match="no other can be added"):
        Ours("rmsprop").optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def saved_and_read(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True), len(file.getvalue())


@both
def test_a_saved_state_is_what_pytorch_saves(name, device):
    ours, torchs = Ours(name, device=device), Torchs(name, device=device, foreach=None)
    assert ours.optimizer.state_dict() == torchs.optimizer.state_dict()
    for number in range(3):
        ours.step(number, without=(3,)), torchs.step(number, without=(3,))
    mine, theirs = ours.optimizer.state_dict(), torchs.optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert mine["state"].keys() == theirs["state"].keys()
    for index, entry in theirs["state"].items():
        assert list(mine["state"][index]) == list(entry)
        for key, value in entry.items():
            other = mine["state"][index][key]
            assert other.dtype == value.dtype
            assert other.device == value.device
            assert other.stride() == value.stride()
            assert other.untyped_storage().nbytes() == other.nbytes
            # An average near 0 has the rounding error of gradients near 1.
            torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-7)
    kept = copy.deepcopy(mine)
    ours.step(3)
    torch.testing.assert_close(mine["state"], kept["state"], rtol=0, atol=0)
    # The file does not contain the flat tensors.
    assert saved_and_read(mine)[1] == pytest.approx(saved_and_read(theirs)[1], rel=0.01)


@pytest.mark.parametrize("target", [Ours, Torchs])
@pytest.mark.parametrize("source", [Ours, Torchs])
@both
def test_a_saved_state_continues_here_and_there(name, source, target):
    whole, first, second = source(name), source(name), target(name, lr=0.5)
    for number in range(4):
        whole.step(number), first.step(number)
    second.optimizer.load_state_dict(saved_and_read(first.optimizer.state_dict())[0])
    assert second.optimizer.param_groups[0]["lr"] == RATE
    with torch.no_grad():
        for a, b in zip(second.parameters, first.parameters, strict=True):
            a.copy_(b)
    for number in range(4, 8):
        whole.step(number), second.step(number)
    assert_same(whole, second)


@both
def test_states_of_other_layouts_dtypes_and_devices_are_taken(name, device):
    contiguous = Torchs(name, dtype=torch.float64, layout=torch.Tensor.contiguous)
    contiguous.step(0)
    ours = Ours(name, device=device)
    ours.optimizer.load_state_dict(contiguous.optimizer.state_dict())
    for a, b in zip(ours.parameters, contiguous.parameters, strict=True):
        for key in AVERAGES[name]:
            value = ours.optimizer.state[a][key]
            assert value.stride() == a.stride()
            assert value.dtype == torch.float32
            assert torch.equal(value.cpu(), contiguous.optimizer.state[b][key].float())
        assert ours.optimizer.state[a]["step"].item() == 1


@pytest.mark.gpu
@both
def test_a_state_of_the_cpu_continues_on_the_gpu_and_back(name):
    cpu, gpu, back = Ours(name), Ours(name, device="cuda"), Ours(name)
    for number in range(3):
        cpu.step(number)
    gpu.optimizer.load_state_dict(cpu.optimizer.state_dict())
    back.optimizer.load_state_dict(gpu.optimizer.state_dict())
    torch.testing.assert_close(back.optimizer.state_dict(), cpu.optimizer.state_dict(), rtol=0, atol=0)


def old_state(name, steps=3):
    """Return a state as PyTorch 1.4 of 2020 saved it: keys are addresses, steps are ints, few settings."""
    torchs = Torchs(name)
    for number in range(steps):
        torchs.step(number)
    groups = {
        "rmsprop": {"lr": RATE, "momentum": 0, "alpha": 0.99, "eps": 1e-8, "centered": False, "weight_decay": 0},
        "adam": {"lr": RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False},
    }
    keys = [140_000_000_000_000 + 72 * (index * 7 % 8) for index in range(len(SHAPES))]
    entries = [torchs.optimizer.state[parameter] for parameter in torchs.parameters]
    state = {key: {**entry, "step": int(entry["step"])} for key, entry in zip(keys, entries, strict=True)}
    return {"state": state, "param_groups": [{**groups[name], "params": keys}]}, torchs


@both
def test_a_state_of_2020_continues(name):
    old, torchs = old_state(name)
    ours = Ours(name, lr=0.5)
    with torch.no_grad():
        for a, b in zip(ours.parameters, torchs.parameters, strict=True):
            a.copy_(b)
    ours.optimizer.load_state_dict(old)
    assert ours.optimizer.param_groups[0].keys() == Torchs(name).optimizer.param_groups[0].keys()
    for number in range(3, 6):
        ours.step(number), torchs.step(number)
    assert_same(ours, torchs)
    # Today's PyTorch can also continue from the state that is saved now.
    again = Torchs(name)
    again.optimizer.load_state_dict(ours.optimizer.state_dict())
    again.step(6)


@both
def test_an_empty_state_is_a_fresh_start(name):
    ours, fresh = Ours(name), Ours(name)
    empty = Torchs(name).optimizer.state_dict()
    assert empty["state"] == {}
    ours.step(0)
    ours.optimizer.load_state_dict(empty)
    with torch.no_grad():
        ours.flat.data.copy_(fresh.flat.data)
    for number in range(3):
        ours.step(number), fresh.step(number)
    assert_same(ours, fresh)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@both
def test_loading_moves_no_memory(name, device):
    """A CUDA graph would continue to use the old memory."""
    ours, other = Ours(name, device=device), Ours(name, device=device)
    other.step(0)
    entries = [ours.optimizer.state[parameter] for parameter in ours.parameters]
    addresses = [value.data_ptr() for entry in entries for value in entry.values()]
    ours.optimizer.load_state_dict(other.optimizer.state_dict())
    entries = [ours.optimizer.state[parameter] for parameter in ours.parameters]
    assert [value.data_ptr() for entry in entries for value in entry.values()] == addresses
    ours.flat.check()
    with torch.no_grad():
        ours.flat.data.copy_(other.flat.data)
    ours.step(1), other.step(1)
    assert_same(ours, other)


def test_a_state_does_not_change_with_the_optimizer_that_loaded_it():
    torchs, ours = Torchs("adam"), Ours("adam")
    torchs.step(0)
    saved = torchs.optimizer.state_dict()
    before = copy.deepcopy(saved)
    ours.optimizer.load_state_dict(saved)
    ours.step(1)
    torch.testing.assert_close(saved, before, rtol=0, atol=0)


def setting(**settings):
    return lambda state: state["param_groups"][0].update(settings)


def first_entry(change):
    return lambda state: change(next(iter(state["state"].values())))


REFUSED = [
    ("rmsprop", setting(momentum=0.9), "momentum, which is not supported"),
    ("rmsprop", setting(centered=True), "with centered"),
    ("rmsprop", setting(weight_decay=0.1), "with weight_decay"),
    ("adam", setting(amsgrad=True), "with amsgrad"),
    ("adam", setting(maximize=True), "with maximize"),
    ("adam", lambda state: state.update(old_state("rmsprop")[0]), "0 has no exp_avg: another optimizer saved it"),
    ("rmsprop", first_entry(lambda entry: entry.pop("step")), "parameter 0 has no step"),
    (
        "rmsprop",
        first_entry(lambda entry: entry.update(square_avg=torch.zeros(2))),
        "square_avg of parameter 0 is \\[2\\], but the parameter is \\[\\]",
    ),
    ("rmsprop", lambda state: state["param_groups"][0]["params"].pop(), "\\[7\\] parameters, but needs one group of 8"),
    (
        "rmsprop",
        lambda state: state["param_groups"].append(state["param_groups"][0]),
        "groups of \\[8, 8\\] parameters",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=range(len(REFUSED)))
def test_states_that_do_not_fit_are_refused_and_change_nothing(name, change, message):
    ours, (state, _) = Ours(name), old_state(name)
    change(state)
    ours.step(0)
    before = ours.optimizer.state_dict()
    with pytest.raises(ValueError, match=message):
        ours.optimizer.load_state_dict(state)
    torch.testing.assert_close(ours.optimizer.state_dict(), before, rtol=0, atol=0)
    ours.step(1)


@pytest.mark.gpu
@both
def test_a_cuda_graph_of_gathering_and_stepping_continues_a_loaded_state(name):
    """Replays after `load_state_dict`, with a frozen parameter, against the same steps without a graph."""
    ungraphed, replayed = (Ours(name, device="cuda", copy_dtype=torch.bfloat16, gathered=True) for _ in range(2))
    copies = [nn.Parameter(view) for view in replayed.flat.views(replayed.flat.copy)]
    static = [torch.zeros_like(parameter) for parameter in replayed.parameters]

    def iteration():
        for index, (copied, gradient) in enumerate(zip(copies, static, strict=True)):
            copied.grad = None if index == 2 else gradient.bfloat16()
        replayed.flat.gather(copies)
        replayed.optimizer.step()

    graph, _ = captured(iteration)
    for number in range(3):
        ungraphed.step(number, without=(2,))
    replayed.optimizer.load_state_dict(ungraphed.optimizer.state_dict())
    replayed.flat.data.copy_(ungraphed.flat.data)
    for number in range(3, 6):
        halves = [gradient.bfloat16() for gradient in gradients_of(number, device="cuda")]
        give(ungraphed.parameters, halves, without=(2,))
        ungraphed.flat.gather()
        ungraphed.optimizer.step()
        for target, half in zip(static, halves, strict=True):
            target.copy_(half)
        graph.replay()
    assert torch.equal(ungraphed.flat.data, replayed.flat.data)
    assert torch.equal(ungraphed.flat.copy, replayed.flat.copy)
    torch.testing.assert_close(
        ungraphed.optimizer.state_dict()["state"], replayed.optimizer.state_dict()["state"], rtol=0, atol=0
    )


@pytest.mark.gpu
@both
def test_a_step_never_waits_for_the_gpu(name):
    ours = Ours(name, device="cuda", copy_dtype=torch.bfloat16)
    ours.step(0)
    give(ours.parameters, gradients_of(1, device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
