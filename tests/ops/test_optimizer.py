"""rmsprop_ and adam_ against PyTorch's optimizers; without a GPU, Triton's interpreter runs the Triton kernels."""

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from support.graphs import captured
from support.pairwise import covering

from tgan_fast.ops import BackendError, adam_, optimizer, rmsprop_
from tgan_fast.ops.cpu_extension import WHY_NOT_LOADED
from tgan_fast.ops.dispatch import TRITON_IS_INSTALLED

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [1, 7, 1024, 3001, 70_001]  # the last needs two threads of a CPU
STEPS = 6
NAN = float("nan")
every_backend = pytest.mark.parametrize("backend", ["torch", "triton", "cpu"])
needs_triton = pytest.mark.skipif(not TRITON_IS_INSTALLED, reason="needs Triton")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend_device(request, backend):
    """Return the device on which the backend of a test runs."""
    on_gpu = request.param == "cuda"
    if backend == "triton" and not TRITON_IS_INSTALLED:
        pytest.skip("needs Triton")
    if backend == "triton" and not on_gpu and torch.cuda.is_available():
        pytest.skip("Triton's interpreter stands in only where there is no GPU")
    if backend == "cpu" and (WHY_NOT_LOADED or on_gpu):
        pytest.skip(WHY_NOT_LOADED or "runs on a CPU only")
    return torch.device(request.param)


class Own:
    """State of our operations, inside larger tensors whose other elements are NaN and must stay NaN."""

    def __init__(self, name, start, backend="auto", copy_dtype=None, shift=16):
        def surrounded(values):
            tensor = torch.full((len(values) + 2 * shift,), NAN, dtype=values.dtype, device=values.device)
            self.whole.append(tensor)
            tensor[shift : shift + len(values)] = values
            return tensor[shift : shift + len(values)]

        self.whole, self.shift, self.backend = [], shift, backend
        self.operation = {"rmsprop": rmsprop_, "adam": adam_}[name]
        self.parameter = surrounded(start)
        self.averages = [surrounded(torch.zeros_like(start)) for _ in range({"rmsprop": 1, "adam": 2}[name])]
        self.copy = None if copy_dtype is None else surrounded(torch.full_like(start, NAN, dtype=copy_dtype))
        self.number = [torch.zeros((), device=start.device)] if name == "adam" else []

    def step(self, gradient, **options):
        for number in self.number:
            number += 1
        self.operation(
            self.parameter, gradient, *self.averages, *self.number, copy=self.copy, backend=self.backend, **options
        )

    def assert_nothing_else_was_written(self):
        for tensor in self.whole:
            assert tensor[: self.shift].isnan().all()
            assert tensor[-self.shift :].isnan().all()
            assert tensor[self.shift : -self.shift].isfinite().all()


class Torchs:
    """PyTorch's own optimizer for a tensor."""

    def __init__(self, name, start, **options):
        self.parameter = torch.nn.Parameter(start.clone())
        kind = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}[name]
        self.optimizer = kind([self.parameter], foreach=False, **options)

    def step(self, gradient):
        self.parameter.grad = gradient.to(self.parameter.dtype)
        self.optimizer.step()


def start_and_gradients(length, device, dtype=torch.float32, gradient_dtype=None):
    """Return parameters, and gradients of very different magnitudes, some of them 0."""
    start = torch.randn(length, device=device, dtype=dtype) * 1e-2
    gradients = torch.randn(STEPS, length, device=device, dtype=dtype) * 10 ** torch.empty_like(start).uniform_(-9, 3)
    gradients[:, 1::5] = 0
    return start, gradients.to(gradient_dtype or dtype)


def error(got, exact, start):
    """Return the error relative to the distance that the parameters moved."""
    return ((got.double() - exact).norm() / (exact - start.double()).norm()).item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_on_a_cpu_the_torch_backend_has_pytorchs_numbers_bit_for_bit(name, dtype):
    for length in (*LENGTHS, 2 * optimizer._CHUNK + 5):
        start, gradients = start_and_gradients(length, "cpu", dtype)
        own, torchs = Own(name, start, "torch"), Torchs(name, start, lr=1e-2)
        for gradient in gradients:
            own.step(gradient, learning_rate=1e-2)
            torchs.step(gradient)
        assert torch.equal(own.parameter, torchs.parameter), length
        own.assert_nothing_else_was_written()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_the_torch_backend_is_as_accurate_as_pytorch(name, dtype, device):
    start, gradients = start_and_gradients(1001, device, dtype)
    own, torchs = Own(name, start, "torch"), Torchs(name, start, lr=1e-2)
    exact = Torchs(name, start.double(), lr=1e-2)
    for gradient in gradients:
        own.step(gradient, learning_rate=1e-2)
        torchs.step(gradient)
        exact.step(gradient)
    bound = 2 * error(torchs.parameter.detach(), exact.parameter.detach(), start)
    assert error(own.parameter, exact.parameter.detach(), start) <= max(bound, 1e-14)


