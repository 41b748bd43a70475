"""Every pair of variants and settings that fit each other, in combinations that train for an iteration."""

import copy
import io
from itertools import combinations, product

import pytest
import torch
from support.gradients import Gradients
from support.pairwise import covering

from tgan_fast.errors import InputError
from tgan_fast.nn import BATCH_NORMS, WEIGHTED
from tgan_fast.training import TrainingConfig
from tgan_fast.training.build import build_step
from tgan_fast.training.checkpoint import Checkpoint
from tgan_fast.training.registry import REGISTRY

CLASSES, BATCH = 3, 2
SMALL = {"width": 0.03125, "latent_dim": 5, "batch_size": BATCH, "clip_interval": 1, "steps": 2, "device": "cpu"}

VALUES = {
    **{setting: list(variants) for setting, variants in REGISTRY.items()},
    "size": [(16, 64), (8, 16), (32, 32), (64, 16), (8, 128), (12, 32)],
    "conditional": [False, True],
    "critic_steps": [1, 2],
    "input_noise": [0.0, 0.3],
    "augment": [None, "color,translation,cutout"],
    "lr_decay": ["none", "linear"],
    "shared_fakes": [False, True],
    "ema_decay": [None, 0.9],
    "channels": [1, 3],
    "precision": ["fp32", "bf16"],
}


def settings_of(row):
    settings = SMALL | row
    settings["frames"], settings["image_size"] = settings.pop("size")
    return settings | {"classes": CLASSES} if row["conditional"] else settings


def fits(row):
    try:
        TrainingConfig(**settings_of(row))
    except InputError:
        return False
    return True


ROWS = covering(VALUES, fits)
COMBINATIONS = [settings_of(row) for row in ROWS]


def name_of(settings):
    return "-".join(str(value) for setting, value in settings.items() if setting not in SMALL and value)


def step_and_batch(settings, device="cpu"):
    config = TrainingConfig(**settings)
    step = build_step(config, torch.device(device))
    shape = BATCH * config.critic_steps, config.channels, config.frames, config.image_size, config.image_size
    labels = torch.arange(shape[0]) % CLASSES if config.conditional else None
    return config, step, (torch.rand(shape) * 2 - 1).to(device), None if labels is None else labels.to(device)


def assert_constrained(config, discriminator):
    if config.constraint == "weight-clip":
        assert all((parameter.abs() <= 0.01).all() for parameter in discriminator.parameters())
    elif config.constraint in ("svc", "spectral-norm"):
        layers = [module for module in discriminator.modules() if isinstance(module, WEIGHTED)]
        # Power iterations approach the largest singular value from below.
        limit = 1 + 1e-5 if config.constraint == "svc" else 1.05
        for layer in layers:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1).double(), 2) <= limit
        norms = [module for module in discriminator.modules() if isinstance(module, BATCH_NORMS)]
        # Of several critic steps the last one is followed by the generator's, which moves running variances.
        for norm in norms if config.critic_steps == 1 else ():
            assert (norm.weight <= norm.running_var.sqrt() * (1 + 1e-6)).all()


def assert_trained(config, step, before, gradients, scalars):
    assert len(gradients.seen) == config.critic_steps + 1
    for of_network in gradients.seen:
        for gradient in of_network:
            assert gradient.isfinite().all()
        # Gradients of biases in front of batch norms are only rounding.
        assert all(gradient.any() for gradient in of_network if gradient.dim() > 1)
    assert all(value.isfinite() for value in scalars.values())
    changed = [not torch.equal(before[key], value) for key, value in step.generator.state_dict().items()]
    assert sum(changed) > len(changed) / 2
    assert_constrained(config, step.discriminator)


def assert_goes_on_exactly(settings, config, step, batch, labels):
    content = io.BytesIO()
    torch.save(step.state_dict(), content)
    state = torch.load(io.BytesIO(content.getvalue()), weights_only=True)
    _, resumed, _, _ = step_and_batch({**settings, "seed": 1})
    resumed.load_state_dict(state)
    torch.testing.assert_close(resumed(batch, labels), step(batch, labels), rtol=0, atol=0)
    torch.testing.assert_close(resumed.state_dict(), step.state_dict(), rtol=0, atol=0)

    loaded = Checkpoint("a file", config, state, 1, tells_data=True).generator()
    inputs = torch.rand(2, config.latent_dim), None if labels is None else labels[:2]
    shape = 2, config.channels, config.frames, config.image_size, config.image_size
    with torch.no_grad():
        assert loaded(*inputs).shape == shape
    Checkpoint("a file", config, state, 1, tells_data=True).discriminator()


@pytest.mark.parametrize("settings", COMBINATIONS, ids=name_of)
def test_every_combination_trains_and_resumes_from_a_checkpoint_exactly(settings):
    config, step, batch, labels = step_and_batch(settings)
    before = copy.deepcopy(step.generator.state_dict())
    with Gradients() as gradients:
        scalars = step(batch, labels)
    assert_trained(config, step, before, gradients, scalars)
    assert_goes_on_exactly(settings, config, step, batch, labels)


def test_no_pair_is_missing_but_those_that_are_refused():
    covered = {pair for row in ROWS for pair in combinations(row.items(), 2)}
    missing = set()
    for first, second in combinations(VALUES, 2):
        missing |= {((first, a), (second, b)) for a, b in product(VALUES[first], VALUES[second])} - covered
    assert missing == {
        (("temporal_generator", "deconv"), ("size", (12, 32))),
        (("objective", "hinge"), ("shared_fakes", True)),
        (("objective", "vanilla"), ("shared_fakes", True)),
        (("objective", "lsgan"), ("shared_fakes", True)),
        (("critic_steps", 2), ("shared_fakes", True)),
    }


@pytest.mark.gpu
@pytest.mark.parametrize("settings", COMBINATIONS, ids=name_of)
def test_a_cuda_graph_changes_nothing_in_any_combination(settings, monkeypatch):
    # Only algorithms whose results repeat.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    _, ungraphed, batch, labels = step_and_batch({**settings, "cuda_graph": "off", "device": "cuda"}, "cuda")
    _, replayed, _, _ = step_and_batch({**settings, "cuda_graph": "on", "device": "cuda"}, "cuda")
    for _ in range(6):
        torch.testing.assert_close(replayed(batch, labels), ungraphed(batch, labels), rtol=0, atol=0)
    torch.testing.assert_close(replayed.state_dict(), ungraphed.state_dict(), rtol=0, atol=0)
