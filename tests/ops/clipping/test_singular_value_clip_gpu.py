"""The "cuda" backend on a GPU; tests/csrc tests its accuracy, on CPUs too."""

import subprocess
import sys
import threading

import pytest
import torch
from support.graphs import captured
from support.spectra import TGAN, clipped_by_svd, gaussian, relative_error
from torch._subclasses.fake_tensor import FakeTensorMode

from tgan_fast import VideoDiscriminator
from tgan_fast.nn import constrain_
from tgan_fast.ops import BackendError, backends, singular_value_clip, singular_value_clip_
from tgan_fast.ops.clipping import choose_backends

pytestmark = pytest.mark.gpu


def weights_of_tgan():
    return [gaussian(*shape).cuda() for shape in TGAN]


def test_it_is_there_and_auto_takes_it():
    assert backends()["singular_value_clip"]["cuda"] == "available"
    half, single, double = (torch.ones(2, 2, device="cuda", dtype=d) for d in (torch.half, torch.float, torch.double))
    large = torch.ones(1025, 1025, device="cuda")
    assert choose_backends([half, single, double, large], "auto") == ["cuda", "cuda", "gemm", "gemm"]
    assert choose_backends([half, single, large], "cuda") == ["cuda", "cuda", "gemm"]


def test_float64_on_request():
    fixed, exact = (gaussian(40, 50, top=2).cuda() for _ in range(2))
    before = exact.copy_(fixed).clone()
    singular_value_clip_(fixed, backend="cuda")
    singular_value_clip_(exact, backend="cuda-float64")
    assert not torch.equal(fixed, exact)
    assert relative_error(exact, clipped_by_svd(before, 1.0)) <= 1e-7


def test_larger_weights_are_clipped_too():
    weights = [gaussian(1100, 1200, top=2).cuda(), gaussian(40, 50, top=2).cuda()]
    before = [weight.clone() for weight in weights]
    singular_value_clip_(weights, backend="cuda")
    for weight, original in zip(weights, before, strict=True):
        assert relative_error(weight, clipped_by_svd(original, 1.0)) <= 1e-7


def test_what_it_refuses():
    on_gpu = torch.ones(2, 2, device="cuda")
    with pytest.raises(BackendError, match="float32, float16 and bfloat16, not torch"):
        singular_value_clip(on_gpu.double(), backend="cuda")
    with pytest.raises(BackendError, match="runs on a GPU, not on cpu"):
        singular_value_clip(torch.ones(2, 2), backend="cuda")
    with pytest.raises(BackendError, match="runs on a GPU, not on cpu"):
        singular_value_clip_([on_gpu, torch.ones(2, 2)], backend="cuda")
    with FakeTensorMode() as mode, pytest.raises(BackendError, match="clips plain tensors, not a FakeTensor"):
        singular_value_clip_([mode.from_tensor(on_gpu)], backend="cuda")


def test_auto_takes_each_weight_where_it_is():
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    before = [gaussian(20, 30, top=2).to(device) for device in devices]
    weights = [weight.clone() for weight in before]
    singular_value_clip_(weights)
    for weight, original in zip(weights, before, strict=True):
        assert relative_error(weight, clipped_by_svd(original, 1.0)) <= 1e-7


