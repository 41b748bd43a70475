"""From a data set to the videos that a training step reads, without the step waiting for any of it."""

import functools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import torch

from tgan_fast.data.clip_dataset import ClipDataset
from tgan_fast.data.moving_digits import MovingDigits
from tgan_fast.data.order import BatchOrder
from tgan_fast.data.pixels import scaled
from tgan_fast.data.prefetch import Filling, filled_ahead, uploaded_ahead
from tgan_fast.data.video_frames import VideoFrames
from tgan_fast.data.windows import read_windows, whole_frames
from tgan_fast.errors import InputError
from tgan_fast.models import FRAMES, IMAGE_SIZE

Residence = Literal["auto", "on", "off"]

# Of the device's free memory. Networks, gradients and activations of training take what is left.
RESIDENT_SHARE = 0.5

_FRAMES_AT_ONCE = 4096


@dataclass(frozen=True)
class Feed:
    """Batches for a training step, and how it reads them.

    Attributes:
        read: a batch → videos [n, C, 16, 64, 64] in [-1, 1], channels last in memory; a CUDA graph can hold it.
        description: one line on where the clips live.
    """

    read: Callable[[torch.Tensor], torch.Tensor]
    description: str
    _filling: Filling
    _device: torch.device
    _workers: int

    def batches(self, start: int = 0) -> Generator[torch.Tensor, None, None]:
        """Batches start, start + 1, … without end, on the device, each valid until the next one is asked for.

        The step launches its work on the stream that is current here. Closing the generator ends its threads; an error
        in one of them is raised in its batch's turn.
        """
        if self._device.type == "cuda":
            return uploaded_ahead(self._filling, start, self._workers, self._device)
        return filled_ahead(self._filling, start, self._workers)


def open_feed(
    dataset: ClipDataset | VideoFrames,
    *,
    batch_size: int,
    channels: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
    resident: Residence = "auto",
) -> Feed:
    """Feed a training step with shuffled batches; batch k is a function of the data set, `seed` and k alone.

    Frames that fit the device live there, and moving digits are drawn there; a batch then only says where its clips
    are. Other clips are put together in host memory by threads, and copied to the device ahead of time.

    Args:
        dataset: see `ClipDataset` and `VideoFrames`.
        batch_size: of the whole batch; each of `world_size` processes gets an equal consecutive part of it.
        channels: of the videos; a single channel of a data set is repeated.
        device: where the step runs.
        dtype: of the videos.
        seed: of the order, and of windows, crops and flips.
        workers: threads.
        rank: of this process.
        resident: whether frames live on the device. "auto": on a GPU, where they take at most half of its free memory.

    Raises:
        InputError: a data set that does not fit the model or the batch, or frames that are to be resident and cannot.
    """
    device = torch.device(device)
    _check(dataset, channels)
    _check_size(dataset, batch_size)
    order = BatchOrder(len(dataset), batch_size, seed=seed, rank=rank, world_size=world_size)
    # Not isinstance: what is derived from MovingDigits may yield clips of its own.
    in_windows = isinstance(dataset, VideoFrames) or type(dataset) is MovingDigits
    if not in_windows and resident == "on":
        raise InputError("clips that a data set makes one by one cannot be resident: choose resident='auto'")
    if in_windows and _is_resident(resident, dataset, device):
        filling, read = _windows(dataset, order, device, dtype, channels)
        description = _resident_description(dataset, device)
    else:
        filling, read = _clips(dataset, order, device, dtype, channels)
        description = _host_description(dataset, device, workers)
    return Feed(read, description, filling, device, workers)


def fits(nbytes: int, free: int) -> bool:
    """Whether frames of `nbytes` are to live on a device that has `free` bytes."""
    return nbytes <= RESIDENT_SHARE * free


def _check(dataset, channels):
    size = FRAMES, IMAGE_SIZE, IMAGE_SIZE
    if isinstance(dataset, VideoFrames):
        dtype, shape = "uint8", (*size, dataset.frames.shape[-1])
    elif len(dataset):
        clip = dataset[0][0]
        dtype, shape = clip.dtype, clip.shape
    else:
        raise InputError("the data set has no clips")
    if dtype != "uint8" or shape not in ((*size, channels), (*size, 1)):
        raise InputError(
            f"training takes clips of uint8 {[*size, channels]} (frames, height, width, channels), "
            f"but the data set yields {dtype} {list(shape)}{_remedy(dtype, shape)}"
        )


