"""The networks of TGAN's family and the constraint of its discriminators."""

from tgan_fast.models.constraint import constrain_
from tgan_fast.models.discriminator import Discriminator, FramesDiscriminator, VideoDiscriminator
from tgan_fast.models.generator import FrameGenerator, Generator, VideoGenerator
from tgan_fast.models.sizes import FRAMES, IMAGE_SIZE
from tgan_fast.models.temporal_generators import GRUTemporalGenerator, LSTMTemporalGenerator, TemporalGenerator

__all__ = [
    "FRAMES",
    "IMAGE_SIZE",
    "Discriminator",
    "FrameGenerator",
    "FramesDiscriminator",
    "GRUTemporalGenerator",
    "Generator",
    "LSTMTemporalGenerator",
    "TemporalGenerator",
    "VideoDiscriminator",
    "VideoGenerator",
    "constrain_",
]
