"""Lists of videos as a source: official splits, class indices, and lists written by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tgan_fast.data.clip_store import UNCLASSIFIED
from tgan_fast.errors import InputError, counted
from tgan_fast.preparation.archives import ArchivedFile, ArchiveFolder
from tgan_fast.preparation.sources.collection import Collection, SourceVideo, collect, unofficial
from tgan_fast.preparation.sources.media import path_of, video_file

CLASS_INDEX = "classInd.txt"


def read_list(path: Path) -> Collection:
    """Return the videos of a list file; each line has a path, relative to the list's folder, and optionally a class.

    Raises:
        InputError: The list is empty or not text, or none of its videos exists; a class is a number that the class
            index near the list does not have, or the index is damaged.
    """
    videos = []
    for entry, label in _lines(path):
        file = path.parent / path_of(entry)
        videos.append(video_file(file, Path(entry).as_posix(), label or Path(entry).parent.name or None))
    if not any(video.path.exists() for video in videos):
        raise InputError(
            f"the videos that {path} names do not exist, such as {videos[0].path}: give paths relative to the list's "
            "folder, or pass an official split list as --split and the videos' folder as the source"
        )
    index, notices = find_class_index(path.parent), ()
    if index is not None and any(video.label is not None and video.label.isdecimal() for video in videos):
        # Names replace numbers, so that the classes are the same as those of the same videos in a folder.
        classes = read_class_index(index)
        names = {str(number): name for number, name in enumerate(classes, 1)}
        videos = [replace(video, label=names.get((video.label or "").lstrip("0"), video.label)) for video in videos]
    else:
        classes, notices = official_classes(videos, path.parent)
    return collect(f"a list of {counted(len(videos), 'video')}", videos, classes=classes, notices=notices)


def only_of_split(collection: Collection, path: Path) -> Collection:
    """Return the videos that a split list names, such as trainlist01.txt, in the order of the collection.

    An entry matches a video's path below the source, or otherwise the name of its file.

    Raises:
        InputError: A video of the list is not in the collection.
    """
    by_path = {video.name: video for video in collection.videos}
    by_file = {Path(video.name).name: video for video in collection.videos}
    named = [entry for entry, _ in _lines(path)]
    found = {entry: by_path.get(entry) or by_file.get(Path(entry).name) for entry in named}
    missing = [entry for entry, video in found.items() if video is None]
    if missing:
        raise InputError(
            f"{path} names {counted(len(found), 'video')}, of which the source lacks {len(missing):,}, such as "
            f"{missing[0]}: is it the split list of these videos?"
        )
    chosen = {video.name for video in found.values()}
    return replace(
        collection,
        description=f"{collection.description}, {len(chosen):,} of them in {path.name}",
        videos=tuple(video for video in collection.videos if video.name in chosen),
        left_out=(),
    )


def official_classes(
    videos: Sequence[SourceVideo], folder: Path | ArchiveFolder
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the classes of the class index near a folder, if it has the classes of all videos.

    Returns:
        Names of the classes by number, or None; and notices that say why an index is not used.
    """
    path = find_class_index(folder)
    if path is None or not any(video.label for video in videos):
        return None, ()
    try:
        classes = read_class_index(path)
    except InputError as error:
        return None, (f"the class index is not used: {error}",)
    strange = unofficial({video.label or UNCLASSIFIED for video in videos}, classes)
    if strange:
        return None, (f"the class index is not used: {path} has no class {strange[0]}",)
    return classes, ()


def find_class_index(folder: Path | ArchiveFolder) -> Path | ArchivedFile | None:
    """Find UCF-101's class index in, beside or below a folder."""
    near = (folder, folder.parent)
    places = [place.joinpath(below, CLASS_INDEX) for place in near for below in (".", "ucfTrainTestlist")]
    return next((place for place in places if place.is_file()), None)


def read_class_index(path: Path | ArchivedFile) -> tuple[str, ...]:
    """Read the names of classes, in the order of their numbers.

    Raises:
        InputError: The file is not a list of consecutive numbers from 1, each with a name.
    """
    names = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[0] != str(len(names) + 1):
            raise InputError(f"line {number} of {path} must be '{len(names) + 1} NameOfTheClass', not {line.strip()!r}")
        names.append(fields[1])
    return tuple(names)


def _lines(path):
    """Return the entries of a list file: pairs of a path and a class, or None for no class."""
    lines = [line.strip() for line in _text(path).split("\n")]
    pairs = [_split_line(line, path.parent) for line in lines if line and not line.startswith("#")]
    if not pairs:
        raise InputError(f"the list {path} names no videos")
    return pairs


def _split_line(line, folder):
    """Return the path and the class, or None, of a line; paths may contain spaces, and a class follows a file name."""
    entry, *label = line.rsplit(maxsplit=1)
    whole = (folder / path_of(line)).exists() or not Path(entry.rstrip(",")).suffix
    return (line, None) if whole or not label else (entry.rstrip(","), label[0])


def _text(path):
    """Return the content of a text file; bytes that are not UTF-8, as in file names, become surrogates."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if "\0" in text:
        raise InputError(f"{path} is not a text file in UTF-8, so it cannot be a list of videos")
    return text
