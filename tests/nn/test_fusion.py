"""fuse_batch_norm: sequences, and what fusion leaves as it was."""

import copy
import io

import pytest
import torch
from torch import nn

from tgan_fast.nn import BatchNormAct2d, BatchNormAct3d, FusedSequential, fuse_batch_norm
from tgan_fast.ops import native_ops


def fused_copy(network, **options):
    network = copy.deepcopy(network)
    fuse_batch_norm(network, **options)
    return network


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(x + self.norm(x))


def make_network():
    shared = nn.BatchNorm2d(6)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, eps=1e-3, momentum=0.3),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=False), nn.ReLU(), Residual(6)),
        shared,
        nn.ReLU(),
        nn.Conv2d(6, 6, 1),
        shared,
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(216, 5),
        nn.BatchNorm1d(5, momentum=None),
    )


def test_a_fused_network_trains_like_the_original(device):
    baseline = make_network().to(device)
    fused = fused_copy(baseline)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (baseline, fused)]
    assert not any(type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) for module in fused.modules())
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8, device=device)
        outputs = [network(x) for network in (baseline, fused)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(fused.state_dict(), baseline.state_dict(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.eval()(x), baseline.eval()(x), rtol=1e-4, atol=1e-5)


class Block(nn.Sequential):
    """Typical class of a network's block."""

    def __init__(self, channels):
        super().__init__(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.LeakyReLU(0.2))


class Caller(nn.Module):
    """Network that also calls the layers of its sequences one by one, as networks that return features do."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Block(4))
        self.norm = nn.Sequential(nn.BatchNorm2d(4), nn.LeakyReLU(0.1))

    def forward(self, x):
        normalized = self.features[1](self.features[0](x))
        return self.norm[0](normalized), self.norm(normalized), self.features(x)


def both():
    """Return a network and its fused copy."""
    baseline = Caller().double()
    return baseline, fused_copy(baseline)


VIDEO = 4, 3, 6, 6


def assert_same(got, expected):
    for mine, truth in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-12)


def assert_same_in_every_mode(network, baseline):
    """Check outputs in training and evaluation, and the statistics afterwards."""
    x = torch.randn(VIDEO, dtype=torch.float64)
    for mode in (True, True, False):
        assert_same(network.train(mode)(x), baseline.train(mode)(x))
    assert_same(
        [t.double() for t in network.state_dict().values()], [t.double() for t in baseline.state_dict().values()]
    )


def test_fusion_changes_only_the_classes_of_modules():
    network = make_network().eval()
    network[1].weight.requires_grad_(False)
    network[1].my_flag = 3
    network.append(Block(2))
    modules, state = list(network.modules()), network.state_dict(keep_vars=True)
    attributes = [{**vars(module)} for module in modules]
    fuse_batch_norm(network, backend="torch")
    assert all(now is before for now, before in zip(network.modules(), modules, strict=True))
    for module, before in zip(modules, attributes, strict=True):
        added = vars(module).keys() - before.keys()
        of_norm = {"negative_slope", "activation", "process_group", "backend"}
        of_forward = {"_plans"} if isinstance(module, Residual) else set()
        assert added == (of_norm if hasattr(module, "running_mean") else of_forward)
        assert all(vars(module)[name] is value for name, value in before.items())
    assert all(now is state[name] for name, now in network.state_dict(keep_vars=True).items())
    assert (network[1].my_flag, network[1].backend, network[1].negative_slope) == (3, "torch", 1.0)
    assert [type(network[i]) for i in (1, 2, 5, 8)] == [BatchNormAct2d, nn.LeakyReLU, nn.ReLU, nn.Tanh]
    assert isinstance(network, FusedSequential)
    assert isinstance(network[-1], FusedSequential)
    assert isinstance(network[-1], Block)


def test_slices_and_indices_mean_what_they_meant():
    baseline, network = both()
    assert_same_in_every_mode(network, baseline)
    assert type(network.features[:2]) is FusedSequential
    x = torch.randn(VIDEO, dtype=torch.float64)
    for end in range(1, 5):
        assert_same([network.features[:end](x)], [baseline.features[:end](x)])


@pytest.mark.parametrize(
    "module", [nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), Block(3)], ids=["sequential", "subclass"]
)
def test_a_pair_is_one_operation(module, monkeypatch):
    x = torch.randn(2, 3, 4, 4)
    expected = module.eval()(x)
    fuse_batch_norm(module)
    monkeypatch.delattr(nn.ReLU, "forward")
    monkeypatch.delattr(nn.LeakyReLU, "forward")
    assert torch.equal(module(x), expected)


def test_what_is_changed_after_fusion_counts():
    baseline, network = both()
    for part in (baseline, network):
        part.features[2] = nn.Tanh()
    assert_same_in_every_mode(network, baseline)
    for part in (baseline, network):
        part.norm[1].forward = torch.sin
    assert_same_in_every_mode(network, baseline)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("position", [1, 2], ids=["norm", "activation"])
def test_hooks_see_what_they_saw(position, when):
    baseline = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1)).eval()
    x, seen, expected = torch.randn(2, 3, 4, 4), [], []
    baseline.register_forward_hook(lambda *_: None)
    network = copy.deepcopy(baseline)
    baseline[position].register_forward_hook(lambda module, inputs, output: expected.extend([*inputs, output]))
    if when == "after":
        fuse_batch_norm(network)
    handle = network[position].register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    fuse_batch_norm(network)
    assert torch.equal(network(x), baseline(x))
    assert len(seen) == 2
    assert all(torch.equal(got, wanted) for got, wanted in zip(seen, expected, strict=True))
    handle.remove()
    network(x)
    assert len(seen) == 2


def test_hooks_of_all_modules_see_every_module():
    network = fused_copy(Block(3))
    seen = []
    with nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(module)):
        network(torch.randn(2, 3, 4, 4))
    assert seen == [*network, network]


def test_a_fused_network_can_be_copied_and_saved():
    baseline, network = both()
    assert_same_in_every_mode(copy.deepcopy(network), copy.deepcopy(baseline))
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded.features[3], Block)
    assert isinstance(loaded.features[3], FusedSequential)
    assert_same_in_every_mode(loaded, baseline)


def test_other_slopes_than_a_leaky_relus():
    """Autograd cannot differentiate a negative slope in place, and zero times infinity is NaN."""
    for slope in (-0.5, 3.0, float("inf")):
        baseline = nn.Sequential(nn.BatchNorm2d(3), nn.LeakyReLU(slope)).double()
        network = fused_copy(baseline)
        x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
        grads = [torch.autograd.grad(part(x).square().sum(), list(part.parameters())) for part in (network, baseline)]
        assert torch.equal(network(x), baseline(x))
        if slope < float("inf"):
            assert_same(*grads)


def test_torch_jit_script_compiles_a_fused_network():
    baseline, network = both()
    for part in (baseline, network):
        part.features[1].momentum = None
        part.norm[0].track_running_stats = False
    scripted = torch.jit.script(network)
    assert_same_in_every_mode(scripted, baseline)
    with pytest.raises(ValueError, match=r"torch\.jit\.script cannot combine statistics of processes"):
        torch.jit.script(fused_copy(Block(3), process_group="group"))


def test_torch_fx_traces_a_fused_network():
    baseline, network = both()
    traced = torch.fx.symbolic_trace(network)
    traced.graph.lint()
    assert traced.get_submodule("norm.0") is network.norm[0]
    assert_same_in_every_mode(traced, baseline)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torch_jit_trace_and_torch_export_take_a_fused_network():
    baseline, network = both()
    x = torch.randn(VIDEO, dtype=torch.float64)
    expected = baseline.eval()(x)
    assert_same(torch.jit.trace(network.eval(), x)(x), expected)
    # torch.export reads a flag of PyTorch that the tests set only for convolutions.
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision
    with native_ops():
        program = torch.export.export(network, (x,), dynamic_shapes={"x": {0: torch.export.Dim("N")}})
    assert_same(program.module()(x[:3]), baseline(x[:3]))


@pytest.mark.parametrize("dynamic", [None, True])
def test_torch_compile_takes_a_fused_network_as_one_graph(dynamic):
    baseline, network = both()
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    x = torch.randn(VIDEO, dtype=torch.float64)
    grads = [
        torch.autograd.grad(sum(y.square().sum() for y in call(x)), list(network_.parameters()))
        for call, network_ in ((compiled, network), (baseline, baseline))
    ]
    assert_same(*grads)
    assert_same(compiled(x), baseline(x))


def test_a_batch_norm_alone():
    baseline = nn.BatchNorm3d(4)
    assert fuse_batch_norm(baseline, process_group="group").fused == {}
    assert type(baseline) is BatchNormAct3d
    assert baseline.process_group == "group"


def test_only_modules_can_be_fused():
    with pytest.raises(TypeError, match=r"takes an nn\.Module and got an object of type dict"):
        fuse_batch_norm({})


def test_fusion_leaves_alone_what_it_does_not_know():
    class OwnBatchNorm(nn.BatchNorm2d):
        pass

    class OwnOrder(nn.Sequential):
        def forward(self, x):
            return self[1](x)

    network = nn.Sequential(OwnBatchNorm(3), nn.ReLU(), OwnOrder(nn.BatchNorm2d(3), nn.ReLU()), nn.BatchNorm2d(3))
    network.append(nn.Tanh())
    report = fuse_batch_norm(network)
    assert report.fused == {}
    assert report.left == {
        "0": f"{__name__}.{OwnBatchNorm.__qualname__} is not one of nn.BatchNorm1d, 2d and 3d",
        "2.0": "nothing to fuse it with follows where it is called",
        "3": "Tanh follows",
    }
    assert [type(part) for part in network] == [OwnBatchNorm, nn.ReLU, OwnOrder, BatchNormAct2d, nn.Tanh]
    assert type(network) is nn.Sequential


def test_a_sequence_in_a_sequence_may_end_with_the_batch_norm(monkeypatch):
    baseline = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.SiLU())
    network = copy.deepcopy(baseline)
    assert fuse_batch_norm(network).fused == {"0.1": "SiLU"}
    x = torch.randn(VIDEO)
    expected = baseline(x)
    monkeypatch.delattr(nn.SiLU, "forward")
    torch.testing.assert_close(network(x), expected)
