"""The operations behave as backends() says."""

from typing import get_args

import pytest
import torch

from tgan_fast.ops import (
    BackendError,
    adam_,
    augment_videos,
    backends,
    batch_norm_act,
    rmsprop_,
    singular_value_clip,
    tanh_to_levels,
)
from tgan_fast.ops.windows import read_windows, whole_frames

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FRAMES = torch.zeros(16, 64, 64, 1, dtype=torch.uint8, device=DEVICE)
STEP, RATE = torch.ones((), device=DEVICE), {"learning_rate": 0.1}
CALLS = {
    "adam": lambda backend: adam_(*(torch.rand(5, device=DEVICE) for _ in range(4)), STEP, **RATE, backend=backend),
    "augment_videos": lambda backend: augment_videos(
        torch.zeros(2, 1, 8, 16, 16, device=DEVICE), torch.zeros(2, 7, device=DEVICE), backend=backend
    ),
    "batch_norm_act": lambda backend: batch_norm_act(torch.randn(4, 3, device=DEVICE), None, None, backend=backend),
    "read_windows": lambda backend: read_windows(FRAMES, whole_frames(1).to(DEVICE), backend=backend),
    "rmsprop": lambda backend: rmsprop_(*(torch.rand(5, device=DEVICE) for _ in range(3)), **RATE, backend=backend),
    "singular_value_clip": lambda backend: singular_value_clip(torch.randn(4, 3, device=DEVICE), backend=backend),
    "tanh_to_levels": lambda backend: tanh_to_levels(torch.randn(4, 3, device=DEVICE), backend=backend),
}


def test_an_available_backend_runs_and_another_says_why_not():
    assert backends().keys() == CALLS.keys()
    for operation, states in backends().items():
        for backend, state in states.items():
            if state == "available":
                CALLS[operation](backend)
            else:
                with pytest.raises(BackendError, match=state):
                    CALLS[operation](backend)


def test_the_types_of_backends_name_those_that_there_are():
    functions = {"adam": adam_, "batch_norm_act": batch_norm_act, "read_windows": read_windows, "rmsprop": rmsprop_}
    functions |= {"singular_value_clip": singular_value_clip, "tanh_to_levels": tanh_to_levels}
    functions |= {"augment_videos": augment_videos}
    for operation, states in backends().items():
        assert set(get_args(functions[operation].__annotations__["backend"])) == {"auto", *states}


def test_the_answer_is_a_copy():
    backends()["batch_norm_act"].clear()
    assert backends()["batch_norm_act"]
