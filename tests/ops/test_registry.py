"""What backends() says is what the operations do."""

import pytest
import torch

from tgan_fast.ops import BackendError, backends, batch_norm_act, singular_value_clip

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CALLS = {
    "batch_norm_act": lambda backend: batch_norm_act(torch.randn(4, 3, device=DEVICE), None, None, backend=backend),
    "singular_value_clip": lambda backend: singular_value_clip(torch.randn(4, 3, device=DEVICE), backend=backend),
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


def test_the_answer_is_a_copy():
    backends()["batch_norm_act"].clear()
    assert backends()["batch_norm_act"]
