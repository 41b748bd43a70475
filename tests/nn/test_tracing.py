"""Forwards that fuse_batch_norm leaves as they are, and when a fused forward gives way to the original one."""

import copy
import inspect
import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tgan_fast.nn import FusedModule, fuse_batch_norm

CONSTANT = torch.tensor(3.0, dtype=torch.float64)
FOUND = []  # what a forward keeps outside its module


class Inner(nn.Module):
    def features(self, x):
        return F.dropout(x, 0.5, self.training)


class Factor:
    def __call__(self):
        return 2


class Net(nn.Module):
    """Network with a forward of the test's."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.other = nn.BatchNorm2d(4)
        self.twin = nn.Sequential(nn.Identity(), self.norm)
        self.tail = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.table, self.size, self.drop, self.calls = {"key": 2}, torch.Size([4]), nn.Dropout2d(0.5), 0
        self.inner, self.factor = Inner(), Factor()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def net_of(function):
    torch.manual_seed(0)
    return Net(function).double()


# ---- forwards that are left alone, by the reason in the report


def output_used_twice(self, x):
    y = self.norm(x)
    return F.relu(y) + y


def output_doubled(self, x):
    y = self.norm(x)
    return F.relu(y + y)


def output_unused(self, x):
    self.norm(x)
    return self.conv(x)


def view_between(self, x):
    return F.relu(self.norm(x).flatten(1))


def index_between(self, x):
    return F.relu(self.norm(x)[:, 1:])


def other_activation(self, x):
    return torch.tanh(self.norm(x))


def exact_gelu(self, x):
    return F.gelu(self.norm(x))


def returned(self, x):
    return self.norm(x)


def number_added(self, x):
    return F.relu(self.norm(x) + 1)


def scaled_addition(self, x):
    return F.relu(torch.add(self.norm(x), x, alpha=2))


def added_in_place_to_the_input(self, x):
    y = self.conv(x)
    y += self.norm(x)
    return F.relu(y)


def residual_changed_afterwards(self, x):
    shortcut = self.conv(x)
    y = F.relu(self.norm(x) + shortcut)
    return y * shortcut.mul_(2)


def input_changed_before_the_activation(self, x):
    x = self.conv(x)
    y = self.norm(x)
    x.mul_(2)
    return F.relu(y) + x


def view_of_the_input_changed(self, x):
    x = self.conv(x)
    view = x.flatten(2)
    y = self.norm(x)
    view.mul_(2)
    return F.relu(y) + x


def called_through_another_path(self, x):
    y = self.norm(x)
    z = self.twin(2 * x + 1)
    return F.relu(y) + z


def random_numbers_in_between(self, x):
    y = self.tail(x)
    shortcut = self.drop(self.conv(x))
    return F.relu(y + shortcut)


REFUSED_CALLS = {
    output_used_twice: "its output is used 2 times",
    output_doubled: "what is added to it is not another tensor",
    output_unused: "its output is used 0 times",
    view_between: "flatten follows",
    index_between: "getitem follows",
    other_activation: "tanh follows",
    exact_gelu: "gelu follows",
    returned: "forward returns its output",
    number_added: "what is added to it is not another tensor",
    scaled_addition: "the addition has other arguments than two tensors",
    added_in_place_to_the_input: "it is added in place to another tensor",
    residual_changed_afterwards: "what is added to it is changed in place afterwards",
    input_changed_before_the_activation: "its input may change before its output is used",
    view_of_the_input_changed: "its input may change before its output is used",
    random_numbers_in_between: "its input may change before its output is used",
}

# ---- forwards that torch.fx would trace wrongly, or not at all


def data_decide(self, x):
    return F.relu(self.norm(x)) if x.mean() > 0 else self.norm(x)


def shapes_decide(self, x):
    return F.relu(self.norm(x)) if x.shape[2] > 3 else self.norm(x)


def random_numbers_decide(self, x):
    return F.relu(self.norm(x)) * (2 if torch.rand(()) < 0.5 else 1)


def python_random_numbers(self, x):
    return F.relu(self.norm(x)) * random.choice([1, 2])


def numpy_random_numbers(self, x):
    return F.relu(self.norm(x)) * int(np.random.choice([1, 2]))


def mode_decides(self, x):
    return F.relu(self.norm(x)) * (2 if torch.is_grad_enabled() else 1)


def without_gradients(self, x):
    with torch.no_grad():
        y = self.conv(x)
    return F.relu(self.norm(y))


def without_autocast(self, x):
    with torch.autocast("cpu", enabled=False):
        y = self.conv(x)
    return F.relu(self.norm(y))


def checkpointed(self, x):
    return checkpoint(lambda x: F.relu(self.norm(x)), x, use_reentrant=False)


def counts(self, x):
    self.calls += 1
    return F.relu(self.norm(x))


def keeps(self, x):
    FOUND.append(self.conv(x))
    return F.relu(self.norm(FOUND[-1]))


def changes_a_table(self, x):
    self.table["key"] += 1
    return F.relu(self.norm(x)) * self.table["key"]


def reads_an_object(self, x):
    return F.relu(self.norm(x)) * len(self.state)


def uses_a_tensor(self, x):
    return F.relu(self.norm(x)) * self.constant


def uses_a_global_tensor(self, x):
    return F.relu(self.norm(x)) * CONSTANT


def asks_for_a_type(self, x):
    y = self.conv(x)
    return F.relu(self.norm(y)) if isinstance(y, torch.Tensor) else y


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, dy):
        return -dy


def reverses_gradients(self, x):
    return Reversed.apply(F.relu(self.norm(x)))


def calls_a_method_of_another_module(self, x):
    return F.relu(self.norm(self.inner.features(x)))


def reads_another_module(self, x):
    return F.relu(self.norm(x)) * self.drop.p


def freezes_statistics(self, x):
    self.norm.eval()
    return F.relu(self.norm(x))


def follows_the_parameters(self, x):
    return F.relu(self.norm(x.to(next(self.parameters()).dtype)))


def handles_exceptions(self, x):
    y = F.relu(self.norm(x))
    try:
        return y.transpose(1, 2).view(3, -1)
    except RuntimeError:
        return y.transpose(1, 2).reshape(3, -1)


def sets_an_attribute_of_a_tensor(self, x):
    y = self.conv(x)
    y.data = 2 * y.data
    return F.relu(self.norm(y))


def shows_a_tensor(self, x):
    assert f"{x}"
    return F.relu(self.norm(x))


def seeds(self, x):
    torch.manual_seed(7)
    return F.dropout(F.relu(self.norm(x)))


def asks_for_the_class(self, x):
    return F.relu(self.norm(x)) if type(x) is torch.Tensor else x


def prints(self, x):
    print("forward")
    return F.relu(self.norm(x))


def counts_children(self, x):
    return F.relu(self.norm(x)) * len(list(self.children()))


def calls_an_object(self, x):
    return F.relu(self.norm(x)) * self.factor()


class Sequence(list):
    pass


REFUSED_FORWARDS = {
    data_decide: "torch.fx cannot trace it: symbolically traced variables cannot be used as inputs to control flow",
    shapes_decide: "torch.fx cannot trace it: symbolically traced variables cannot be used as inputs to control flow",
    random_numbers_decide: "it computes a tensor that does not depend on its arguments",
    python_random_numbers: "it draws random numbers outside of tensors",
    numpy_random_numbers: "it draws random numbers outside of tensors",
    mode_decides: "it depends on the mode of autograd or autocast",
    without_gradients: "it changes the mode of autograd or autocast",
    without_autocast: "it changes the mode of autograd or autocast",
    checkpointed: "",
    counts: "it sets self.calls",
    keeps: "it keeps a tensor for later",
    changes_a_table: "it changes its own attributes",
    reads_an_object: "it reads self.state, an object of type set, which may change",
    uses_a_tensor: "it reads self.constant, an object of type Tensor, which may change",
    reverses_gradients: "it calls a torch.autograd.Function",
    calls_a_method_of_another_module: "it calls features of a Inner",
    reads_another_module: "it reads p of a Dropout2d",
    freezes_statistics: "it sets training of a BatchNormAct2d",
    follows_the_parameters: "it reads self.parameters",
    handles_exceptions: "it handles exceptions",
    sets_an_attribute_of_a_tensor: "it sets an attribute of a tensor",
    shows_a_tensor: "it shows a tensor as text",
    seeds: "it draws random numbers outside of tensors",
    asks_for_the_class: "it calls type",
    prints: "it calls print",
    counts_children: "it reads self.children",
    calls_an_object: "it reads self.factor, an object of type Factor, which may change",
    uses_a_global_tensor: "it uses a tensor that is neither a parameter nor a buffer",
    asks_for_a_type: "it asks for the type of an intermediate result",
}


def images():
    return torch.randn(3, 4, 5, 5, dtype=torch.float64)


def assert_same(network, baseline, *arguments, **options):
    """Check outputs, gradients and buffers, with random numbers from the same seed."""
    outcomes = []
    for module in (network, baseline):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        own = copy.deepcopy(arguments)
        y = module(*own, **options)
        grads = ()
        if y.requires_grad:
            grads = torch.autograd.grad(y.square().sum(), list(module.parameters()), allow_unused=True)
        outcomes.append([y, *grads, *module.buffers(), *own])
    torch.testing.assert_close(*outcomes, rtol=1e-10, atol=1e-12)


def fused_copy(baseline):
    network = copy.deepcopy(baseline)
    return network, fuse_batch_norm(network)


@pytest.mark.parametrize("function", REFUSED_CALLS, ids=lambda function: function.__name__)
def test_calls_that_are_left_alone(function):
    baseline = net_of(function)
    network, report = fused_copy(baseline)
    name = "tail.1" if function is random_numbers_in_between else "norm"
    assert report.left[name] == REFUSED_CALLS[function]
    for training in (True, False):
        # Autograd cannot differentiate the original either if the input of its batch norm changes.
        with torch.set_grad_enabled(function not in (input_changed_before_the_activation, view_of_the_input_changed)):
            assert_same(network.train(training), baseline.train(training), images())


@pytest.mark.parametrize("function", REFUSED_FORWARDS, ids=lambda function: function.__name__)
def test_forwards_that_are_left_alone(function):
    baseline = net_of(function)
    baseline.state, baseline.constant = {1, 2}, torch.tensor(3.0).double()
    network, report = fused_copy(baseline)
    assert report.fused == {}
    prefix = "forward of Net is left as it is: "
    assert report.left["norm"].startswith(prefix)
    assert report.left["norm"].removeprefix(prefix).startswith(REFUSED_FORWARDS[function])
    assert not isinstance(network, FusedModule)
    FOUND.clear()
    for training in (True, False):
        assert_same(network.train(training), baseline.train(training), images())
    assert all(isinstance(tensor, torch.Tensor) for tensor in FOUND)
    assert network.calls == baseline.calls
    assert network.table == baseline.table


# ---- forwards that are fused, and what a user may change afterwards


def two_calls(self, x):
    first = self.norm(x)
    second = F.relu(self.norm(2 * x))
    return F.relu(first) + second


@pytest.mark.parametrize("function", [two_calls, called_through_another_path])
def test_two_calls_of_a_batch_norm_keep_their_order(function):
    baseline = net_of(function)
    network, _ = fused_copy(baseline)
    assert_same(network, baseline, images())


def what_a_tensor_is(self, x):
    y = F.relu(self.norm(x)) * (2 if torch.is_tensor(x) else 3)
    return y * (1 if getattr(x, "mask", None) is None else 2) / np.sqrt(5)


def through_an_identity(self, x):
    return self.relu(self.twin[0](self.norm(x)) + x)


@pytest.mark.parametrize("function", [what_a_tensor_is, through_an_identity])
def test_more_that_is_fused(function):
    baseline = net_of(function)
    network, report = fused_copy(baseline)
    assert "norm" in report.fused
    assert_same(network, baseline, images())


def test_the_type_of_the_output_stays():
    network = net_of(lambda self, x: Sequence([F.relu(self.norm(x))]))
    assert fuse_batch_norm(network).left["norm"].endswith("it makes an object of type Sequence")
    assert type(network(images())) is Sequence


def test_the_layout_of_a_sum_stays():
    baseline = net_of(lambda self, x: F.relu(x.contiguous() + self.norm(x)))
    network, _ = fused_copy(baseline)
    x = images().to(memory_format=torch.channels_last)
    assert network(x).stride() == baseline(x).stride()


def test_tracing_leaves_random_numbers_alone():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for function in (seeds, python_random_numbers, numpy_random_numbers):
        fuse_batch_norm(net_of(function))
        torch.set_rng_state(states[2])  # net_of seeds it
        fuse_batch_norm(Net(function))
        assert str((random.getstate(), np.random.get_state())) == str(states[:2])


def test_options_of_a_second_call_count():
    network = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    fuse_batch_norm(network)
    fuse_batch_norm(network, backend="torch", process_group="group")
    assert (network[0].backend, network[0].process_group) == ("torch", "group")


class Optional(nn.Module):
    """Block with what forwards often have: options, an absent module, an argument with a default, a list of layers."""

    scale = 2

    def __init__(self):
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        self.downsample, self.rate, self.act = None, 0.0, F.relu
        self.last, self.spare = nn.BatchNorm2d(4), nn.Identity()

    def forward(self, x, skip=None, *, factor=1):
        for layer in self.layers:
            x = layer(x)
        x = x if self.spare is None else 2 * self.spare(x)
        y = self.relu(self.norm(x) + (x if self.downsample is None else self.downsample(x)))
        if self.rate > 0:
            y = F.dropout(y, self.rate, self.training)
        if skip is not None:
            y = y + skip
        if hasattr(self, "gain"):
            y = y * self.gain
        return self.act(self.last(y)) * factor * self.scale


def set_attribute(name, value, network):
    setattr(network, name, value)


def append_a_layer(network):
    network.layers.append(nn.Conv2d(4, 4, 1, bias=False).double())
    nn.init.eye_(network.layers[-1].weight.view(4, 4))


def replace_a_layer(network):
    network.layers[0] = nn.Identity()


def add_a_shortcut(network):
    network.downsample = nn.Conv2d(4, 4, 1, bias=False).double()
    nn.init.ones_(network.downsample.weight)


CHANGES = {
    "nothing": lambda network: None,
    "option": partial(set_attribute, "rate", 0.5),
    "class-attribute": partial(set_attribute, "scale", 3),
    "new-attribute": partial(set_attribute, "gain", 3.0),
    "function": partial(set_attribute, "act", torch.tanh),
    "shortcut": add_a_shortcut,
    "no-shortcut": partial(set_attribute, "spare", None),
    "more-layers": append_a_layer,
    "another-layer": replace_a_layer,
    "another-activation": partial(set_attribute, "relu", nn.Tanh()),
    "another-slope": partial(set_attribute, "relu", nn.LeakyReLU(0.1)),
    "no-batch-norm": partial(set_attribute, "norm", nn.Identity()),
    "forward": partial(set_attribute, "forward", torch.sin),
    "forward-of-the-activation": lambda network: set_attribute("forward", torch.sin, network.relu),
    "synchronized": lambda network: nn.SyncBatchNorm.convert_sync_batchnorm(network).eval(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_after_fusion_counts(change):
    torch.manual_seed(0)
    baseline = Optional().double()
    network, report = fused_copy(baseline)
    assert report.fused == {"norm": "residual + ReLU", "last": "relu"}
    for module in (network, baseline):
        change(module)
    for training in (True, False):
        if change is not CHANGES["synchronized"]:
            network.train(training)
            baseline.train(training)
        assert_same(network, baseline, images())


def test_arguments_of_every_kind():
    baseline = Optional().double()
    network, _ = fused_copy(baseline)
    x = images()
    assert_same(network, baseline, x, x)
    assert_same(network, baseline, x, skip=x)
    assert_same(network, baseline, x, None, factor=3)
    for module in (network, baseline):
        torch.testing.assert_close(module(x=x), module(x))
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            module()
        with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
            module(x, other=1)


def test_hooks_added_after_fusion_see_what_they_saw():
    torch.manual_seed(0)
    baseline = Optional().double().eval()
    network, _ = fused_copy(baseline)
    x, seen = images(), {}
    for module in (network, baseline):
        of_module = seen[module] = []
        for child in module.modules():
            child.register_forward_hook(lambda child, inputs, output, of=of_module: of.append(output.clone()))
        module(x)
    torch.testing.assert_close(seen[network], seen[baseline])
    assert len(seen[network]) == 7
    with nn.modules.module.register_module_forward_hook(lambda child, inputs, output: seen[network].append(child)):
        network(x)
    assert len(seen[network]) == 21


def test_hooks_before_fusion_are_respected():
    for name in ("norm", "relu"):
        network = net_of(lambda self, x: self.relu(self.norm(x)))
        network.get_submodule(name).register_forward_hook(lambda *_: None)
        report = fuse_batch_norm(network)
        assert report.fused == {}
        assert "hooks" in report.left["norm"]


def fusible(self, x):
    return self.relu(self.norm(self.conv(x)))


class OwnCopies(Net):
    def __reduce__(self):
        return OwnCopies, (self.function,), vars(self)


class Registered(Net):
    names = ()

    def __init_subclass__(cls):
        Registered.names += (cls.__name__,)


class Scaled(Net):
    def __init__(self, function):
        super().__init__(function)
        self.scale = nn.Parameter(torch.ones(4))
        nn.utils.parametrize.register_parametrization(self, "scale", nn.Softplus())


class Replaced(Net):
    def __init__(self, function):
        super().__init__(function)
        self.forward = partial(function, self)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (OwnCopies, "its class has a way of its own to be copied"),
        (Scaled, "it is parametrized"),
        (Replaced, "its forward was replaced"),
    ],
)
def test_classes_that_are_left_alone(cls, reason):
    network = cls(fusible).double()
    kind, x = type(network), images()
    expected = network.eval()(x)
    assert reason in fuse_batch_norm(network).left["norm"]
    assert type(network) is kind
    torch.testing.assert_close(network(x), expected)


def test_registries_of_classes_see_no_new_ones():
    network = Registered(fusible)
    assert fuse_batch_norm(network).fused == {"norm": "ReLU"}
    assert Registered.names == ()


def test_other_batch_norms_are_named():
    class Own(nn.BatchNorm2d):
        pass

    network = nn.Sequential(Own(3), nn.ReLU(), nn.SyncBatchNorm(3), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU())
    report = fuse_batch_norm(network)
    assert report.fused == {"4": "ReLU"}
    assert report.left == {
        "0": f"{__name__}.{Own.__qualname__} is not one of nn.BatchNorm1d, 2d and 3d",
        "2": "SyncBatchNorm is left alone: pass process_group instead",
    }


def test_fusing_twice_changes_nothing():
    baseline = Optional().double()
    network, report = fused_copy(baseline)
    kinds = [type(module) for module in network.modules()]
    assert fuse_batch_norm(network) == report
    assert [type(module) for module in network.modules()] == kinds
    assert_same(network, baseline, images())


def test_fusing_again_follows_a_change():
    network, _ = fused_copy(Optional())
    network.act = torch.tanh
    assert fuse_batch_norm(network).left == {"last": "tanh follows"}


def test_torch_jit_script_says_what_to_do():
    network, _ = fused_copy(Optional())
    with pytest.raises(TypeError, match=r"torch\.jit\.script cannot compile the fused Optional: script the network"):
        torch.jit.script(network)


def test_the_signature_of_forward_stays():
    network, _ = fused_copy(Optional())
    assert inspect.signature(network.forward) == inspect.signature(Optional().forward)
