"""Settings of a resumed run that differ from its checkpoint's."""

from collections.abc import Mapping
from typing import Any

from tgan_fast.errors import InputError
from tgan_fast.training.build import GENERATOR_SETTINGS
from tgan_fast.training.config import TrainingConfig

# The networks and what is stored of them; the seed, which the order of the data depends on.
_FIXED = GENERATOR_SETTINGS | {"discriminator", "optimizer", "seed"}
# A checkpoint is refused on another kind of device anyway.
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
    before = TrainingConfig().model_dump() | dict(recorded)
    changed = {name: (before[name], now) for name, now in config.model_dump().items() if before[name] != now}
    for name, (old, new) in changed.items():
        parametrized = name == "constraint" and "spectral-norm" in (old, new)
        if name in _FIXED or parametrized:
            raise InputError(
                f"{name} is {new}, but the run that is resumed has {old}, which cannot change: leave it out, or start "
                "a new run with another --out"
            )
    told = [f"{name} {old} → {new}" for name, (old, new) in changed.items() if name not in _UNIMPORTANT]
    return [f"changed since the checkpoint: {', '.join(told)}"] if told else []