# Options for which the kernels are compiled anew, in all combinations.
COMPILED = covering(
    {
        "name": ["rmsprop", "adam"],
        "backend": ["triton", "cpu"],
        "gradient_dtype": [torch.float32, torch.bfloat16, torch.float16],
        "length": LENGTHS,
        "shift": [16, 3],  # aligned and not aligned
    },
    lambda row: True,
)


@pytest.mark.parametrize(COMPILED[0].keys(), [row.values() for row in COMPILED], ids=str)
def test_the_kernels_are_as_accurate_as_pytorch(name, backend, gradient_dtype, length, shift, backend_device):
    start, gradients = start_and_gradients(length, backend_device, gradient_dtype=gradient_dtype)
    own, torchs = Own(name, start, backend, shift=shift), Torchs(name, start, lr=1e-2)
    exact = Torchs(name, start.double(), lr=1e-2)
    for gradient in gradients:
        own.step(gradient, learning_rate=1e-2)
        torchs.step(gradient)
        exact.step(gradient)
    exact = exact.parameter.detach()
    # A few values may round well by chance; adding the steps to the start values rounds as well.
    rounding = torch.finfo(torch.float32).eps * start.norm().item() / (exact - start.double()).norm().item()
    assert error(own.parameter, exact, start) <= 2 * error(torchs.parameter.detach(), exact, start) + rounding
    own.assert_nothing_else_was_written()


@every_backend
@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_a_learning_rate_in_the_devices_memory_is_that_of_every_step(name, backend, backend_device):
    start, gradients = start_and_gradients(1001, backend_device)
    rate, own = torch.tensor(0.0, device=backend_device), Own(name, start, backend)
    exact = Torchs(name, start.double(), lr=1.0)
    for number, gradient in enumerate(gradients):
        exact.optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
        own.step(gradient, learning_rate=rate.fill_(1e-2 / (1 + number)))
        exact.step(gradient)
    assert error(own.parameter, exact.parameter.detach(), start) <= 1e-6


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_a_learning_rate_of_another_dtype_is_refused(name):
    own = Own(name, torch.ones(5), "torch")
    with pytest.raises(ValueError, match=r"learning_rate must be one float32 on cpu, and is \[\] torch.float64 on cpu"):
        own.step(torch.ones(5), learning_rate=torch.tensor(0.1, dtype=torch.float64))


