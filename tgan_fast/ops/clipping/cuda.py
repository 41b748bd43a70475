"""Launcher of the CUDA kernels of singular value clipping: tensors in, addresses and strides out to csrc/cuda.

One call clips all weights of a discriminator in four launches (csrc/cuda/singular_value_clip.h). It does not wait for
the GPU. A CUDA graph can capture it after a first call outside of the graph, which loads the kernels.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from tgan_fast.ops.clipping.operands import place_of
from tgan_fast.ops.clipping.sign_schedule import sign_schedule
from tgan_fast.ops.cuda_extension import extension
from tgan_fast.ops.dispatch import BackendError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_COPY_TYPES = {torch.float16: 1, torch.bfloat16: 2}
# For σ from t up to ‖W‖ = 3162·t. Their deviation only decides which weights count as within the threshold.
POLYNOMIALS = sign_schedule(1e-15, 1e-8)
_KEPT_WORKSPACES = 8


def launch(
    weights: Sequence[torch.Tensor],
    thresholds: Sequence[float],
    *,
    copies: Sequence[torch.Tensor | None] | None = None,
    non_finite: torch.Tensor | None = None,
    scales: Sequence[torch.Tensor] = (),
    running_vars: Sequence[torch.Tensor] = (),
    lowest: float = 0.0,
    eps: float = 0.0,
    float64_only: bool = False,
) -> None:
    """Clip weights, each at its own threshold, and clamp batch-norm scales of one GPU, in place, on its current stream.

    The arguments are those of `tgan_fast.ops.constrain_layers_` and have passed its checks. The smaller side of every
    weight must be at most the GPU's `largest_side`, and scales and variances must be contiguous float32. With
    `float64_only`, no weight is clipped in fixed point (csrc/cuda/fixed_point.cuh). A weight that
    is listed again is clipped once, at the first of its thresholds, so the caller must give it the same one every time.
    """
    device = (*weights, *scales)[0].device
    copies = copies or [None] * len(weights)
    with _current_gpu(device) as gpu:
        operands, repeated = _operands(weights, thresholds, copies)
        matrices = [operand.matrix for operand in operands]
        size = extension().workspace_bytes(matrices)
        workspace = _workspace(device, size)
        error = extension().constrain(
            matrices=matrices,
            scales=[(s.data_ptr(), v.data_ptr(), s.numel()) for s, v in zip(scales, running_vars, strict=True)],
            polynomials=POLYNOMIALS,
            deviation=POLYNOMIALS[-1].deviation,
            float64_only=float64_only,
            lowest=lowest,
            epsilon=eps,
            non_finite=0 if non_finite is None else non_finite.data_ptr(),
            workspace=workspace.data_ptr(),
            workspace_size=size,
            **gpu,
        )
        if error:
            raise BackendError(f"singular value clipping failed on {weights[0].device}: {error}")
        for operand in operands:
            operand.finish()
        for weight, copy in repeated:
            copy.copy_(weight)
    # Autograd cannot see what the kernels wrote.
    written = [*weights, *scales, *(copy for copy in copies if copy is not None)]
    torch.autograd.graph.increment_version([tensor for tensor in written if not tensor.is_inference()])


@contextmanager
def _current_gpu(device: torch.device) -> Iterator[dict]:
    """Make a GPU the current one, and yield its index and stream as arguments of the extension."""
    stream = torch.cuda.current_stream(device).cuda_stream
    # On leaving, PyTorch restores the current GPU without creating a context on one that nobody uses.
    with torch.cuda.device(device):
        yield {"device": device.index, "stream": stream}


class _Operand(NamedTuple):
    """A weight and the float32 matrix that the kernels clip: the weight itself if possible, else a copy."""

    weight: torch.Tensor
    copy: torch.Tensor | None  # copy that finish() writes; None if the kernels write it or there is none
    clipped: torch.Tensor
    matrix: tuple[int, int, int, int, int, float, int, int]

    @classmethod
    def of(cls, weight, threshold, copy):
        clipped, written = weight.detach(), None
        if clipped.dtype != torch.float32 or _column_stride(clipped) is None:
            clipped = clipped.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        elif copy is not None and copy.dtype in _COPY_TYPES and copy.stride() == weight.stride():
            written, copy = copy, None
        rows = clipped.shape[0] if clipped.dim() > 1 else 1
        row_stride = clipped.stride(0) if clipped.dim() > 1 else clipped.numel()
        matrix = (
            clipped.data_ptr(),
            rows,
            clipped.numel() // rows,
            row_stride,
            _column_stride(clipped),
            threshold,
            0 if written is None else written.data_ptr(),
            0 if written is None else _COPY_TYPES[written.dtype],
        )
        return cls(weight, copy, clipped, matrix)

    def finish(self):
        """Write what the kernels could not: weights and copies of another layout or dtype."""
        if self.clipped.data_ptr() != self.weight.data_ptr():
            self.weight.copy_(self.clipped)
        if self.copy is not None:
            self.copy.copy_(self.weight)


def _operands(weights, thresholds, copies):
    """Return the operands of the kernels, and (weight, copy) pairs of weights that are listed again.

    A weight that two layers share is clipped once, because clipping it twice at the same time would be a race.
    """
    operands, repeated, seen = [], [], set()
    for weight, threshold, copy in zip(weights, thresholds, copies, strict=True):
        place = place_of(weight)
        if place not in seen:
            operands.append(_Operand.of(weight, threshold, copy))
        elif copy is not None:
            repeated.append((weight, copy))
        seen.add(place)
    return operands, repeated


def _column_stride(weight):
    """Return the stride between a row's elements in memory, or None if it is not constant.

    The order of columns does not change the singular values, so the dimensions after the first may lie in memory in any
    order, as in channels-last layouts.
    """
    inner = range(1, weight.dim()) if weight.dim() > 1 else range(1)
    sizes = sorted((weight.stride(d), weight.shape[d]) for d in inner if weight.shape[d] > 1)
    if not sizes:
        return 1
    expected = sizes[0][0]
    for stride, size in sizes:
        if stride != expected:
            return None
        expected *= size
    return sizes[0][0]


_workspaces: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()


def _workspace(device, size):
    """Return at least `size` bytes on the device, kept for the next call on the same stream.

    During the capture of a CUDA graph, the bytes come from the graph's memory, because the graph may be replayed on
    another stream.
    """
    if torch.cuda.is_current_stream_capturing():
        return torch.empty(size, dtype=torch.uint8, device=device)
    key = (device.index, torch.cuda.current_stream(device).cuda_stream)
    if key not in _workspaces or _workspaces[key].numel() < size:
        _workspaces[key] = torch.empty(size, dtype=torch.uint8, device=device)
    _workspaces.move_to_end(key)
    while len(_workspaces) > _KEPT_WORKSPACES:
        _workspaces.popitem(last=False)
    return _workspaces[key]
