"""Modules around the operations: fused batch norm and activation, and the Lipschitz constraint of a network."""

from tgan_fast.nn.batch_norm_act import BATCH_NORMS, BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from tgan_fast.nn.fused import FusedModule, FusedSequential, is_watched
from tgan_fast.nn.fusion import FusionReport, fuse_batch_norm
from tgan_fast.nn.singular_values import (
    TRANSPOSED,
    WEIGHTED,
    ClippedSingularValues,
    SingularValueClipping,
    constrain_,
    scales_of,
    weights_of,
)

__all__ = [
    "BATCH_NORMS",
    "TRANSPOSED",
    "WEIGHTED",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "ClippedSingularValues",
    "FusedModule",
    "FusedSequential",
    "FusionReport",
    "SingularValueClipping",
    "constrain_",
    "fuse_batch_norm",
    "is_watched",
    "scales_of",
    "weights_of",
]