def rounded(parameter, dtype, backend):
    """Return `parameter.to(dtype)`; Triton's interpreter truncates a float32 to bfloat16 instead of rounding it."""
    if dtype == torch.bfloat16 and backend == "triton" and parameter.device.type == "cpu":
        return (parameter.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    return parameter.to(dtype)


@every_backend
@pytest.mark.parametrize("copy_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_the_copy_is_the_rounded_parameter(name, copy_dtype, backend, backend_device):
    for length in (1024, 3001):  # read and written 16 bytes at a time, and one by one
        start, gradients = start_and_gradients(length, backend_device)
        own, without = Own(name, start, backend, copy_dtype), Own(name, start, backend)
        for gradient in gradients[:3]:
            own.step(gradient, learning_rate=1e-2)
            without.step(gradient, learning_rate=1e-2)
            assert torch.equal(own.copy, rounded(own.parameter, copy_dtype, backend)), length
        assert torch.equal(own.parameter, without.parameter), length
        own.assert_nothing_else_was_written()


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_gradients_in_half_precision_are_what_they_are_in_float32(name, device):
    start, gradients = start_and_gradients(1001, device, gradient_dtype=torch.bfloat16)
    half, single = Own(name, start, "torch"), Own(name, start, "torch")
    for gradient in gradients:
        half.step(gradient, learning_rate=1e-2)
        single.step(gradient.float(), learning_rate=1e-2)
    assert torch.equal(half.parameter, single.parameter)


@every_backend
def test_bias_correction_keeps_its_digits(backend, backend_device):
    """A correction in float32 would lose digits: 1 - 0.999 is off by 5e-5, and 1 - 0.9999 by 5e-4."""
    g = torch.tensor([1e-3, -2.0, 30.0], device=backend_device)
    for beta1, number in product((0.0, 0.5, 0.9, 0.99), (1, 2, 40, 693, 10**7)):
        beta2 = 1 - (1 - beta1) / 100
        parameter, average, square_average = (torch.zeros_like(g) for _ in range(3))
        step = torch.tensor(float(number), device=backend_device)
        options = {"learning_rate": 0.1, "beta1": beta1, "beta2": beta2, "backend": backend}
        adam_(parameter, g, average, square_average, step, **options)
        m, v = (1 - beta1) * g.double(), (1 - beta2) * g.double() ** 2
        m, v = m / -math.expm1(number * math.log(beta1)) if beta1 else m, v / -math.expm1(number * math.log(beta2))
        expected = -0.1 * m / (v.sqrt() + 1e-8)
        assert ((parameter.double() - expected) / expected).abs().max() <= 1e-6, (beta1, number)


@every_backend
def test_every_option_is_obeyed(backend, backend_device):
    start, gradients = start_and_gradients(100, backend_device)
    gradients = gradients.clamp(-1, 1)
    for name, mine, torchs in (
        ("rmsprop", {"alpha": 0.6, "eps": 0.3}, {"alpha": 0.6, "eps": 0.3}),
        ("adam", {"beta1": 0.3, "beta2": 0.7, "eps": 0.3}, {"betas": (0.3, 0.7), "eps": 0.3}),
    ):
        own, exact = Own(name, start, backend), Torchs(name, start.double(), lr=0.2, **torchs)
        for gradient in gradients:
            own.step(gradient, learning_rate=0.2, **mine)
            exact.step(gradient)
        torch.testing.assert_close(own.parameter.double(), exact.parameter.detach(), rtol=1e-6, atol=1e-6)


@every_backend
@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_nothing_at_all(name, backend, backend_device):
    Own(name, torch.zeros(0, device=backend_device), backend).step(
        torch.zeros(0, device=backend_device), learning_rate=1
    )


@every_backend
def test_autograd_learns_of_the_change(backend, backend_device):
    own = Own("rmsprop", torch.ones(5, device=backend_device), backend)
    versions = [tensor._version for tensor in (own.parameter, *own.averages)]
    own.step(torch.ones(5, device=backend_device), learning_rate=1.0)
    changed = [tensor._version for tensor in (own.parameter, *own.averages)]
    assert all(after > before for before, after in zip(versions, changed, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_a_cuda_graph_replays_steps_without_waiting(name, backend):
    start, gradients = start_and_gradients(3008, "cuda")
    own, replayed = (Own(name, start, backend, torch.bfloat16) for _ in range(2))
    gradient = torch.zeros_like(start)
    Own(name, start, backend, torch.bfloat16).step(gradient, learning_rate=1e-2)  # compiles
    graph, _ = captured(lambda: replayed.step(gradient, learning_rate=1e-2), warm_up=0)
    for values in gradients:
        own.step(values, learning_rate=1e-2)
        gradient.copy_(values)
        graph.replay()
    assert torch.equal(own.parameter, replayed.parameter)
    assert torch.equal(own.copy, replayed.copy)


def test_what_does_not_fit_is_refused():
    p, g, v = (torch.zeros(6) for _ in range(3))

    def refused(message, *tensors, operation=rmsprop_, **options):
        with pytest.raises(ValueError, match=message):
            operation(*tensors, learning_rate=1.0, **options)

    refused("needs a flat parameter and got the shape \\[2, 3\\]", p.view(2, 3), g, v)
    refused("parameter must be float64, float32, float16 or bfloat16, not torch.int64", p.long(), g, v)
    refused("gradient is \\[5\\] on cpu, but the parameter is \\[6\\]", p, g[:5], v)
    refused("gradient is \\[6\\] on meta", p, g.to("meta"), v)
    refused("copy is \\[1\\] on cpu", p, g, v, copy=torch.zeros(1))
    refused("copy must be a floating-point tensor, not torch.int16", p, g, v, copy=torch.zeros(6, dtype=torch.int16))
    refused("square_average must be contiguous", p, g, torch.zeros(12)[::2])
    refused("square_average is torch.float64, but the parameter is torch.float32", p, g, v.double())
    refused("rmsprop has no backend 'svd'", p, g, v, backend="svd")
    for step in (torch.zeros(1), torch.zeros((), dtype=torch.int64), torch.zeros((), device="meta")):
        refused(
            "step must be one float32 on cpu|step must be a floating-point tensor", p, g, v, v, step, operation=adam_
        )
    refused("step is 0: pass 1 for the first step", p, g, v, v, torch.zeros(()), operation=adam_)
    assert torch.equal(p, torch.zeros(6))


@needs_triton
@pytest.mark.parametrize(
    ("parameter", "gradient", "copy", "message"),
    [
        (torch.float64, torch.float32, None, "takes float32 parameters, and these"),
        (torch.float32, torch.float64, None, "takes gradients in float32, bfloat16 and float16"),
        (torch.float32, torch.float32, torch.float32, "writes copies in bfloat16 and float16"),
    ],
)
def test_the_kernels_refuse_what_they_cannot_take(parameter, gradient, copy, message, triton_device):
    p, v = (torch.zeros(6, dtype=parameter, device=triton_device) for _ in range(2))
    c = copy and torch.zeros(6, dtype=copy, device=triton_device)
    options = {"learning_rate": 1.0, "copy": c, "backend": "triton"}
    with pytest.raises(BackendError, match=message):
        rmsprop_(p, torch.zeros(6, dtype=gradient, device=triton_device), v, **options)


@pytest.mark.skipif(WHY_NOT_LOADED is not None, reason=str(WHY_NOT_LOADED))
@pytest.mark.parametrize(
    ("parameter", "gradient", "copy", "message"),
    [
        (torch.float64, torch.float32, None, "takes float32 parameters, and these"),
        (torch.float32, torch.float64, None, "takes gradients in float32, bfloat16, float16, and these"),
        (torch.float32, torch.float32, torch.float64, "takes copies in float32, bfloat16, float16"),
    ],
)
def test_the_cpu_kernels_leave_other_dtypes_to_pytorch(parameter, gradient, copy, message):
    p, v, g = torch.zeros(6, dtype=parameter), torch.zeros(6, dtype=parameter), torch.ones(6, dtype=gradient)
    options = {"learning_rate": 1.0, "copy": copy and torch.zeros(6, dtype=copy)}
    with pytest.raises(BackendError, match=message):
        rmsprop_(p, g, v, backend="cpu", **options)
    assert torch.equal(p, torch.zeros(6, dtype=parameter))
    rmsprop_(p, g, v, **options)
    assert (p < 0).all()


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_three_architectures_with_wide_accesses():
    """A separate process compiles, because this one may use Triton's interpreter."""
    program = (
        "import json\n"
        "from benchmarks.kernel_resources import TRITON_ARCHITECTURES, compile_ahead, launches\n"
        "steps = [launch for launch in launches() if launch.kernel in ('rmsprop_kernel', 'adam_kernel')]\n"
        "found = [{**compile_ahead(launch, a), 'signature': dict(launch.signature), 'divisible': launch.divisible}\n"
        "         for launch in steps for a in TRITON_ARCHITECTURES]\n"
        "print(json.dumps(found))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    for kernel in ("rmsprop_kernel", "adam_kernel"):
        own = [entry for entry in found if entry["kernel"] == kernel]
        assert {entry["architecture"] for entry in own} == {80, 90, 100}
        assert {entry["signature"]["gradient"] for entry in own} == {"*fp32", "*bf16", "*fp16"}
        assert {entry["signature"]["learning_rate"] for entry in own} == {"fp32", "*fp32"}
        assert {entry["signature"]["copy"] for entry in own} == {"constexpr", "*bf16", "*fp16"}
        assert {entry["signature"]["count"] for entry in own} == {"constexpr", "i32", "i64"}
        assert {entry["widest_load"] for entry in own} == {4, 16}
    for entry in found:
        assert entry["spilled"] == 0, entry
        assert entry["shared"] == 0, entry
        # There are registers for at least half of the threads that a multiprocessor can hold.
        assert entry["registers"] <= 64, entry
        length = list(entry["signature"]).index("count")
        assert entry["widest_load"] == (16 if length in entry["divisible"] else 4), entry


@pytest.mark.parametrize("backend", ["torch", "cpu", pytest.param("triton", marks=needs_triton)])
def test_without_momentum_adam_forgets_large_gradients(backend, triton_device):
    """Adding a difference, m + (g - m), would keep the rounding of the largest gradient."""
    device = triton_device if backend == "triton" else torch.device("cpu")
    state = [torch.zeros(70, device=device) for _ in range(3)]
    options = {"learning_rate": 0.1, "beta1": 0.0, "beta2": 0.9, "backend": backend}
    for number, value in enumerate((1.2e4, 1.2, 1.2e-4), 1):
        gradient = torch.full((70,), value, device=device)
        step = torch.full((), float(number), device=device)
        adam_(state[0], gradient, *state[1:], step, **options)
        torch.testing.assert_close(state[1], gradient, rtol=1e-6, atol=0)
