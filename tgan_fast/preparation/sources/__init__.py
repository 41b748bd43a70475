"""Sources of videos: files, folders, archives, lists and arrays, recognized by their names and contents."""

from pathlib import Path

from tgan_fast.data.array_files import ARRAY_SUFFIXES, checked_axes
from tgan_fast.data.clip_store import ClipStore
from tgan_fast.data.hdf5_files import HDF5_SUFFIXES
from tgan_fast.errors import InputError, counted
from tgan_fast.preparation.archives import open_archive
from tgan_fast.preparation.sources.arrays import ArrayVideo, array_videos, channels_of
from tgan_fast.preparation.sources.collection import Collection, SourceVideo, collect
from tgan_fast.preparation.sources.hdf5 import read_hdf5
from tgan_fast.preparation.sources.lists import only_of_split, read_list
from tgan_fast.preparation.sources.media import REFUSED, UNREADABLE, VIDEO_SUFFIXES, text_of, video_file
from tgan_fast.preparation.sources.tree import read_tree

__all__ = ["Collection", "SourceVideo", "only_of_split", "recognize"]


def recognize(source: Path, axes: str | None = None) -> Collection:
    """Return all videos of a source.

    Args:
        source: Folder of videos, arrays or images, such as UCF-101's; ZIP or TAR archive of videos or images; list of
            videos; video; file of NumPy arrays, such as Moving MNIST; or the HDF5 file of TGAN's authors.
        axes: Order of the axes of arrays, such as "NTHW", as in `read_arrays`; None: inferred from shapes or labels.

    Raises:
        InputError: The source is none of these, or the order of axes is needed or does not fit.
    """
    axes = checked_axes(axes)
    collection = _collection(source, axes)
    if axes is not None and not any(isinstance(video, ArrayVideo) for video in collection.videos):
        raise InputError(
            f"--axes is the order of axes of arrays, but {source} is {collection.description}: leave it out"
        )
    return collection


def _collection(source, axes):
    if not source.exists():
        raise InputError(f"there is no {source}")
    if source.is_dir():
        if ClipStore.is_at(source):
            raise InputError(f"{source} is a clip store already: python -m tgan_fast.train --data {source} uses it")
        return read_tree(source, axes)
    if not source.is_file():
        raise InputError(f"{source} is neither a file nor a folder")
    suffix = source.suffix.lower()
    if suffix in HDF5_SUFFIXES:
        return read_hdf5(source)
    if suffix in ARRAY_SUFFIXES:
        videos = array_videos(source, axes=axes)
        return collect(f"an array file: {counted(len(videos), 'clip')}", videos, channels=channels_of(videos))
    if suffix in VIDEO_SUFFIXES:
        return collect("a video file", [video_file(source, text_of(source.name))])
    if suffix in (".txt", ".csv", ".lst", ".list"):
        return read_list(source)
    if suffix in (".pkl", ".pickle"):
        raise InputError(f"{source} is a pickle, and loading one runs code: give the .h5 file beside it")
    root = open_archive(source)
    if root is not None:
        return read_tree(root, axes)
    reason = UNREADABLE.get(suffix) or REFUSED.get(suffix)
    if reason is not None:
        raise InputError(f"{source} cannot be prepared: {reason}")
    raise InputError(
        f"{source} is of no known kind: give a folder, a list (.txt), a video, a ZIP or TAR archive, an array "
        f"({' '.join(sorted(ARRAY_SUFFIXES))}) or HDF5 ({' '.join(sorted(HDF5_SUFFIXES))})"
    )
