"""TGAN's networks and their variants."""

from typing import TYPE_CHECKING

from tgan_fast.lazy import on_first_use
from tgan_fast.sizes import FRAMES, IMAGE_SIZE

if TYPE_CHECKING:
    from tgan_fast.models.discriminator import Discriminator, FramesDiscriminator, VideoDiscriminator
    from tgan_fast.models.generator import FrameGenerator, Generator, VideoGenerator
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
]
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        **dict.fromkeys(("Discriminator", "FramesDiscriminator", "VideoDiscriminator"), "discriminator"),
        **dict.fromkeys(("FrameGenerator", "Generator", "VideoGenerator"), "generator"),
        **dict.fromkeys(("GRUTemporalGenerator", "LSTMTemporalGenerator", "TemporalGenerator"), "temporal_generators"),
    },
)
