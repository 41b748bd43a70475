"""TGAN, the video GAN with two generators and singular value clipping, trained and sampled fast."""

from tgan_fast.models import VideoDiscriminator, VideoGenerator

__all__ = ["VideoDiscriminator", "VideoGenerator"]
