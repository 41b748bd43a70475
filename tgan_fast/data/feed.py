"""The feed: shuffled batches of a data set, prepared ahead of time, and their conversion to videos for a step."""

import functools
import operator
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

from tgan_fast.data.moving_digits import MovingDigits
from tgan_fast.data.order import BatchOrder
from tgan_fast.data.prefetch import Filling, TensorSpec, filled_ahead, uploaded_ahead
from tgan_fast.data.video_frames import VideoFrames
from tgan_fast.errors import InputError
from tgan_fast.ops.windows import read_windows, whole_frames
from tgan_fast.pixels import to_videos
from tgan_fast.sizes import FEWEST_FRAMES, FRAMES, IMAGE_SIZE, IMAGE_SIZES, MOST_FRAMES

Residence = Literal["auto", "on", "off"]

# Share of the device's free memory that frames may take. Networks, gradients and activations need the rest.
RESIDENT_SHARE = 0.5

_FRAMES_AT_ONCE = 4096


class ClipDataset(Protocol):
    """Anything with a length and with clips by index.

    `dataset[i]` is a pair (clip, label): a uint8 array [T, H, W, C] of frames, and a class number (0 where there are no
    classes). The same `i` must always give the same pair in every thread, so that an interrupted run resumes exactly.

    A data set may also have three attributes: `classes`, the number of its classes; `fingerprint`, a text that changes
    with the clips, so that a resumed run notices changes; and `summary`, a line that is printed when a run begins.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, int]: ...


class Batch(NamedTuple):
    """A process's rows of a batch, on its device.

    Attributes:
        clips: Input of `Feed.read`: clips uint8 [n, T, H, W, C], or windows int64 [n, layers, T, 4] that locate the
            clips in frames on the device.
        labels: Classes of the clips, int64 [n]; None unless the feed is labeled.
    """

    clips: torch.Tensor
    labels: torch.Tensor | None = None


@dataclass(frozen=True)
class Feed:
    """Batches for a training step, and the function that converts them to videos.

    Attributes:
        read: Function that converts a batch's clips to videos [n, C, T, H, W] in [-1, 1], channels last in memory; it
            can be captured in a CUDA graph.
        description: One line on where the clips live.
    """

    read: Callable[[torch.Tensor], torch.Tensor]
    description: str
    _filling: Filling
    _device: torch.device
    _workers: int

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yield batches start, start + 1, … without end, on the device, each valid until the next one is asked for.

        The step must launch its work on the stream that is current when batches are asked for. Closing the generator
        ends its threads; an error in one of them is raised when its batch is due.
        """
        if self._device.type == "cuda":
            made = uploaded_ahead(self._filling, start, self._workers, self._device)
        else:
            made = filled_ahead(self._filling, start, self._workers)
        with closing(made):
            for tensors in made:
                yield Batch(*tensors)


