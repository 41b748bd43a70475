"""Folders and their subfolders as a source: of video files, arrays or image sequences."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tgan_fast.data.array_files import ARRAY_SUFFIXES, AmbiguousAxesError
from tgan_fast.data.hdf5_files import HDF5_SUFFIXES
from tgan_fast.errors import InputError, counted
from tgan_fast.preparation.archives import ArchiveFolder
from tgan_fast.preparation.sources.arrays import array_videos, channels_of
from tgan_fast.preparation.sources.collection import Collection, UnreadableSource, collect
from tgan_fast.preparation.sources.lists import official_classes
from tgan_fast.preparation.sources.media import (
    IMAGE_SUFFIXES,
    REFUSED,
    UNREADABLE,
    VIDEO_SUFFIXES,
    image_sequence,
    is_company,
    is_of_ucf_101,
    size_of,
    text_of,
    video_file,
)

_KNOWN = VIDEO_SUFFIXES | ARRAY_SUFFIXES | IMAGE_SUFFIXES | HDF5_SUFFIXES


def read_tree(root: Path | ArchiveFolder, axes: str | None = None) -> Collection:
    """Return all videos below a folder, which may be in an archive.

    The class of a video in a subfolder is the name of the folder that it is in.
    If there are video files, only these count; otherwise arrays; otherwise images, where each folder is a video.

    Args:
        root: Folder.
        axes: Order of the axes of all arrays, as in `read_arrays`.

    Raises:
        InputError: There are no videos, or only arrays in an archive, or the order of an array's axes is needed.
    """
    archived = isinstance(root, ArchiveFolder)
    files = sorted(root.files.values() if archived else _files_below(root))
    for kind, suffixes in (("videos", VIDEO_SUFFIXES), ("arrays", ARRAY_SUFFIXES), ("images", IMAGE_SUFFIXES)):
        if not any(_suffix(path) in suffixes for path in files):
            continue
        if kind == "videos":
            suffixes = suffixes | UNREADABLE.keys()
        if kind == "arrays" and archived:
            raise InputError(f"arrays are not read from archives such as {root}: unpack it, and give the folder")
        found = [path for path in files if _suffix(path) in suffixes]
        others = [path for path in files if _suffix(path) not in suffixes]
        collection = _READERS[kind](root, found, axes)
        return replace(
            collection,
            notices=(*_notice_of_other_kinds(others, kind), *collection.notices),
            left_out=(*_members_left_out(root), *_files_left_out(others, root)),
        )
    left_out = (*_members_left_out(root), *_files_left_out(files, root))
    refused = f"; {root}/{left_out[0].name}: {left_out[0].reason}" if left_out else ""
    raise InputError(
        f"no videos in {root}: looked at {counted(len(files), 'file')} for videos ({_join_suffixes(VIDEO_SUFFIXES)}), "
        f"arrays ({_join_suffixes(ARRAY_SUFFIXES)}) and images ({_join_suffixes(IMAGE_SUFFIXES)}){refused}"
    )


def _files_below(root) -> Iterator[Path]:
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        identity = status.st_dev, status.st_ino
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        # Hidden files are skipped, such as the ._ files that macOS leaves beside others.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            # Opening a pipe would wait forever; a broken link is kept, since opening it reports the error.
            if path.is_file() or not path.exists():
                yield path


def _video_files(root, paths, axes):
    videos = [
        UnreadableSource(_name(path, root), size_of(path), None, None, None, UNREADABLE[_suffix(path)])
        if _suffix(path) in UNREADABLE
        else video_file(path, _name(path, root), _class_of(path, root))
        for path in paths
    ]
    files = [video for video in videos if not isinstance(video, UnreadableSource)]
    if not all(map(is_of_ucf_101, files)):
        return collect(f"{_kind(root)}: {counted(len(videos), 'video file')}", videos)
    classes, notices = official_classes(files, root)
    return collect(f"UCF-101: {counted(len(videos), 'video file')}", videos, classes=classes, notices=notices)


def _arrays(root, paths, axes):
    videos = [video for path in paths for video in _videos_of_array(path, root, axes)]
    description = f"a folder: {counted(len(videos), 'clip')} in {counted(len(paths), 'file')}"
    return collect(description, videos, channels=channels_of(videos))


def _videos_of_array(path, root, axes):
    name = _name(path, root)
    try:
        return array_videos(path, name=name, label=_class_of(path, root), axes=axes)
    except AmbiguousAxesError:
        # The order that the user gives applies to all files, so the error is about all of them.
        raise
    except InputError as error:
        return [UnreadableSource(name, size_of(path), None, None, None, str(error))]


def _image_folders(root, paths, axes):
    folders = defaultdict(list)
    for path in paths:
        folders[path.relative_to(root).parent].append(path)
    own_name = root.name if isinstance(root, ArchiveFolder) else root.resolve().name
    videos = [
        image_sequence(images, text_of(folder if folder.name else own_name), text_of(folder.parent.name) or None)
        for folder, images in folders.items()
    ]
    return collect(f"{_kind(root)}: {counted(len(videos), 'folder')} of images", videos)


_READERS = {"videos": _video_files, "arrays": _arrays, "images": _image_folders}


def _notice_of_other_kinds(paths, kind):
    """Yield a notice about files of other kinds, which could be prepared separately."""
    counts = Counter(suffix for suffix in map(_suffix, paths) if suffix in _KNOWN)
    if counts:
        yield f"only the {kind} are prepared, not " + ", ".join(f"{counts[name]:,} {name}" for name in sorted(counts))


def _members_left_out(root) -> Iterator[UnreadableSource]:
    """Yield the members of an archive that are links, or whose paths lead out of it."""
    if isinstance(root, ArchiveFolder):
        for path, reason in sorted(root.left_out.items()):
            yield UnreadableSource(text_of(path), 0, None, None, None, reason)


def _files_left_out(paths, root) -> Iterator[UnreadableSource]:
    """Yield the files that cannot be prepared and are not usual beside videos."""
    for path in paths:
        reason = _why_refused(path)
        if reason is not None:
            yield UnreadableSource(_name(path, root), size_of(path), None, None, None, reason)


def _why_refused(path):
    suffix = _suffix(path)
    reason = UNREADABLE.get(suffix) or REFUSED.get(suffix)
    if reason is not None or suffix in _KNOWN or not path.is_file() or is_company(path):
        return reason
    return "its name does not end like that of a video"


def _suffix(path):
    return path.suffix.lower()


def _name(path, root):
    return text_of(path.relative_to(root).as_posix())


def _class_of(path, root):
    return text_of(path.relative_to(root).parent.name) or None


def _kind(root):
    return "an archive" if isinstance(root, ArchiveFolder) else "a folder"


def _join_suffixes(suffixes):
    return " ".join(sorted(suffixes))
