"""Registry of the variants that a training run can choose from.

A new variant is one class and one line here, and for a latent one more line in `tgan_fast.models.latents.LATENTS`. The
command line, YAML files and the test that combines all variants then know it by its name. Classes are imported when a
run needs them, so that help texts and errors in settings do not import them.
"""

import pkgutil
from typing import Any

# setting → name → class
REGISTRY = {
    "temporal_generator": {
        "deconv": "tgan_fast.models.temporal_generators:TemporalGenerator",
        "gru": "tgan_fast.models.temporal_generators:GRUTemporalGenerator",
        "lstm": "tgan_fast.models.temporal_generators:LSTMTemporalGenerator",
    },
    "image_generator": {
        "two-latent": "tgan_fast.models.generator:VideoGenerator",
        "frame": "tgan_fast.models.generator:FrameGenerator",
    },
    "discriminator": {
        "conv3d": "tgan_fast.models.discriminator:VideoDiscriminator",
        "frames2d": "tgan_fast.models.discriminator:FramesDiscriminator",
    },
    "latent": {
        "uniform": "tgan_fast.models.latents:Uniform",
        "normal": "tgan_fast.models.latents:Normal",
    },
    "objective": {
        "wgan": "tgan_fast.training.objectives:Wasserstein",
        "hinge": "tgan_fast.training.objectives:Hinge",
        "vanilla": "tgan_fast.training.objectives:Vanilla",
        "lsgan": "tgan_fast.training.objectives:LeastSquares",
    },
    "constraint": {
        "svc": "tgan_fast.training.constraints:SpectralClipping",
        "weight-clip": "tgan_fast.training.constraints:WeightClipping",
        "gradient-penalty": "tgan_fast.training.constraints:GradientPenalty",
        "spectral-norm": "tgan_fast.training.constraints:SpectralNormalization",
        "none": "tgan_fast.training.constraints:Constraint",
    },
    "optimizer": {
        "rmsprop": "tgan_fast.training.optimizers:RMSprop",
        "adam": "tgan_fast.training.optimizers:Adam",
    },
}


def lookup(setting: str, name: str) -> type[Any]:
    """Return the class of the variant `name` of a setting."""
    return pkgutil.resolve_name(REGISTRY[setting][name])
