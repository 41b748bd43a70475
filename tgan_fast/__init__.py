"""TGAN, the video GAN with two generators and singular value clipping, trained and sampled fast."""

from typing import TYPE_CHECKING

from tgan_fast.lazy import on_first_use

if TYPE_CHECKING:
    from tgan_fast.models import VideoDiscriminator, VideoGenerator

__all__ = ["VideoDiscriminator", "VideoGenerator"]
__getattr__, __dir__ = on_first_use(__name__, dict.fromkeys(__all__, "models"))