def test_it_takes_four_launches_and_never_waits_for_the_gpu():
    weights = weights_of_tgan()
    singular_value_clip_(weights, backend="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            singular_value_clip_(weights, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = "quantize", "gram", "shrinkage", "apply"
    assert [name for kernel in kernels for name in names if f"{kernel}_kernel" in name] == names
    assert len(names) == len(kernels)


def test_the_same_bits_every_time():
    weights = weights_of_tgan()
    first = [weight.clone() for weight in weights]
    singular_value_clip_(first, backend="cuda")
    for _ in range(20):
        again = [weight.clone() for weight in weights]
        singular_value_clip_(again, backend="cuda")
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_a_cuda_graph_holds_it():
    static = weights_of_tgan()
    copies = [torch.empty_like(weight, dtype=torch.bfloat16) for weight in static]
    flag = torch.zeros((), dtype=torch.int32, device="cuda")
    graph, _ = captured(lambda: singular_value_clip_(static, copies=copies, non_finite=flag, backend="cuda"))
    # Spectra that need other numbers of polynomials than those at the time of the capture.
    for top in (0.9, 1.01, 2.0, 300.0):
        weights = [gaussian(*shape, top=top).cuda() for shape in TGAN]
        for target, weight in zip(static, weights, strict=True):
            target.copy_(weight)
        graph.replay()
        singular_value_clip_(weights, backend="cuda")
        assert all(torch.equal(a, b) for a, b in zip(static, weights, strict=True))
        assert all(torch.equal(a, b.bfloat16()) for a, b in zip(copies, weights, strict=True))
        assert flag.item() == 0
    static[1][5, 7] = float("inf")
    graph.replay()
    assert flag.item() == 1


def test_a_cuda_graph_holds_calls_of_several_sizes():
    sizes = [(20, 30), (300, 400), (700, 720), (64, 64)]
    static = [gaussian(*size, top=2).cuda() for size in sizes]
    graph, _ = captured(lambda: [singular_value_clip_([weight], backend="cuda") for weight in static])
    before = [gaussian(*size, top=2).cuda() for size in sizes]
    for weight, original in zip(static, before, strict=True):
        weight.copy_(original)
    graph.replay()
    for weight, original in zip(static, before, strict=True):
        assert relative_error(weight, clipped_by_svd(original, 1.0)) <= 1e-7


def test_threads_on_one_stream_do_not_disturb_each_other():
    batches = [weights_of_tgan() for _ in range(4)]
    expected = [[weight.clone() for weight in weights] for weights in batches]
    for weights in expected:
        singular_value_clip_(weights, backend="cuda")
    threads = [threading.Thread(target=singular_value_clip_, args=(weights,)) for weights in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for weights, wanted in zip(batches, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights, wanted, strict=True))


def test_streams_do_not_disturb_each_other():
    batches = [weights_of_tgan() for _ in range(3)]
    expected = [[weight.clone() for weight in weights] for weights in batches]
    for weights in expected:
        singular_value_clip_(weights, backend="cuda")
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batches]
    for stream, weights in zip(streams, batches, strict=True):
        with torch.cuda.stream(stream):
            singular_value_clip_(weights, backend="cuda")
    torch.cuda.synchronize()
    for weights, wanted in zip(batches, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights, wanted, strict=True))


@pytest.mark.alone
def test_in_a_green_context_it_clips_or_raises_but_never_hangs():
    """A separate process is killed if its blocks wait for others that have no multiprocessor."""
    if not pytest.importorskip("torch.cuda.green_contexts").SUPPORTED:
        pytest.skip("needs a PyTorch with green contexts")
    program = (
        "import torch\n"
        "from torch.cuda.green_contexts import GreenContext\n"
        "from tgan_fast.ops import BackendError, singular_value_clip_\n"
        "weight = 2 * torch.eye(512, device='cuda')\n"
        "context = GreenContext.create(num_sms=8, device_id=0)\n"
        "context.set_context()\n"
        "try:\n"
        "    singular_value_clip_([weight], backend='cuda')\n"
        "    print(abs(weight.max().item() - 1) < 1e-6)\n"
        "except BackendError as error:\n"
        "    print(error)\n"
        "context.pop_context()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == "True\n" or "leaves the stream fewer multiprocessors" in result.stdout


def test_a_discriminator_in_one_call():
    network = VideoDiscriminator().cuda()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=3 / parameter[0].numel() ** 0.5)
    other = VideoDiscriminator().cuda()
    other.load_state_dict(network.state_dict())
    constrain_(network, backend="cuda")
    constrain_(other, backend="gemm")
    torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_thousand_random_batches():
    random = torch.Generator().manual_seed(0)
    for _ in range(1000):
        sizes = torch.randint(1, 200, (int(torch.randint(1, 6, (), generator=random)), 2), generator=random).tolist()
        before = [gaussian(*size, top=10 ** float(torch.rand((), generator=random) * 3 - 1)).cuda() for size in sizes]
        weights = [weight.clone() for weight in before]
        singular_value_clip_(weights, backend="cuda")
        for weight, original in zip(weights, before, strict=True):
            assert relative_error(weight, clipped_by_svd(original, 1.0)) <= 2e-7
