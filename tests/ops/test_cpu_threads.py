"""The C++ kernels use PyTorch's own threads, as many as PyTorch is set to, and one thread after a fork."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
import torch

from tgan_fast.ops import adam_, batch_norm_act, cpu_extension, rmsprop_

ROOT = Path(__file__).resolve().parents[2]
WHY_NOT_BUILT = run_path(str(ROOT / "setup.py"))["why_without_cpu"]()
pytestmark = pytest.mark.skipif(WHY_NOT_BUILT is not None, reason=str(WHY_NOT_BUILT))
COUNT = 7 * 2**15 + 5  # enough for seven threads, with a tail


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def use_openmp():
    yield cpu_extension.extension().use_openmp
    cpu_extension.extension.cache_clear()
    cpu_extension.extension()


def inputs():
    """Return tensors for `optimize`, and one to normalize."""
    random = torch.Generator().manual_seed(1)
    p, g, m, v = (torch.randn(COUNT, generator=random) for _ in range(4))
    copies = [torch.zeros(COUNT, dtype=dtype) for dtype in (torch.bfloat16, torch.float16)]
    x = torch.randn(64, 16, 16, 16, generator=random)
    return [p, g, g.bfloat16(), m, v.abs_(), torch.tensor(3.0), *copies], x


def optimize(tensors):
    """Return what a step of each optimizer writes."""
    p, g, half, m, v, step, *copies = tensors
    rmsprop_(p, g, v, learning_rate=0.1, copy=copies[0], backend="cpu")
    adam_(p, half, m, v, step, learning_rate=0.1, copy=copies[1], backend="cpu")
    return [p, m, v, *copies]


def run_all(tensors, x):
    return [batch_norm_act(x, None, None, backend="cpu"), *optimize(tensors)]


def test_every_number_of_threads_and_none_give_the_same_bits(set_threads, use_openmp):
    set_threads(1)
    expected = run_all(*inputs())
    for threads in (2, 3, 7):
        set_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(run_all(*inputs()), expected, strict=True)), threads
    use_openmp(0, 0, 0, 0)  # as in a PyTorch built without OpenMP
    assert all(torch.equal(a, b) for a, b in zip(run_all(*inputs()), expected, strict=True))


@pytest.mark.parametrize("name", [] if cpu_extension.WHY_NOT_LOADED else cpu_extension.extension().instruction_sets())
def test_every_instruction_set_optimizes_alike(name):
    module = cpu_extension.extension()
    expected = optimize(inputs()[0])
    module.use_instruction_set(name)
    try:
        got = optimize(inputs()[0])
    finally:
        module.use_instruction_set(module.instruction_sets()[0])
    for mine, truth in zip(got, expected, strict=True):
        # Some fuse products and sums into one operation, so that a rounding to half precision may differ.
        eps = torch.finfo(truth.dtype).eps
        torch.testing.assert_close(mine.float(), truth.float(), rtol=2 * eps, atol=2 * eps)


def test_an_unknown_instruction_set_is_named():
    with pytest.raises(ValueError, match="no kernels for the instruction set sse9"):
        cpu_extension.extension().use_instruction_set("sse9")


def test_pytorchs_number_of_threads_is_asked_for(set_threads, use_openmp):
    """A stand-in for OpenMP records how many threads it should run, and runs one."""
    asked = []
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(function, argument, threads, _flags):
        asked.append(threads)
        function(argument)

    barrier = ctypes.CFUNCTYPE(None)(lambda: None)
    number, size = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0), ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
    functions = parallel, barrier, number, size
    set_threads(1)
    expected = run_all(*inputs())
    use_openmp(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))
    run_all(*inputs())
    assert asked == []
    set_threads(5)
    got = run_all(*inputs())
    assert asked == [5, 5, 5]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    set_threads(64)
    optimize(inputs()[0])
    assert asked[3:] == [7, 7]  # no thread for fewer than 32,768 values
    batch_norm_act(torch.randn(16, 8, 8, 8), None, None, backend="cpu")
    assert len(asked) == 5


def test_a_forked_process_computes_the_same_and_does_not_hang():
    """The child calls only the kernels, because PyTorch's operations would wait for threads that it does not have."""
    program = (
        "import hashlib, os, torch\n"
        "from ops.test_cpu_threads import inputs, run_all\n"
        "torch.set_num_threads(3)\n"
        "def digest(arguments):\n"
        "    results = [t.view(torch.uint8).numpy().tobytes() for t in run_all(*arguments)]\n"
        "    return hashlib.sha256(b''.join(results)).digest()\n"
        "first, of_child, last = inputs(), inputs(), inputs()\n"
        "mine = digest(first)\n"
        "read, write = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.write(write, digest(of_child))\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert os.read(read, 32) == mine\n"
        "assert digest(last) == mine\n"  # with its threads
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
