"""Devices by name."""

import pytest
import torch

from tgan_fast.devices import resolve_device
from tgan_fast.errors import InputError


def test_auto_is_a_gpu_if_there_is_one():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "meta", "mps", "cuda:x"])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match="choose auto, cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_cuda_says_why():
    with pytest.raises(InputError, match=r"built without CUDA|no GPU or no NVIDIA driver"):
        resolve_device("cuda")


@pytest.mark.gpu
def test_with_gpus_only_those_are_accepted():
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(InputError, match="the GPUs here are cuda:0 to"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")
