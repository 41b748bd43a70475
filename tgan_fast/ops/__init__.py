"""Operations for any network, one module each."""

from tgan_fast.ops.augmentation import augment_videos
from tgan_fast.ops.batch_norm import batch_norm_act
from tgan_fast.ops.clipping import singular_value_clip, singular_value_clip_
from tgan_fast.ops.clipping.constrain import clamp_batch_norm_scale_, constrain_layers_
from tgan_fast.ops.dispatch import BackendError, backends
from tgan_fast.ops.levels import tanh_to_levels
from tgan_fast.ops.native import native_ops
from tgan_fast.ops.optimizer import adam_, rmsprop_

__all__ = [
    "BackendError",
    "adam_",
    "augment_videos",
    "backends",
    "batch_norm_act",
    "clamp_batch_norm_scale_",
    "constrain_layers_",
    "native_ops",
    "rmsprop_",
    "singular_value_clip",
    "singular_value_clip_",
    "tanh_to_levels",
]
