"""TGAN, the video GAN with two generators and singular value clipping, trained and sampled fast."""

from typing import TYPE_CHECKING

from tgan_fast.lazy import on_first_use

if TYPE_CHECKING:
    from tgan_fast.models.discriminator import VideoDiscriminator as VideoDiscriminator
    from tgan_fast.models.generator import VideoGenerator as VideoGenerator
    from tgan_fast.models.sampling import Sampler as Sampler
    from tgan_fast.provenance import __version__ as __version__
    from tgan_fast.training.config import TrainingConfig as TrainingConfig
    from tgan_fast.training.loop import train as train
    from tgan_fast.training.step import TrainingStep as TrainingStep

_ORIGINS = {
    "Sampler": "models.sampling",
    "TrainingConfig": "training.config",
    "TrainingStep": "training.step",
    "VideoDiscriminator": "models.discriminator",
    "VideoGenerator": "models.generator",
    "__version__": "provenance",
    "train": "training.loop",
}
__all__ = ["Sampler", "TrainingConfig", "TrainingStep", "VideoDiscriminator", "VideoGenerator", "__version__", "train"]
__getattr__, __dir__ = on_first_use(__name__, _ORIGINS)