def open_feed(
    dataset: ClipDataset | VideoFrames,
    *,
    batch_size: int,
    batches_per_step: int = 1,
    channels: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
    resident: Residence = "auto",
    frames: int = FRAMES,
    image_size: int = IMAGE_SIZE,
    labeled: bool = False,
) -> Feed:
    """Return a feed of shuffled batches for a training step; batch k depends only on the data set, `seed` and k.

    Frames that fit into the device's memory live there, and moving digits are drawn there; a batch then only holds the
    positions of its clips. Other clips are assembled in host memory by threads, and copied to the device ahead of time.

    Args:
        dataset: Data set of clips.
        batch_size: Number of clips of the whole batch; each of `world_size` processes gets an equal consecutive part.
        batches_per_step: Number of batches that a step takes: they are concatenated, and `Feed.read` converts one of
            them at a time.
        channels: Number of channels of the videos; if the clips have a single channel, it is repeated.
        device: Device of the step.
        dtype: Floating-point dtype of the videos.
        seed: Seed of the order, windows, crops and flips.
        workers: Number of threads.
        rank: Rank of this process.
        world_size: Number of processes.
        resident: Place of the frames: "on" puts them on the device, "off" leaves them in host memory, and "auto"
            puts them on a GPU where they take at most half of its free memory.
        frames: Number of frames of a video.
        image_size: Side of the videos in pixels.
        labeled: Whether batches have labels.

    Raises:
        InputError: The data set does not fit the model or the batch, a label is not a class number, or `resident` is
            "on" and the frames cannot live on the device.
    """
    device = torch.device(device)
    _check_clips(dataset, (frames, image_size, image_size, channels))
    _check_size(dataset, batches_per_step * batch_size)
    if labeled:
        _check_labels(dataset)
    order = BatchOrder(
        len(dataset), batch_size, batches_per_step=batches_per_step, seed=seed, rank=rank, world_size=world_size
    )
    # isinstance would also accept subclasses of MovingDigits, which may yield clips of their own.
    in_windows = isinstance(dataset, VideoFrames) or type(dataset) is MovingDigits
    if not in_windows and resident == "on":
        raise InputError("clips that a data set makes one by one cannot be resident: choose resident='auto'")
    if in_windows and _is_resident(resident, dataset, device):
        filling, read = _window_filling(dataset, order, labeled, device, dtype, channels)
        description = _resident_description(dataset, device)
    else:
        filling, read = _clip_filling(dataset, order, labeled, device, dtype, channels)
        description = _host_description(dataset, device, workers)
    return Feed(read, description, filling, device, workers)


def fits_memory(nbytes: int, free: int) -> bool:
    """Return whether frames of `nbytes` should live on a device that has `free` bytes."""
    return nbytes <= RESIDENT_SHARE * free


def _check_clips(dataset, wanted):
    """Raise an InputError unless clips are uint8 of the `wanted` shape, or of that shape with a single channel."""
    if isinstance(dataset, VideoFrames):
        dtype, shape = "uint8", dataset.clip_shape
    elif len(dataset):
        clip = dataset[0][0]
        dtype, shape = clip.dtype, clip.shape
    else:
        raise InputError("the data set has no clips")
    if dtype != "uint8" or shape not in (wanted, (*wanted[:-1], 1)):
        raise InputError(
            f"training takes clips of uint8 {list(wanted)} (frames, height, width, channels), "
            f"but the data set yields {dtype} {list(shape)}{_remedy(dtype, shape, wanted)}"
        )


def _remedy(dtype, shape, wanted):
    """Return the end of a message that names the settings of a model for such clips; empty if there is none."""
    if dtype != "uint8" or len(shape) != 4:
        return ""
    frames, height, width, channels = shape
    if not FEWEST_FRAMES <= frames <= MOST_FRAMES or height != width or height not in IMAGE_SIZES:
        return ""
    settings = {"frames": (frames, wanted[0]), "image_size": (height, wanted[1])}
    if channels > 1:
        settings["channels"] = channels, wanted[3]
    changes = [f"{name} {found}" for name, (found, asked) in settings.items() if found != asked]
    return f": choose {', '.join(changes)}"


def _check_labels(dataset):
    if isinstance(dataset, VideoFrames) and dataset.labels.min() < 0:
        video = dataset.labels.argmin()
        raise InputError(f"the label of video {video} is {dataset.labels[video]}, but classes are numbered from 0")


def _check_size(dataset, batch_size):
    """Raise an InputError where another weighting helps; `BatchOrder` refuses too few clips without that advice."""
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
    return residence == "on" or fits_memory(nbytes, free)


def _window_filling(dataset, order, labeled, device, dtype, channels):
    """Return a filling of windows, and the function that reads their clips from frames on the device."""

    def fill(k, windows, labels=None):
        windows[...] = dataset.windows(order.indices(k), order.choices(k))[order.rank_rows]
        if labels is not None:
            labels[...] = dataset.labels_of(order.indices(k)[order.rank_rows])

    frames = dataset.frames if device.type == "cpu" else _uploaded(dataset.frames, device)
    specs = _specs(order, (dataset.layers, dataset.clip_frames, 4), torch.int64, labeled)
    read = functools.partial(read_windows, frames, image_size=dataset.image_size, dtype=dtype, channels=channels)
    return Filling(fill, specs), read


