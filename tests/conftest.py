"""Devices, and the helpers that several test files share."""

import os
import signal
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from unittest import mock

import numpy as np
import pytest
import torch
from support import c3d_weights
from support.stand_in_graphs import stand_in_graphs  # noqa: F401  a fixture

from tgan_fast import allocator
from tgan_fast.cuda_graph import capture_failure
from tgan_fast.metrics.classifier_files import load_classifier

# Without a GPU, Triton's interpreter runs the kernels; this must be set before they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

try:
    INTERPRETER_FAILS = version("triton").startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
except PackageNotFoundError:
    INTERPRETER_FAILS = False

CPU = pytest.param("cpu", id="cpu")
GPU = pytest.param("cuda", id="gpu", marks=pytest.mark.gpu)


def pytest_configure():
    # Under nohup, or in a shell's background, these are ignored, and tests of interruptions would wait forever.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    # Files with slow or many tests begin first, so that at the end all processes have work.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -counts[item.path], item.path))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def _skip_what_the_interpreter_cannot():
    """Skip a test that fails because Triton 3.6's interpreter does not work with NumPy 2.4 or newer."""
    try:
        return (yield)
    except Exception as error:
        # An error of a child process arrives as text.
        if INTERPRETER_FAILS and "InterpreterError" in repr(error) + str(error) and "0-dimensional" in str(error):
            pytest.skip("Triton 3.6's interpreter does not work with NumPy ≥ 2.4")
        raise


pytest_runtest_setup = pytest.hookimpl(_skip_what_the_interpreter_cannot, wrapper=True)
pytest_runtest_call = pytest.hookimpl(_skip_what_the_interpreter_cannot, wrapper=True)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """End a pytest-xdist process that a test has broken, because the tests that follow would fail, too.

    An illegal access ruins the process's CUDA context, and a failed capture its allocator. pytest-xdist keeps the
    test's own failure and continues in a new process.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
        broken = capture_failure() is not None
    except RuntimeError:
        broken = True
    if broken:
        os._exit(1)


@pytest.fixture(params=[CPU, GPU])
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=[pytest.param("cpu", id="interpreter"), GPU])
def triton_device(request):
    """Device on which the Triton kernels run."""
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter stands in only where there is no GPU")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _reproducible():
    """Use the same random numbers in every run, and true float32: cuDNN uses TF32 by default."""
    torch.manual_seed(0)
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    yield
    convolutions.fp32_precision = before


@pytest.fixture(autouse=True)
def keep_memory():
    """Replace `allocator.keep_memory` by a mock, because its effect would last for all later tests."""
    with mock.patch.object(allocator, "keep_memory", return_value=False) as mocked:
        yield mocked


@pytest.fixture(scope="session")
def chainer_weights():
    """Random weights of C3D: Chainer's names and arrays."""
    return c3d_weights.random_weights()


@pytest.fixture(scope="session")
def c3d_files(chainer_weights, tmp_path_factory):
    """Write these weights and a mean as two .npz files, in the format of TGAN's authors."""
    folder = tmp_path_factory.mktemp("c3d")
    weights = c3d_weights.write_chainer(folder / "conv3d_deepnetA_ucf.npz", chainer_weights)
    return weights, c3d_weights.write_mean(folder / "mean2.npz", c3d_weights.random_mean())


@pytest.fixture(scope="session")
def c3d_classifier(c3d_files):
    """Load the classifier of these files, which tests must not change."""
    return load_classifier(*c3d_files)
