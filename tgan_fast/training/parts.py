"""The parts that a training run is put together from: a variant is one class, and one line here.

The names are those of the settings; a new one is at once in the command line, in YAML files and in the tests that
combine all parts.
"""

from tgan_fast.models import (
    FrameGenerator,
    FramesDiscriminator,
    GRUTemporalGenerator,
    LSTMTemporalGenerator,
    TemporalGenerator,
    VideoDiscriminator,
    VideoGenerator,
)
from tgan_fast.models.latents import LATENTS
from tgan_fast.training.constraints import (
    Constraint,
    GradientPenalty,
    SingularValueClipping,
    SpectralNormalisation,
    WeightClipping,
)
from tgan_fast.training.network import OPTIMIZERS
from tgan_fast.training.objectives import LeastSquares, Vanilla, Wasserstein

# setting            name → class
PARTS = {
    "temporal_generator": {
        "deconv": TemporalGenerator,
        "gru": GRUTemporalGenerator,
        "lstm": LSTMTemporalGenerator,
    },
    "image_generator": {
        "two-latent": VideoGenerator,
        "frame": FrameGenerator,
    },
    "discriminator": {
        "conv3d": VideoDiscriminator,
        "frames2d": FramesDiscriminator,
    },
    "latent": LATENTS,
    "objective": {
        "wgan": Wasserstein,
        "vanilla": Vanilla,
        "lsgan": LeastSquares,
    },
    "constraint": {
        "svc": SingularValueClipping,
        "weight-clip": WeightClipping,
        "gradient-penalty": GradientPenalty,
        "spectral-norm": SpectralNormalisation,
        "none": Constraint,
    },
    "optimizer": OPTIMIZERS,
}