def _remedy(dtype, shape):
    fits = dtype == "uint8" and shape[:-1] == (FRAMES, IMAGE_SIZE, IMAGE_SIZE)
    return f": choose channels {shape[-1]}" if fits else ""


def _check_size(dataset, batch_size):
    """What `BatchOrder` refuses too, where there is a remedy."""
    if isinstance(dataset, VideoFrames) and len(dataset) < batch_size <= dataset.starts.sum():
        raise InputError(
            f"the data set has {len(dataset)} videos, fewer than a batch of {batch_size}: choose weighting='windows'"
        )


def _is_resident(residence, dataset, device):
    if device.type != "cuda" or residence == "off":
        return residence == "on"
    nbytes, (free, _) = dataset.frames.nbytes, torch.cuda.mem_get_info(device)
    if residence == "on" and nbytes > free:
        raise InputError(
            f"the frames take {_gigabytes(nbytes)}, but {device} has {_gigabytes(free)} free: choose resident='auto'"
        )
    return residence == "on" or fits(nbytes, free)


def _windows(dataset, order, device, dtype, channels):
    """Batches are windows of frames, which live on the device."""

    def fill(k, out):
        out[...] = dataset.windows(order.indices(k), order.choices(k))[order.part]

    frames = dataset.frames if device.type == "cpu" else _uploaded(dataset.frames, device)
    filling = Filling(fill, (order.rows, dataset.layers, FRAMES, 4), torch.int64)
    return filling, functools.partial(read_windows, frames, dtype=dtype, channels=channels)


def _uploaded(frames, device):
    """Frames on the device, one after another whatever their strides were."""
    uploaded = torch.empty(frames.shape, dtype=frames.dtype, device=device)
    # In parts, since a copy of what has other strides goes through as much host memory as it has bytes.
    for target, part in zip(uploaded.split(_FRAMES_AT_ONCE), frames.split(_FRAMES_AT_ONCE), strict=True):
        target.copy_(part)
    return uploaded


def _clips(dataset, order, device, dtype, channels):
    """Batches are clips, put together in host memory."""

    def fill_with_windows(k, out):
        dataset.cut(dataset.windows(order.indices(k), order.choices(k))[order.part], out)

    def fill_one_by_one(k, out):
        for place, index in zip(out, order.indices(k)[order.part].tolist(), strict=True):
            place[...] = _clip(dataset, index, place.shape)

    of_frames = isinstance(dataset, VideoFrames)
    clip_channels = dataset.frames.shape[-1] if of_frames else dataset[0][0].shape[-1]
    shape = order.rows, FRAMES, IMAGE_SIZE, IMAGE_SIZE, clip_channels
    filling = Filling(fill_with_windows if of_frames else fill_one_by_one, shape, torch.uint8)
    if device.type == "cpu":
        return filling, functools.partial(scaled, dtype=dtype, channels=channels)
    # In one pass, and the same bits that resident frames become.
    windows = whole_frames(order.rows).to(device)
    return filling, lambda batch: read_windows(batch.flatten(0, 1), windows, dtype=dtype, channels=channels)


def _clip(dataset, index, shape):
    clip = dataset[index][0]
    if clip.dtype != "uint8" or clip.shape != shape:
        raise InputError(
            f"clip {index} of the data set is {clip.dtype} {list(clip.shape)}, but clip 0 is uint8 {list(shape)}"
        )
    return clip


def _resident_description(dataset, device):
    if isinstance(dataset, VideoFrames):
        return f"{_videos(dataset)} live on {device}: {_gigabytes(dataset.frames.nbytes)} of frames"
    return f"{len(dataset):,} clips of moving digits are drawn on {device}"


def _host_description(dataset, device, workers):
    threads = f"{workers} thread{'s' if workers > 1 else ''}"
    ahead = "made ahead of time" if device.type == "cpu" else f"copied to {device} ahead of time"
    if isinstance(dataset, VideoFrames):
        of_frames = _gigabytes(dataset.frames.nbytes)
        return f"{_videos(dataset)} live in host memory: {of_frames} of frames; batches are {ahead} by {threads}"
    return f"{len(dataset):,} clips are made in host memory, one by one; batches are {ahead} by {threads}"


def _videos(dataset):
    windows = f" ({len(dataset):,} windows)" if dataset.weighting == "windows" else ""
    return f"{len(dataset.first):,} videos{windows}"


def _gigabytes(nbytes):
    return f"{nbytes / 1e9:.1f} GB"
