"""Settings of a resumed run that differ from its checkpoint's."""

from collections.abc import Mapping
from typing import Any

from tgan_fast.errors import InputError
from tgan_fast.training.build import GENERATOR_SETTINGS
from tgan_fast.training.config import TrainingConfig, in_current_words

# Settings of the networks, and the seed, most of which a checkpoint has used up already: a new one would be ignored.
_FIXED = GENERATOR_SETTINGS | {"discriminator", "optimizer", "seed"}
# Another kind of device is refused elsewhere.
_UNIMPORTANT = {"device"}


def changed_settings(config: TrainingConfig, recorded: Mapping[str, Any]) -> list[str]:
    """Return one line that names what has changed since a checkpoint, or none where nothing has.

    Args:
        config: Settings of the resumed run.
        recorded: Settings in the checkpoint; empty for the notebook's, which has none.

    Raises:
        InputError: A setting has changed that cannot.
    """
    if not recorded:
        return []
    before = TrainingConfig().model_dump() | in_current_words(recorded)
    changed = {name: (before[name], now) for name, now in config.model_dump().items() if before[name] != now}
    for name, (old, new) in changed.items():
        parametrized = name == "constraint" and "spectral-norm" in (old, new)
        if name in _FIXED or parametrized:
            raise InputError(
                f"{name} cannot change on resume: the checkpoint has {old}, not {new}; leave it out, or start a new "
                "run with another --out"
            )
    told = [f"{name} {old} → {new}" for name, (old, new) in changed.items() if name not in _UNIMPORTANT]
    return [f"changed since the checkpoint: {', '.join(told)}"] if told else []
