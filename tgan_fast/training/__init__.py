"""Training: the config, the step, the loop and its checkpoints."""

from typing import TYPE_CHECKING

from tgan_fast.lazy import on_first_use
from tgan_fast.training.config import PRESETS, TrainingConfig

if TYPE_CHECKING:
    from tgan_fast.processes import Processes
    from tgan_fast.training.loop import train
    from tgan_fast.training.step import TrainingStep

__all__ = ["PRESETS", "Processes", "TrainingConfig", "TrainingStep", "train"]
__getattr__, __dir__ = on_first_use(__name__, {"train": "loop", "Processes": "processes", "TrainingStep": "step"})
