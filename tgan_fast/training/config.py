"""Settings of a training run: one typed model for the command line, YAML files and library users."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tgan_fast.choices import CudaGraphMode, PrecisionOption, Transform
from tgan_fast.errors import InputError, nearest
from tgan_fast.sizes import (
    FEWEST_FRAMES,
    FRAMES,
    IMAGE_SIZE,
    IMAGE_SIZES,
    LARGEST_DIGITS,
    MOST_FRAMES,
    PAPER_DIGITS,
    PAPER_SPEED,
    SMALLEST_DIGITS,
    doublings,
)

# Largest number of iterations and frames, so that sums of them stay exact. The bounds of sizes are far beyond what fits
# into a machine: they report a typing error before it takes all memory.
_MOST = 10**12


class TrainingConfig(BaseModel):
    """Settings of a training run; the defaults are the paper's, and `PRESETS` has other combinations.

    Raises:
        InputError: A setting is unknown, of the wrong type, out of its range, or does not fit another one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: float = Field(1.0, ge=0.002, le=16, description="Multiplier of the channel counts of both networks.")
    latent_dim: int = Field(100, ge=1, le=65_536, description="Size of the latent vector.")
    channels: int = Field(3, ge=1, le=1024, description="Color channels of the videos.")
    frames: int = Field(FRAMES, ge=FEWEST_FRAMES, le=MOST_FRAMES, description="Frames of a video.")
    image_size: int = Field(IMAGE_SIZE, description="Height and width of a frame, a power of two from 16 to 128.")
    initial_level: float | None = Field(
        None,
        gt=-1,
        lt=1,
        description="Level of untrained videos, between -1 (black) and 1 (white); None: random, near 0.",
    )
    temporal_generator: Literal["deconv", "gru", "lstm"] = Field(
        "deconv",
        description="Network that makes a latent per frame: transposed convolutions (deconv) or a recurrent cell.",
    )
    image_generator: Literal["two-latent", "frame"] = Field(
        "two-latent",
        description="Latents that a frame is generated from: its own and the video's (two-latent), or only its own.",
    )
    discriminator: Literal["conv3d", "frames2d"] = Field(
        "conv3d", description="Convolutions: in 3D, or in 2D over all frames as channels of one image (frames2d)."
    )
    latent: Literal["uniform", "normal"] = Field(
        "uniform", description="Distribution of the latent: uniform in (-1, 1), or standard normal."
    )
    conditional: bool = Field(False, description="Condition both networks on the videos' classes.")
    classes: int | None = Field(
        None, ge=2, le=65_536, description="Number of classes of a conditional run; None: as many as the data has."
    )
    data: str | None = Field(
        None, description="Clip store or prepared .h5, .npy or .npz file to train on; None: moving digits."
    )
    axes: str | None = Field(
        None, description="Videos: order of an array's axes, such as NTHW, if its shape is ambiguous."
    )
    crop: Literal["center", "random"] = Field("center", description="Videos: position of the crop in larger frames.")
    flip: bool = Field(False, description="Videos: mirror half of the clips at random.")
    frame_stride: int = Field(1, ge=1, le=_MOST, description="Videos: keep every n-th frame.")
    weighting: Literal["videos", "windows"] = Field(
        "videos",
        description="Videos: draw each video once per epoch, or each possible clip, which favors longer videos.",
    )
    short_videos: Literal["skip", "loop"] = Field(
        "skip", description="Videos: skip or loop videos that are too short for a clip."
    )
    last_start: bool = Field(
        True, description="Videos: allow the clip that ends with the last frame; the authors' code leaves it out."
    )
    digits: Literal[1, 2] = Field(2, description="Moving digits: number of digits in a clip.")
    digit_size: float = Field(
        PAPER_DIGITS,
        ge=SMALLEST_DIGITS,
        le=LARGEST_DIGITS,
        description="Moving digits: side of a digit as a share of image_size.",
    )
    digit_speed: float = Field(
        PAPER_SPEED,
        ge=0,
        le=1,
        description="Moving digits: largest speed along each axis, in shares of image_size per frame.",
    )
    digit_images: str | None = Field(
        None, description="Moving digits: MNIST's train-images-idx3-ubyte[.gz]; None: scikit-learn's digits."
    )
    init_from: str | None = Field(
        None,
        description="Fine-tuning: checkpoint of any kind, run folder or digits whose networks the run starts with; "
        "settings of the networks then default to the checkpoint's. None: new networks.",
    )
    init_optimizers: bool = Field(False, description="Fine-tuning: also start with the optimizers of init_from.")
    freeze_discriminator: int = Field(
        0,
        ge=0,
        description="Fine-tuning: number of the discriminator's first layers that no optimizer step changes; "
        "the constraint still does.",
    )
    batch_size: int = Field(
        32, le=2**20, description="Videos in a batch, at least 2; several processes share it evenly."
    )
    steps: int = Field(81_000, ge=1, le=_MOST, description="Number of iterations.")
    objective: Literal["wgan", "hinge", "vanilla", "lsgan"] = Field("wgan", description="Losses of both networks.")
    constraint: Literal["svc", "weight-clip", "gradient-penalty", "spectral-norm", "none"] = Field(
        "svc", description="Constraint of the discriminator; svc: singular value clipping."
    )
    clip_interval: int = Field(
        5, ge=0, le=_MOST, description="Apply the constraint every n discriminator steps; 0: never."
    )
    penalty_weight: float | None = Field(None, gt=0, description="Weight of the gradient penalty; None: 10.")
    critic_steps: int = Field(1, ge=1, le=1024, description="Discriminator steps per iteration, each on its own batch.")
    input_noise: float = Field(0.0, ge=0, description="Standard deviation of noise added to the discriminator's input.")
    augment: str | None = Field(
        None,
        description="Differentiable augmentation of real and generated videos, for small data sets: color, "
        "translation, cutout, or several of them, separated by commas; None: no augmentation.",
    )
    optimizer: Literal["rmsprop", "adam"] = Field("rmsprop", description="Optimizer of both networks.")
    learning_rate: float = Field(5e-5, gt=0, description="Learning rate of both optimizers.")
    discriminator_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the discriminator's optimizer; None: learning_rate."
    )
    lr_decay: Literal["none", "linear"] = Field(
        "none", description="Decay of the learning rate; linear: to 0 at the last iteration."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Adam: decay of the average of gradients.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Adam: decay of the average of squared gradients.")
    shared_fakes: bool = Field(
        False, description="Use one batch of generated videos for both networks' steps, as the authors' code does."
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Decay of a moving average of the generator's weights; None: no average."
    )
    seed: int = Field(
        0, ge=0, le=2**63 - 1, description="Seed of weights, latents, moving digits and the order of the data."
    )
    precision: PrecisionOption = Field(
        "auto",
        description="Precision of convolutions and matrix products; auto: bf16 on GPUs that support it, else fp32.",
    )
    cuda_graph: CudaGraphMode = Field("auto", description="Replay iterations as CUDA graphs; auto: if possible.")
    sync_batch_norm: bool = Field(False, description="Compute batch statistics over all processes of torchrun.")
    workers: int = Field(4, ge=1, le=1024, description="Threads that prepare batches in the background.")
    device: str = Field("auto", description="Device: auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    log_interval: int = Field(100, ge=1, le=_MOST, description="Iterations between lines of stats.jsonl.")
    sample_interval: int = Field(1000, ge=1, le=_MOST, description="Iterations between sample GIFs.")
    checkpoint_interval: int = Field(1000, ge=1, le=_MOST, description="Iterations between checkpoints.")
    evaluate_every: int = Field(
        0, ge=0, le=_MOST, description="Iterations between evaluations of the generator; 0: no evaluations."
    )
    classifier: str | None = Field(
        None,
        description="Evaluation: classifier file from train-classifier or convert-classifier; "
        "None: the package's own, for moving digits.",
    )
    evaluate_samples: int = Field(2048, ge=2, le=_MOST, description="Evaluation: number of generated videos.")
    best_metric: Literal["is", "fid"] = Field("fid", description="Evaluation: metric by which best.pt is chosen.")
    keep_checkpoints: int = Field(3, ge=1, le=_MOST, description="Number of newest checkpoints to keep.")

    def __init__(self, **values: Any):
        for name, value in values.items():
            field = type(self).model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise InputError(f"{name} is {value}, but it must not be true or false")
        try:
            super().__init__(**in_current_words(values))
        except ValidationError as error:
            raise InputError(_sentence(error.errors()[0])) from None
        if self.batch_size < 2:
            raise InputError(f"batch_size is {self.batch_size}, but batch norm needs at least 2 videos")
        self._refuse_settings_of_other_data()
        reason = _why_not(self)
        if reason is not None:
            raise InputError(reason)
        if self.evaluate_every and self.classifier is None and self.data is not None:
            raise InputError("evaluate_every needs a classifier: train one with python -m tgan_fast train-classifier")
        if self.classifier is not None and not self.evaluate_every:
            raise InputError("classifier is only used by evaluations during training: set evaluate_every, too")

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Transforms that `augment` names."""
        names = (name.strip() for name in (self.augment or "").split(","))
        return cast(tuple[Transform, ...], tuple(filter(None, names)))

    def _refuse_settings_of_other_data(self):
        other, kind = (OF_VIDEOS, "videos") if self.data is None else (OF_DIGITS, "moving digits")
        for name in other:
            if getattr(self, name) != type(self).model_fields[name].default:
                remedy = "give data" if self.data is None else "leave out data"
                raise InputError(f"{name} is {getattr(self, name)!r}, but it is for {kind}: {remedy}, or leave it out")


def in_current_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a checkpoint or file with today's values: 0.1.0 wrote the crop "center" as "centre"."""
    return {**values, "crop": "center"} if values.get("crop") == "centre" else dict(values)


def _why_not(config):
    """Return why settings that are valid by themselves do not fit together, or None."""
    if config.image_size not in IMAGE_SIZES:
        smallest, largest = IMAGE_SIZES[0], IMAGE_SIZES[-1]
        return f"image_size is {config.image_size}, but it must be a power of two from {smallest} to {largest}"
    if config.temporal_generator == "deconv" and config.frames.bit_count() != 1:
        return (
            f"frames is {config.frames}, which temporal_generator deconv cannot make by doubling: "
            "choose 8, 16, 32 or 64, or temporal_generator gru or lstm"
        )
    if config.classes is not None and not config.conditional:
        return (
            f"classes is {config.classes}, but only conditional runs have classes: "
            "add conditional, or leave out classes"
        )
    for name in ("init_optimizers", "freeze_discriminator"):
        if getattr(config, name) and config.init_from is None:
            return f"{name} is for the networks of a checkpoint: give init_from, too, or leave out {name}"
    layers = doublings(config.image_size)
    if config.freeze_discriminator > layers:
        return (
            f"freeze_discriminator is {config.freeze_discriminator}, but at most {layers} of the discriminator's "
            f"{layers + 1} layers can be frozen"
        )
    for name in config.transforms:
        if name not in get_args(Transform):
            return f"augment has {name!r}, but the transforms are {', '.join(get_args(Transform))}: choose from these"
    if config.augment is not None and not config.transforms:
        return "augment is empty: name transforms such as color,translation,cutout, or leave it out"
    if config.penalty_weight is not None and config.constraint != "gradient-penalty":
        return (
            f"penalty_weight is {config.penalty_weight}, but the constraint is {config.constraint}: "
            "choose constraint gradient-penalty, or leave out penalty_weight"
        )
    if config.constraint == "gradient-penalty" and config.sync_batch_norm and config.discriminator == "conv3d":
        return (
            "constraint gradient-penalty differentiates twice, which sync_batch_norm does not support: "
            "leave out one of them, or choose discriminator frames2d"
        )
    for name in ("adam_beta1", "adam_beta2"):
        if config.optimizer != "adam" and getattr(config, name) != type(config).model_fields[name].default:
            return f"{name} is for optimizer adam, not {config.optimizer}: choose optimizer adam, or leave out {name}"
    if config.shared_fakes and config.objective != "wgan":
        return (
            f"shared_fakes needs two opposite losses, which objective {config.objective} does not have: "
            "choose objective wgan, or leave out shared_fakes"
        )
    if config.shared_fakes and config.critic_steps > 1:
        return (
            f"shared_fakes is one batch of fakes for both networks, but critic_steps is {config.critic_steps}: "
            "choose critic_steps 1, or leave out shared_fakes"
        )
    return None


# Settings that name files.
PATHS = ("data", "digit_images", "classifier", "init_from")

# Settings that apply to moving digits only, and to videos only.
OF_DIGITS = ("digit_images", "digit_size", "digit_speed")
OF_VIDEOS = ("axes", "crop", "flip", "frame_stride", "weighting", "short_videos", "last_start")

# Two minutes on a CPU, found by a search (benchmarks/README.md): small frames with digits large enough to be read.
_TINY: dict[str, Any] = {
    "channels": 1,
    "digits": 1,
    "image_size": 32,
    "digit_size": 0.75,
    "digit_speed": 0.025,
    # With a lighter level some seeds learn dark digits on a gray ground: batch norm hides brightness from the critic.
    "initial_level": -0.8,
    "width": 0.125,
    "latent_dim": 32,
    "frames": 8,
    "batch_size": 8,
    "steps": 2500,
    "clip_interval": 1,
    # Constant: with linear decay, scores became worse towards the end (benchmarks/README.md).
    "learning_rate": 5e-4,
    "discriminator_learning_rate": 1e-3,
    "ema_decay": 0.99,
    "workers": 1,
    "log_interval": 10,
    "sample_interval": 250,
    "checkpoint_interval": 250,
    "evaluate_every": 250,
    "evaluate_samples": 512,
}

# The default on a CPU, found by a search as well: it learns recognizable digits fastest.
_QUICK: dict[str, Any] = {
    **_TINY,
    "conditional": True,
    "discriminator": "frames2d",
    "objective": "hinge",
    "width": 0.1875,
    "learning_rate": 7.7e-4,
    "discriminator_learning_rate": None,
    "ema_decay": 0.995,
}

# The generator in the package: 25 minutes on two CPU threads.
_DIGITS: dict[str, Any] = {
    **_TINY,
    "conditional": True,
    "width": 0.25,
    "batch_size": 16,
    "steps": 8000,
    "clip_interval": 5,
    "learning_rate": 4e-4,
    "discriminator_learning_rate": 1.6e-3,
    "lr_decay": "linear",
    "ema_decay": 0.998,
    "sample_interval": 1000,
    "checkpoint_interval": 1000,
    "evaluate_every": 1000,
}

_ADAM: dict[str, Any] = {"optimizer": "adam", "learning_rate": 2e-4, "adam_beta1": 0.5}


def _one_rate(learning_rate: float) -> dict[str, Any]:
    return {"learning_rate": learning_rate, "discriminator_learning_rate": None}


# Other systems, from papers, public code and summaries: their settings, and those that a narrow model needs instead.
_SYSTEMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "authors": ({"shared_fakes": True}, {}),
    "weight-clip": ({"constraint": "weight-clip", "clip_interval": 1}, _one_rate(2e-4)),
    "vanilla": ({"objective": "vanilla", "constraint": "none", "input_noise": 0.3, **_ADAM}, _one_rate(1e-3)),
    "lsgan": ({"objective": "lsgan", "constraint": "none", **_ADAM}, _one_rate(1e-3)),
    "gradient-penalty": (
        {
            "constraint": "gradient-penalty",
            "critic_steps": 5,
            "optimizer": "adam",
            "learning_rate": 1e-4,
            "adam_beta1": 0.0,
            "adam_beta2": 0.9,
        },
        {**_one_rate(1e-3), "critic_steps": 2, "steps": 800},
    ),
    "spectral-norm": ({"constraint": "spectral-norm", "clip_interval": 1}, {}),
    "conditional": (
        {"conditional": True},
        {
            "width": 0.25,
            "learning_rate": 4e-4,
            "discriminator_learning_rate": 1.6e-3,
            "ema_decay": 0.995,
            "steps": 1250,
        },
    ),
    "gru-summary": (
        {
            "temporal_generator": "gru",
            "image_generator": "frame",
            "discriminator": "frames2d",
            "latent": "normal",
            "critic_steps": 5,
            "clip_interval": 1,
            **_ADAM,
        },
        {**_one_rate(1e-3), "steps": 950},
    ),
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "tiny": _TINY,
    "quick": _QUICK,
    "digits": _DIGITS,
    **{name: settings for name, (settings, _) in _SYSTEMS.items()},
    **{f"tiny-{name}": _TINY | settings | narrow for name, (settings, narrow) in _SYSTEMS.items()},
}


def default_preset(data: str | None) -> str:
    """Return `paper` if there is a GPU, else a narrow model: `quick` for moving digits, `tiny` for other data.

    Args:
        data: Data to train on, which need not have classes; None for moving digits.
    """
    import torch

    if torch.cuda.is_available():
        return "paper"
    return "quick" if data is None else "tiny"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the values in a YAML file of settings.

    Raises:
        InputError: The file cannot be read, is not valid YAML, or is not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}") from None
    except Exception as error:  # PyYAML raises errors of many types for invalid values
        raise InputError(f"{path} is not a YAML file of settings: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path} must hold lines of 'key: value', as in 'batch_size: 32'")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """Safe loader that refuses duplicate keys; PyYAML's own loader takes the last of them."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise yaml.YAMLError(f"it has {key} twice: leave one of them out")
        return super().construct_mapping(node, deep)


def _sentence(error):
    key = ".".join(str(part) for part in error["loc"][:1])
    if error["type"] == "extra_forbidden":
        return f"there is no setting {key}{nearest(key, TrainingConfig.model_fields)}"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{key} is {reprlib.repr(error['input'])}, but {message.replace('input should', 'it must')}"
