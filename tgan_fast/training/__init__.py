"""Training: the config, the step, the loop and its checkpoints."""

from tgan_fast.training.config import PRESETS, TrainingConfig
from tgan_fast.training.loop import train
from tgan_fast.training.processes import Processes
from tgan_fast.training.step import TrainingStep

__all__ = ["PRESETS", "Processes", "TrainingConfig", "TrainingStep", "train"]
