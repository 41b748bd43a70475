"""The two networks of TGAN and the constraint of the second."""

from tgan_fast.models.constraint import constrain_
from tgan_fast.models.discriminator import VideoDiscriminator
from tgan_fast.models.generator import FRAMES, IMAGE_SIZE, VideoGenerator

__all__ = ["FRAMES", "IMAGE_SIZE", "VideoDiscriminator", "VideoGenerator", "constrain_"]
