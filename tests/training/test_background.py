"""Background jobs: they run in order and raise their errors, and a copied state does not change."""

import threading

import pytest
import torch

from tgan_fast.training.background import Background, Snapshot


@pytest.fixture(params=[True, False], ids=["thread", "at once"])
def background(request):
    background = Background(request.param)
    yield background
    background.close()


def test_jobs_are_done_in_order(background):
    done = []
    for number in range(5):
        background.submit(done.append, number)
    background.wait()
    assert done == list(range(5))


def test_the_caller_continues_until_two_jobs_wait():
    background, gate, done = Background(True), threading.Event(), []

    def job(number):
        gate.wait(60)
        done.append(number)

    background.submit(job, 0)
    background.submit(job, 1)
    assert done == []
    background.check()
    third = threading.Thread(target=background.submit, args=(job, 2))
    third.start()
    third.join(0.1)
    assert third.is_alive()
    gate.set()
    third.join()
    background.wait()
    assert done == [0, 1, 2]
    background.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("background")]


def test_an_error_reaches_the_caller_once(background):
    def fail():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):  # noqa: PT012 - at once, or when it is waited for
        background.submit(fail)
        background.wait()
    background.check()
    background.wait()


def test_a_snapshot_is_the_state_at_its_time(device):
    tensor = torch.arange(4.0, device=device)
    state = {"a": tensor, "b": [tensor * 2, {"c": 3}], "d": None}
    snapshot = Snapshot(state)
    tensor.zero_()
    copied = snapshot.on_cpu()
    assert copied["a"].tolist() == [0, 1, 2, 3]
    assert copied["b"][0].tolist() == [0, 2, 4, 6]
    assert (copied["b"][1], copied["d"]) == ({"c": 3}, None)
    assert copied["a"].device.type == "cpu"
