"""Estimate of the largest batch that fits, compared with the memory that is really used."""

import pytest
import torch
from support import peak_memory

from tgan_fast.data import MovingDigits
from tgan_fast.errors import InputError
from tgan_fast.training import TrainingConfig, TrainingStep, memory, train
from tgan_fast.training.build import build_step
from tgan_fast.training.memory import largest_batch, need_of, refuse_too_large_a_batch

CONFIG = TrainingConfig(
    width=0.0625,
    latent_dim=8,
    channels=1,
    frames=8,
    image_size=16,
    digits=1,
    batch_size=2,
    steps=1,
    device="cpu",
    precision="fp32",
    workers=1,
)
DIGITS = MovingDigits(digits=1, clip_frames=CONFIG.frames, image_size=CONFIG.image_size)
# An iteration needs about a terabyte.
HUGE = CONFIG.model_copy(update={"frames": 16, "image_size": 32, "batch_size": 1_000_000})
# oneDNN's own memory is small compared with the activations of these clips.
LARGER = TrainingConfig(width=0.0625, channels=1, precision="fp32", clip_interval=0)


def reported_growth(batch_size):
    step = build_step(LARGER, torch.device("cpu"))
    step(torch.zeros(2, 1, 16, 64, 64))
    return peak_memory.growth(lambda: step(torch.zeros(batch_size, 1, 16, 64, 64)))


@pytest.mark.slow
def test_the_need_on_a_cpu_is_about_what_the_system_reports():
    batch_size = 64
    (reported,) = peak_memory.in_processes(reported_growth, [batch_size])
    step = build_step(LARGER, torch.device("cpu"))
    counted = need_of(step, batch_size).bytes - need_of(step, 2).bytes
    # What oneDNN takes for itself is not counted.
    assert 0.6 < counted / reported < 1.2


def test_the_need_grows_in_proportion_to_the_videos():
    step = build_step(HUGE.model_copy(update={"clip_interval": 0}), torch.device("cpu"))
    needs = [need_of(step, videos) for videos in (16, 32, 64)]
    assert needs[2].bytes - needs[1].bytes == pytest.approx(2 * (needs[1].bytes - needs[0].bytes), rel=0.05)
    # The largest tensor: phases of the image generator's last hidden layer, with an extra row at both ends of a frame.
    assert [need.elements for need in needs] == [videos * 16 * 4 * 34 * 32 for videos in (16, 32, 64)]


def test_a_batch_that_a_cpu_cannot_hold_is_refused_with_one_that_it_can(tmp_path):
    with pytest.raises(
        InputError, match=r"^a batch of 1000000 videos does not fit into the memory of this machine; about "
    ) as e:
        train(HUGE, tmp_path / "run", dataset=MovingDigits(1_000_000, clip_frames=16, image_size=32))
    assert not (tmp_path / "run").exists()
    fitting = int(str(e.value).split()[-3])
    assert 0 < fitting < 1_000_000
    refuse_too_large_a_batch(HUGE.model_copy(update={"batch_size": fitting // 2}), torch.device("cpu"), build_step)


def test_systems_that_do_not_tell_what_is_free_are_asked_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "missing")
    assert 0 < largest_batch(HUGE, torch.device("cpu"), build_step) < 1_000_000


def outcome_of(error, tmp_path, monkeypatch):
    """Return what training raises where its first iteration raises `error`; small batches fit."""

    def fails(*arguments):
        raise error

    monkeypatch.setattr(TrainingStep, "state_dict", fails)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        train(CONFIG, tmp_path / "run", dataset=DIGITS)
    return caught.value


FACES = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "runtime": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    "Python": MemoryError(),
}
TOO_LARGE = {
    "cuDNN": RuntimeError("GET was unable to find an engine to execute this computation"),
    "PyTorch": RuntimeError("Expected canUse32BitIndexMath(input) to be true, but got false."),
}


@pytest.mark.parametrize("error", FACES.values(), ids=FACES)
def test_every_face_of_too_little_memory_is_the_one_sentence(error, tmp_path, monkeypatch):
    caught = outcome_of(error, tmp_path, monkeypatch)
    assert isinstance(caught, InputError)
    assert str(caught).startswith("a batch of 2 videos does not fit into the memory of this machine; about ")


@pytest.mark.parametrize("error", TOO_LARGE.values(), ids=TOO_LARGE)
def test_tensors_that_are_too_large_are_so_only_if_a_smaller_batch_is_advised(error, tmp_path, monkeypatch):
    assert outcome_of(error, tmp_path, monkeypatch) is error
    monkeypatch.setattr("tgan_fast.training.loop.largest_batch", lambda *_: 1)
    caught = outcome_of(error, tmp_path, monkeypatch)
    assert isinstance(caught, InputError)
    assert str(caught).startswith("a batch of 2 videos is too large for some operations on this machine; ")
    assert caught.__cause__ is error


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    error = RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")
    assert outcome_of(error, tmp_path, monkeypatch) is error


def test_a_smaller_batch_that_needs_more_is_no_obstacle(monkeypatch):
    """An algorithm that cuDNN chooses for a smaller batch may have a larger workspace."""
    needs = iter([memory.Need(3 << 30, 1 << 20), memory.Need(2 << 30, 1 << 21)])
    monkeypatch.setattr(memory, "need_of", lambda *_: next(needs))
    monkeypatch.setattr(memory, "_available_bytes", lambda device: 80 << 30)
    assert 600 < largest_batch(CONFIG, torch.device("cpu"), lambda *_: None) < 900


def test_where_not_even_small_batches_fit_the_remedy_is_another():
    def build(config, device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    assert largest_batch(CONFIG, torch.device("cpu"), build) == 0
    with pytest.raises(InputError, match="too little is free even for small batches: end other programs"):
        refuse_too_large_a_batch(HUGE, torch.device("cpu"), build)


@pytest.mark.gpu
@pytest.mark.alone
def test_a_gpu_that_runs_out_of_memory_says_what_fits_and_it_does(tmp_path):
    # Little is left free, because a batch that fills a large GPU has tensors that cuDNN refuses for their size.
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(0, free - (8 << 30)), dtype=torch.uint8, device="cuda")
    config = TrainingConfig(width=0.25, latent_dim=8, channels=1, digits=1, batch_size=3000, device="cuda", workers=1)
    with pytest.raises(
        InputError, match=r"^a batch of 3000 videos does not fit into the memory of .*; about \d+ would fit"
    ):
        train(config, tmp_path / "run")
    fitting = largest_batch(config, torch.device("cuda"), build_step)
    step = build_step(config.model_copy(update={"cuda_graph": "off"}), torch.device("cuda"))
    step(torch.zeros(int(0.9 * fitting), 1, 16, 64, 64, device="cuda"))
    del taken
