"""Fine-tuning: the networks of another run, for a run that counts from 0 with settings of its own."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tgan_fast.errors import InputError, counted
from tgan_fast.models.spectral_norm import parametrized_layers, with_spectral_norm, without_spectral_norm
from tgan_fast.training.build import GENERATOR_SETTINGS
from tgan_fast.training.checkpoint import find, first_not_finite, open_checkpoint, read_run
from tgan_fast.training.config import TrainingConfig
from tgan_fast.training.step import TrainingStep

# The data decides the number of classes.
_OF_NETWORKS = GENERATOR_SETTINGS - {"classes"} | {"discriminator"}
_MOST_NAMED = 6


def network_settings(path: Path, channels: int) -> dict[str, Any]:
    """Return the settings of the networks in a checkpoint, with at least the `channels` of the new data.

    Raises:
        InputError: The file is missing, unreadable or damaged.
    """
    settings = (open_checkpoint(find(path)).config or TrainingConfig()).model_dump(include=_OF_NETWORKS)
    return settings | {"channels": max(settings["channels"], channels)}


def start_from(step: TrainingStep, config: TrainingConfig) -> list[str]:
    """Load the networks of `config.init_from` into a new step, as far as they fit, and return notices on the rest.

    The generator gets the weights that were trained, or the averaged ones if the file has no others. Its average starts
    with the averaged weights of the file, or else with the generator's.

    Raises:
        InputError: The file is unreadable; it lacks a network or an optimizer that the settings need; a weight is not
            finite; no layer fits, or not all frozen ones.
    """
    path = find(Path(config.init_from or ""))
    checkpoint = open_checkpoint(path)
    states = dict(checkpoint.states)
    if broken := first_not_finite(states):
        raise InputError(f"{path} cannot be used: {broken} is not finite; choose an earlier checkpoint")
    states.setdefault("generator", states.get("ema"))
    generator, new = _fitting(step.generator, states["generator"])
    if {name for name, _ in step.generator.named_parameters()} <= set(new):
        raise InputError(f"no layer of the generator in {path} fits this network: leave out settings of the networks")
    average, _ = _fitting(step.generator, states.get("ema", states["generator"]))
    discriminator, new_in_discriminator = _fitting(step.discriminator, states.get("discriminator", {}))
    notices = [_notice(f"new in the generator: not in {path}, or of another shape", new)]
    if "discriminator" in states:
        notices.append(_notice(f"new in the discriminator: not in {path}, or of another shape", new_in_discriminator))
    else:
        notices.append(f"{path} has no discriminator, so a new one is trained")
    frozen = {name for name, parameter in step.discriminator.named_parameters() if not parameter.requires_grad}
    for name in new_in_discriminator:
        if name in frozen:
            raise InputError(
                f"freeze_discriminator is {config.freeze_discriminator}, but {path} has no {name} of this shape to "
                "freeze: freeze fewer layers, or leave out freeze_discriminator"
            )
    step.load_networks({"generator": generator, "discriminator": discriminator, "ema": average})
    if config.init_optimizers:
        try:
            # Of the files that open_checkpoint reads, this refuses those without optimizers.
            saved = read_run(path)
        except InputError:
            raise InputError(f"{path} has no optimizers: leave out init_optimizers") from None
        try:
            step.load_optimizers(saved["step"], own_options=True)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"init_optimizers: the optimizers in {path} do not fit: {error}") from None
    return [notice for notice in notices if notice is not None]


def _fitting(network: nn.Module, state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return a state dict of the network with all tensors of `state` that fit, and the names of the others."""
    own = network.state_dict()
    layers = parametrized_layers(own)
    if bool(layers) != bool(parametrized_layers(state)):
        state = with_spectral_norm(state, layers) if layers else without_spectral_norm(state)
    fitting = {name: state[name] for name, tensor in own.items() if name in state and state[name].shape == tensor.shape}
    # Files from before PyTorch 0.4.1 have no counters.
    new = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    return own | fitting, new


def _notice(what, names):
    if not names:
        return None
    more = len(names) - _MOST_NAMED
    rest = f" and {counted(more, 'other')}" if more > 0 else ""
    return f"{what}: {', '.join(names[:_MOST_NAMED])}{rest}"
