"""The operations, each in a file of its own, for any network."""

from tgan_fast.ops.batch_norm_act import batch_norm_act
from tgan_fast.ops.clamp_batch_norm_scale import clamp_batch_norm_scale_
from tgan_fast.ops.constrain_layers import constrain_layers_
from tgan_fast.ops.optimizer_step import adam_, rmsprop_
from tgan_fast.ops.plain import plain_operations
from tgan_fast.ops.registry import BackendError, backends
from tgan_fast.ops.singular_value_clip import singular_value_clip, singular_value_clip_
from tgan_fast.ops.video_levels import tanh_to_levels

__all__ = [
    "BackendError",
    "adam_",
    "backends",
    "batch_norm_act",
    "clamp_batch_norm_scale_",
    "constrain_layers_",
    "plain_operations",
    "rmsprop_",
    "singular_value_clip",
    "singular_value_clip_",
    "tanh_to_levels",
]
