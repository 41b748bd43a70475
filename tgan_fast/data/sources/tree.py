"""A folder and all below it: video files, or arrays, or folders of images."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tgan_fast.data.sources.arrays import ARRAY_SUFFIXES, array_videos, channels_of
from tgan_fast.data.sources.collection import Collection, UnreadableSource, collect
from tgan_fast.data.sources.files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    image_sequence,
    is_of_ucf_101,
    size_of,
    video_file,
)
from tgan_fast.data.sources.lists import find_class_index, read_class_index
from tgan_fast.errors import InputError


def read_tree(root: Path) -> Collection:
    """All videos below a folder; what lies in a folder of its own below it has that folder's name for its class.

    Where there are video files, these alone count; otherwise arrays; otherwise images, whose folders are videos.

    Raises:
        InputError: there are none, or what is wrong with an array or with the class index.
    """
    files = sorted(_files_below(root))
    for suffixes, read in ((VIDEO_SUFFIXES, _video_files), (ARRAY_SUFFIXES, _arrays), (IMAGE_SUFFIXES, _image_folders)):
        found = [path for path in files if path.suffix.lower() in suffixes]
        if found:
            return read(root, found)
    raise InputError(
        f"no videos in {root}: looked at {len(files):,} files for videos ({_listed(VIDEO_SUFFIXES)}), "
        f"arrays ({_listed(ARRAY_SUFFIXES)}) and images ({_listed(IMAGE_SUFFIXES)})"
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
        # Such as the ._ files that macOS leaves beside others.
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _video_files(root, paths):
    videos = [video_file(path, _name(path, root), _class_of(path, root)) for path in paths]
    if not all(map(is_of_ucf_101, videos)):
        return collect(f"a folder: {len(videos):,} video files", videos)
    index = find_class_index(root)
    classes = None if index is None else read_class_index(index)
    return collect(f"UCF-101: {len(videos):,} video files", videos, classes=classes)


def _arrays(root, paths):
    videos = [video for path in paths for video in _videos_of_array(path, root)]
    return collect(f"a folder: {len(videos):,} clips in {len(paths):,} files", videos, channels=channels_of(videos))


def _videos_of_array(path, root):
    name, label = _name(path, root), _class_of(path, root)
    try:
        return array_videos(path, name=name, label=label)
    except InputError as error:
        return [UnreadableSource(name, size_of(path), label, None, None, str(error))]


def _image_folders(root, paths):
    folders = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path)
    videos = [
        image_sequence(images, _name(folder, root) if folder != root else root.resolve().name, _class_of(folder, root))
        for folder, images in folders.items()
    ]
    return collect(f"a folder: {len(videos):,} folders of images", videos)


def _name(path, root):
    return path.relative_to(root).as_posix()


def _class_of(path, root):
    return None if root in (path, path.parent) else path.parent.name


def _listed(suffixes):
    return " ".join(sorted(suffixes))