def _specs(order, shape, dtype, labeled):
    """Return the specs of a process's rows of a batch, each of this shape, and of their labels."""
    n = len(order.rank_rows)
    clips, labels = TensorSpec((n, *shape), dtype), TensorSpec((n,), torch.int64)
    return (clips, labels) if labeled else (clips,)


def _uploaded(frames, device):
    """Copy frames to the device as a contiguous tensor."""
    uploaded = torch.empty(frames.shape, dtype=frames.dtype, device=device)
    # A copy from other strides needs a contiguous copy in host memory, so parts keep that small.
    for target, part in zip(uploaded.split(_FRAMES_AT_ONCE), frames.split(_FRAMES_AT_ONCE), strict=True):
        target.copy_(part)
    return uploaded


def _clip_filling(dataset, order, labeled, device, dtype, channels):
    """Return a filling of clips, assembled in host memory, and the function that converts them to videos."""

    def fill_with_windows(k, clips, labels=None):
        dataset.cut(dataset.windows(order.indices(k), order.choices(k))[order.rank_rows], clips)
        if labels is not None:
            labels[...] = dataset.labels_of(order.indices(k)[order.rank_rows])

    def fill_one_by_one(k, clips, labels=None):
        for row, index in enumerate(order.indices(k)[order.rank_rows].tolist()):
            clip, label = dataset[index]
            clips[row] = _checked_clip(clip, index, shape)
            if labels is not None:
                labels[row] = _checked_label(label, index)

    of_frames = isinstance(dataset, VideoFrames)
    shape = dataset.clip_shape if of_frames else dataset[0][0].shape
    specs = _specs(order, shape, torch.uint8, labeled)
    filling = Filling(fill_with_windows if of_frames else fill_one_by_one, specs)
    if device.type == "cpu":
        return filling, functools.partial(to_videos, dtype=dtype, channels=channels)
    # `read_windows` converts in one pass, and yields the same bits as with resident frames.
    frames, image_size, *_ = shape
    windows = whole_frames(len(order.rank_rows) // order.batches_per_step, frames).to(device)
    options = {"image_size": image_size, "dtype": dtype, "channels": channels}
    return filling, lambda clips: read_windows(clips.flatten(0, 1), windows, **options)


def _checked_clip(clip, index, shape):
    if clip.dtype != "uint8" or clip.shape != shape:
        raise InputError(
            f"clip {index} of the data set is {clip.dtype} {list(clip.shape)}, but clip 0 is uint8 {list(shape)}"
        )
    return clip


def _checked_label(label, index):
    try:
        number = operator.index(label)
    except TypeError:
        raise InputError(f"the label of clip {index} of the data set is {label!r}, but must be an integer") from None
    if number < 0:
        raise InputError(f"the label of clip {index} of the data set is {number}, but classes are numbered from 0")
    return number


def _resident_description(dataset, device):
    if isinstance(dataset, VideoFrames):
        return f"{_describe_videos(dataset)} live on {device}: {_gigabytes(dataset.frames.nbytes)} of frames"
    return f"{len(dataset):,} clips of moving digits are drawn on {device}"


def _host_description(dataset, device, workers):
    threads = f"{workers} thread{'s' if workers > 1 else ''}"
    ahead = "made ahead of time" if device.type == "cpu" else f"copied to {device} ahead of time"
    if isinstance(dataset, VideoFrames):
        videos, size = _describe_videos(dataset), _gigabytes(dataset.frames.nbytes)
        return f"{videos} live in host memory: {size} of frames; batches are {ahead} by {threads}"
    return f"{len(dataset):,} clips are made in host memory, one by one; batches are {ahead} by {threads}"


def _describe_videos(dataset):
    windows = f" ({len(dataset):,} windows)" if dataset.weighting == "windows" else ""
    return f"{len(dataset.first):,} videos{windows}"


def _gigabytes(nbytes):
    return f"{nbytes / 1e9:.1f} GB"
