"""Loading of the CUDA extension and its preparation on GPUs, with a stand-in for the extension."""

import contextlib
import re
import types
import warnings
from pathlib import Path

import pytest
import torch

from tgan_fast.ops import (
    BackendError,
    backends,
    constrain_layers_,
    cuda_extension,
    extensions,
    singular_value_clip_,
)
from tgan_fast.ops.clipping import _warn_of_gemm, choose_backends
from tgan_fast.ops.clipping import cuda as singular_value_clip_cuda

NOT_COMPILED = "it was not compiled for this GPU"


class TensorOnGpu(torch.Tensor):
    """Tensor in CPU memory that claims to be on a GPU."""

    is_cuda = True
    device = torch.device("cuda", 0)


class TensorOnSecondGpu(TensorOnGpu):
    device = torch.device("cuda", 1)


def on_gpu(index, dtype=torch.float32):
    return torch.ones(4, 9, dtype=dtype).as_subclass((TensorOnGpu, TensorOnSecondGpu)[index])


class Gpus:
    """Two GPUs, and an extension that was compiled only for the second one."""

    workspace_bytes = staticmethod(lambda matrices: 256)

    def __init__(self):
        self.current = 0  # PyTorch's
        self.prepared = []
        self.constrained = []
        self.in_float64 = []

    def prepare(self, device):
        assert device == self.current
        self.prepared.append(device)
        return 1024, "" if device == 1 else NOT_COMPILED

    def constrain(self, device, scales, float64_only, **_):
        assert device == self.current
        self.constrained.append(device)
        self.in_float64.append((float64_only, len(scales)))
        return ""

    @contextlib.contextmanager
    def device(self, device):
        before, self.current = self.current, device if isinstance(device, int) else device.index
        yield
        self.current = before


@pytest.fixture
def use_extension(monkeypatch):
    """Replace the function that loads the extension, and clear all caches before and after the test."""
    caches = [cuda_extension.prepare_gpu, extensions.why_not_loaded, _warn_of_gemm]

    def use(load):
        monkeypatch.setattr(cuda_extension, "extension", load)
        monkeypatch.setattr(extensions, "load", lambda kind: load())
        monkeypatch.setattr(singular_value_clip_cuda, "extension", load)

    for cache in caches:
        cache.cache_clear()
    yield use
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def gpus(use_extension, monkeypatch):
    gpus = Gpus()
    use_extension(lambda: gpus)
    monkeypatch.setattr(singular_value_clip_cuda, "_workspace", lambda _, size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpus.current)
    monkeypatch.setattr(torch.cuda, "device", gpus.device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: types.SimpleNamespace(cuda_stream=0))
    return gpus


@pytest.mark.parametrize("backend", ["auto", "cuda"])
def test_the_gpu_of_the_weight_is_asked_once_and_pytorchs_current_one_stays(backend, gpus):
    for _ in range(3):
        singular_value_clip_([on_gpu(1)], backend=backend)
    assert gpus.prepared == [1]
    assert gpus.constrained == [1, 1, 1]
    assert gpus.current == 0


def test_float64_is_requested_by_name(gpus):
    for backend in ("auto", "cuda", "cuda-float64"):
        singular_value_clip_([on_gpu(1)], backend=backend)
        constrain_layers_([on_gpu(1)], [on_gpu(1)[0]], [on_gpu(1)[0]], backend=backend)
    assert gpus.in_float64 == [(False, 0), (False, 1), (False, 0), (False, 1), (True, 0), (True, 1)]


def test_a_gpu_that_it_was_not_compiled_for_is_named(gpus):
    for _ in range(2):
        with pytest.raises(BackendError, match=f"the CUDA extension cannot run on cuda:0: {NOT_COMPILED}"):
            singular_value_clip_([on_gpu(1), on_gpu(0)], backend="cuda")
    assert gpus.constrained == []
    assert gpus.prepared.count(0) == 1


def test_the_listing_is_for_the_current_gpu(gpus):
    assert backends()["singular_value_clip"]["cuda"] == f"the CUDA extension cannot run on cuda:0: {NOT_COMPILED}"
    gpus.current = 1
    assert backends()["singular_value_clip"]["cuda"] == "available"
    assert cuda_extension.why_not(torch.device("cuda")) is None


def test_other_backends_and_other_devices_ask_no_gpu(gpus):
    singular_value_clip_([torch.ones(4, 9)])
    choose_backends([on_gpu(0)], "gemm")
    with pytest.raises(BackendError, match="the CUDA extension runs on a GPU, not on cpu"):
        singular_value_clip_([torch.ones(4, 9)], backend="cuda")
    assert gpus.prepared == []


def test_pytorch_without_gpus_beside_an_extension_with_one(use_extension, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    use_extension(lambda: types.SimpleNamespace(prepare=lambda device: (1024, "")))
    for version, reason in (
        (None, "PyTorch was built without CUDA"),
        ("13.0", "PyTorch finds none, perhaps because the driver is too old"),
    ):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert cuda_extension.why_not(torch.device("cpu")) == f"the CUDA extension finds no GPU: {reason}"


def test_auto_warns_once_of_a_gpu_without_the_extension(gpus):
    with pytest.warns(UserWarning, match=f"cuda:0 uses the backend 'gemm', .* cannot run on cuda:0: {NOT_COMPILED}"):
        assert choose_backends([on_gpu(0)], "auto") == ["gemm"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backends([on_gpu(0), on_gpu(1)], "auto") == ["gemm", "cuda"]


def test_auto_does_not_warn_of_what_the_extension_would_not_take(gpus):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backends([on_gpu(0, torch.float64), torch.ones(4, 9)], "auto") == ["gemm", "eigh"]


def test_auto_warns_once_of_an_extension_that_was_not_built(use_extension):
    """The package is imported from its source tree, which may hide an installed one."""
    attempts = []

    def load():
        attempts.append(None)
        raise ModuleNotFoundError("No module named 'tgan_fast._cuda'")

    use_extension(load)
    tree = Path(__file__).resolve().parents[2]
    with pytest.warns(UserWarning, match=re.escape(f"Python imports tgan_fast from the source tree {tree}, where")):
        assert choose_backends([on_gpu(0)], "auto") == ["gemm"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backends([on_gpu(0)] * 2, "auto") == ["gemm", "gemm"]
    assert len(attempts) == 1


def test_an_extension_that_does_not_load(use_extension):
    def load():
        raise ImportError("undefined symbol: cudaSetDevice")

    use_extension(load)
    assert cuda_extension.why_not(torch.device("cuda", 0)) == (
        "the CUDA extension does not load, so install tgan_fast again: undefined symbol: cudaSetDevice"
    )
